"""What is kept on disk, and the scores that follow from it."""

import json

import pytest

from cramming_train.glue.results import ResultLines, aggregate, write_scores
from cramming_train.glue.table import comparison_lines, score_lines, summary_lines
from cramming_train.glue.tasks import DEFAULT_TASKS, TASKS


def line(name, seed, value, data="d", **rows):
    task = TASKS[name]
    values = {row: value + 0.01 * place for place, row in enumerate(task.splits)}
    return {
        "task": name, "seed": seed, "data": data, "rows": {**task.official, **rows}, "values": values,
        "steps": 10, "train_loss": 0.5, "seconds": 1.0, "notes": [],
    }  # fmt: skip


def full(seeds=3):
    return [line(name, seed, 0.5 + 0.1 * seed) for name in DEFAULT_TASKS for seed in range(seeds)]


def test_headline_mean_of_medians():
    scores = aggregate(full(), seeds=3)
    assert len(scores.rows) == 9 and not scores.missing and not scores.incomplete
    assert scores.rows["cola"]["values"] == [0.5, 0.6, 0.7] and scores.rows["cola"]["median"] == 0.6
    assert scores.rows["mnli_mm"]["median"] == pytest.approx(0.61)
    assert scores.mean == pytest.approx((9 * 0.6 + 0.01) / 9)


def test_no_mean_without_a_row():
    lines = [item for item in full() if item["task"] != "rte"]
    del lines[0]["values"]["cola"]
    lines[0]["values"] = {"cola": 0.5}
    for item in lines:
        item["values"].pop("mnli_mm", None)
        if item["task"] == "mnli":
            del item["rows"]["validation_mismatched"]
    scores = aggregate(lines, seeds=3)
    assert scores.missing == ["mnli_mm", "rte"] and scores.mean is None
    assert scores.rows["mnli"]["complete"], "the matched row does not need the mismatched split"
    text = "\n".join(summary_lines(scores))
    assert "missing: mnli_mm, rte" in text and "GLUE mean: none" in text


@pytest.mark.parametrize("split", ["train", "validation"])
def test_no_mean_from_incomplete_data(split):
    lines = [line("qnli", item["seed"], 0.7, **{split: 2000}) if item["task"] == "qnli" else item for item in full()]
    scores = aggregate(lines, seeds=3)
    assert scores.incomplete == ["qnli"] and scores.mean is None and not scores.missing
    assert not scores.rows["qnli"]["complete"]
    assert any("INCOMPLETE" in text for text in score_lines(scores) if text.startswith("QNLI"))


def test_no_mean_while_a_seed_is_missing():
    scores = aggregate(full()[:-1], seeds=3)
    assert scores.mean is None and any("2 of 3 seeds" in note for note in scores.notes)


def test_wnli_is_shown_and_does_not_count():
    scores = aggregate([*full(), *(line("wnli", seed, 0.1) for seed in range(3))], seeds=3)
    assert scores.rows["wnli"]["median"] == 0.1
    assert scores.mean == pytest.approx((9 * 0.6 + 0.01) / 9)


def test_lines_are_found_again_by_settings_and_data(tmp_path):
    ResultLines(tmp_path, "one").append(line("rte", 0, 0.5))
    ResultLines(tmp_path, "two").append(line("rte", 0, 0.6))
    again = ResultLines(tmp_path, "one")
    assert again.get("rte", 0, "d")["values"] == {"rte": 0.5}
    assert again.get("rte", 0, "other data") is None and again.get("rte", 1, "d") is None
    assert ResultLines(tmp_path, "three").up_to(5) == []
    assert len((tmp_path / "glue.jsonl").read_text().splitlines()) == 2


def test_lines_come_in_the_order_of_tasks_and_seeds(tmp_path):
    lines = ResultLines(tmp_path, "s")
    for name, seed in (("rte", 1), ("cola", 2), ("rte", 0), ("cola", 0)):
        lines.append(line(name, seed, 0.5))
    order = [(item["task"], item["seed"]) for item in lines.up_to(2)]
    assert order == [("cola", 0), ("rte", 0), ("rte", 1)]


def test_a_line_cut_short_by_a_kill_is_lost_alone(tmp_path):
    lines = ResultLines(tmp_path, "s")
    lines.append(line("rte", 0, 0.5))
    lines.append(line("rte", 1, 0.6))
    path = tmp_path / "glue.jsonl"
    path.write_text(path.read_text()[:-20])
    again = ResultLines(tmp_path, "s")
    assert again.get("rte", 0, "d") and again.get("rte", 1, "d") is None
    again.append(line("rte", 1, 0.7))
    assert ResultLines(tmp_path, "s").get("rte", 1, "d")["values"] == {"rte": 0.7}


def test_scores_file(tmp_path):
    path = write_scores(tmp_path, aggregate(full(1)[:3], seeds=1), {"run": "r", "recipe": {"name": "glue-sane"}})
    content = json.loads(path.read_text())
    assert content["suite"] == "glue" and content["recipe"] == {"name": "glue-sane"} and content["mean"] is None
    assert content["tasks"]["mrpc"] == {
        "metric": "f1", "median": 0.5, "values": [0.5], "train_rows": 3668, "validation_rows": 408, "complete": True,
    }  # fmt: skip
    assert content["missing"] == ["qqp", "stsb", "mnli", "mnli_mm", "qnli", "rte"]
    assert [child.name for child in tmp_path.iterdir()] == ["glue.json"]


def test_table_is_in_percent_and_names_published_rows_as_such():
    table = comparison_lines("my-run", aggregate(full(), seeds=3))
    assert table[1].startswith("my-run") and table[1].split()[1:] == ["60.0", "61.0", *["60.0"] * 7, "60.1"]
    assert sum("(published)" in text for text in table) == 3
    assert len({len(text) for text in table}) == 1
    partial = comparison_lines("my-run", aggregate([line("rte", 0, 0.5)], seeds=1))
    assert partial[1].split()[1:].count("-") == 9
