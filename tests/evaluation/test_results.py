"""What is kept on disk, and the scores that follow from it."""

import json

import pytest

from cramming_train.evaluation.results import ResultLines, aggregate, write_scores
from cramming_train.evaluation.suites import GLUE, SUITES, SUPERGLUE
from cramming_train.evaluation.table import comparison_lines, recipe_lines, score_lines, summary_lines
from cramming_train.recipes import EVALUATIONS


def line(name, seed, value, data="d", suite=GLUE, capped_from=None, **rows):
    task = suite.tasks[name]
    values = {row: value + 0.01 * place for place, row in enumerate(task.rows)}
    official = {"train": task.train_rows, **{row: split.rows for row, split in task.rows.items()}}
    metrics = {row: {m: values[row] for m in split.metrics or task.metrics} for row, split in task.rows.items()}
    return {
        "task": name, "seed": seed, "data": data, "rows": {**official, **rows}, "values": values, "metrics": metrics,
        "capped_from": capped_from, "steps": 10, "train_loss": 0.5, "seconds": 1.0, "notes": [],
    }  # fmt: skip


def full(seeds=3):
    return [line(name, seed, 0.5 + 0.1 * seed) for name in GLUE.default_tasks for seed in range(seeds)]


def test_headline_mean_of_medians():
    scores = aggregate(GLUE, full(), seeds=3)
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
            del item["rows"]["mnli_mm"]
    scores = aggregate(GLUE, lines, seeds=3)
    assert scores.missing == ["mnli_mm", "rte"] and scores.mean is None
    assert scores.rows["mnli"]["complete"], "the matched row does not need the mismatched split"
    text = "\n".join(summary_lines(GLUE, scores, "glue-sane"))
    assert "missing: mnli_mm, rte" in text and "GLUE mean: none" in text


@pytest.mark.parametrize("split", ["train", "qnli"])
def test_no_mean_from_incomplete_data(split):
    lines = [line("qnli", item["seed"], 0.7, **{split: 2000}) if item["task"] == "qnli" else item for item in full()]
    scores = aggregate(GLUE, lines, seeds=3)
    assert scores.incomplete == ["qnli"] and scores.mean is None and not scores.missing
    assert not scores.rows["qnli"]["complete"]
    assert any("INCOMPLETE" in text for text in score_lines(GLUE, scores) if text.startswith("QNLI"))


def test_no_mean_while_a_seed_is_missing():
    scores = aggregate(GLUE, full()[:-1], seeds=3)
    assert scores.mean is None and any("2 of 3 seeds" in note for note in scores.notes)


def test_wnli_is_shown_and_does_not_count():
    scores = aggregate(GLUE, [*full(), *(line("wnli", seed, 0.1) for seed in range(3))], seeds=3)
    assert scores.rows["wnli"]["median"] == 0.1
    assert scores.mean == pytest.approx((9 * 0.6 + 0.01) / 9)


def test_lines_are_found_again_by_settings_and_data(tmp_path):
    ResultLines(tmp_path, GLUE, "one").append(line("rte", 0, 0.5))
    ResultLines(tmp_path, GLUE, "two").append(line("rte", 0, 0.6))
    again = ResultLines(tmp_path, GLUE, "one")
    assert again.get("rte", 0, "d")["values"] == {"rte": 0.5}
    assert again.get("rte", 0, "other data") is None and again.get("rte", 1, "d") is None
    assert ResultLines(tmp_path, GLUE, "three").up_to(5) == []
    assert len((tmp_path / "glue.jsonl").read_text().splitlines()) == 2


def test_lines_come_in_the_order_of_tasks_and_seeds(tmp_path):
    lines = ResultLines(tmp_path, GLUE, "s")
    for name, seed in (("rte", 1), ("cola", 2), ("rte", 0), ("cola", 0)):
        lines.append(line(name, seed, 0.5))
    order = [(item["task"], item["seed"]) for item in lines.up_to(2)]
    assert order == [("cola", 0), ("rte", 0), ("rte", 1)]


def test_a_line_cut_short_by_a_kill_is_lost_alone(tmp_path):
    lines = ResultLines(tmp_path, GLUE, "s")
    lines.append(line("rte", 0, 0.5))
    lines.append(line("rte", 1, 0.6))
    path = tmp_path / "glue.jsonl"
    path.write_text(path.read_text()[:-20])
    again = ResultLines(tmp_path, GLUE, "s")
    assert again.get("rte", 0, "d") and again.get("rte", 1, "d") is None
    again.append(line("rte", 1, 0.7))
    assert ResultLines(tmp_path, GLUE, "s").get("rte", 1, "d")["values"] == {"rte": 0.7}


def test_scores_file(tmp_path):
    path = write_scores(
        tmp_path, GLUE, aggregate(GLUE, full(1)[:3], seeds=1), {"run": "r", "recipe": {"name": "glue-sane"}}
    )
    content = json.loads(path.read_text())
    assert content["spread"] == "min..max over the seeds" and content["mean_range"] is None
    assert content["suite"] == "glue" and content["recipe"] == {"name": "glue-sane"} and content["mean"] is None
    assert content["tasks"]["mrpc"] == {
        "metric": "f1", "median": 0.5, "min": 0.5, "max": 0.5, "values": [0.5],
        "train_rows": 3668, "validation_rows": 408, "complete": True,
    }  # fmt: skip
    assert content["missing"] == ["qqp", "stsb", "mnli", "mnli_mm", "qnli", "rte"]
    assert [child.name for child in tmp_path.iterdir()] == ["glue.json"]


def test_table_is_in_percent_and_names_published_rows_as_such():
    table = comparison_lines(GLUE, aggregate(GLUE, full(), seeds=3))
    assert table[0].split() == ["this", "run", "[1]", "[2]", "[3]"]
    rows = {text.split()[0]: text.split()[1:] for text in table[1:11]}
    assert rows["MNLI-m"] == ["60.0", "83.2", "83.9", "34.1"] and rows["mean"] == ["60.1", "80.9", "78.6", "45.5"]
    assert [own for own, *_ in rows.values()] == ["60.0", "61.0", *["60.0"] * 7, "60.1"]
    assert len({len(text) for text in table[:11]}) == 1
    assert table[11:] == [f"[{n}] {name}" for n, name in enumerate(GLUE.published, 1)]
    partial = comparison_lines(GLUE, aggregate(GLUE, [line("rte", 0, 0.5)], seeds=1))
    assert sum(text.split()[1] == "-" for text in partial[1:11]) == 9


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_tables_are_80_columns_wide(suite):
    lines = [
        line(name, seed, 0.5, suite=suite, capped_from=400_000)
        for name in suite.tasks for seed in range(5)
    ]  # fmt: skip
    scores = aggregate(suite, lines, seeds=5)
    tables = [score_lines(suite, scores), recipe_lines(EVALUATIONS["glue-sane"], list(suite.tasks.values()))]
    tables += [comparison_lines(suite, scores)] if suite.published else []
    assert max(len(text) for table in tables for text in table) <= 80


def test_the_spread_stands_beside_the_median():
    """Of every row, and of the mean: the seeds' own means."""
    scores = aggregate(GLUE, full(), seeds=3)
    assert (scores.rows["cola"]["min"], scores.rows["cola"]["max"]) == (0.5, 0.7)
    assert scores.mean_range == pytest.approx(((9 * 0.5 + 0.01) / 9, (9 * 0.7 + 0.01) / 9))
    _, first, *_, last = score_lines(GLUE, scores)
    assert "over the seeds" in last and first.split()[:5] == ["CoLA", "MCC", "60.0", "50.0", "70.0"]
    headline = summary_lines(GLUE, scores, "glue-sane-original")[-1]
    assert headline == "GLUE mean: 60.1 (recipe glue-sane-original; of the medians; of single seeds 50.1..70.1)"


def test_capped_training_sets_are_labelled_and_have_no_mean():
    lines = [line("rte", s, 0.5, capped_from=2490, train=100) if i["task"] == "rte" else i
             for i in full() for s in [i["seed"]]]  # fmt: skip
    scores = aggregate(GLUE, lines, seeds=3)
    assert scores.capped == ["rte"] and scores.incomplete == ["rte"] and scores.mean is None
    assert scores.rows["rte"]["capped_from"] == 2490 and scores.rows["rte"]["train_rows"] == 100
    assert "capped_from" not in scores.rows["cola"]
    assert any("CAPPED from 2490 training rows" in text for text in score_lines(GLUE, scores))
    text = "\n".join(summary_lines(GLUE, scores, "glue-sane"))
    assert "capped training sets (not comparable with published scores): rte" in text and "incomplete (" not in text


def test_superglue_averages_two_metrics_and_leaves_diagnostics_out():
    """Of CB accuracy and macro F1; AX-b and AX-g are rows of RTE's fine-tunings that do not count."""
    lines = [line(name, seed, 0.5 + 0.1 * seed, suite=SUPERGLUE) for name in SUPERGLUE.tasks for seed in range(3)]
    for item in lines:
        if item["task"] == "cb":
            item["metrics"] = {"cb": {"accuracy": item["values"]["cb"] + 0.2, "f1_macro": item["values"]["cb"] - 0.2}}
    scores = aggregate(SUPERGLUE, lines, seeds=3)
    assert scores.rows["cb"]["metrics"] == pytest.approx({"accuracy": 0.8, "f1_macro": 0.4})
    assert scores.rows["axb"]["metric"] == "matthews_correlation" and scores.rows["axg"]["metric"] == "accuracy"
    assert scores.mean == pytest.approx(0.6) and len(SUPERGLUE.headline) == 8
    shown = score_lines(SUPERGLUE, scores)[1:]
    table = {text.split()[0]: text for text in shown}
    assert (
        "acc + macro F1" in table["CB"] and "(mean of acc 80.0, macro F1 40.0)" in shown[shown.index(table["CB"]) + 1]
    )
    assert table["AX-b"].split()[:3] == ["AX-b", "MCC", "61.0"]
