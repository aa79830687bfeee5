"""The report: a page, pictures that are pictures, GLUE scores with what they lack, and no crash without matplotlib."""

import json
import re
import struct
import sys

import pytest

from cramming_train import report
from cramming_train.runs import Run
from cramming_train.summary import rules
from cramming_train.tracking import RunLog

plt = pytest.importorskip("matplotlib.pyplot")

SUMMARY = {
    "recipe": "crammed-bert-mini", "device": "a machine", "processes": 1, "seed": 5, "budget_seconds": 90.0,
    "train_seconds": 89.5, "tokens": 1234567, "epochs": 2.5, "optimizer_steps": 40, "tokens_per_second": 13794.0,
    "model_flops_utilization": 0.4321, "parameters": 11015169, "train_loss": 5.4321, "validation_loss": 5.6789,
    "validation_accuracy": 0.1234,
    "data": {"source": "books", "source_kind": "local", "rows": 98765, "notices": ["mind the rows"],
             "unigram_loss": 7.5},
}  # fmt: skip
CURVE, HELD_OUT = (31, 95, 168), (210, 100, 42)
LOSS_CURVE = (98, 143, 194)  # lets some white through


def make_run(folder, steps=40, validations=2, summary=True):
    folder.mkdir()
    log = RunLog(folder / "log.jsonl", lambda: log_time[0])
    log_time = [0.0]
    log.write("start", recipe="x")
    for step in range(1, steps + 1):
        log_time[0] = step * 2.2
        log.write(
            "step", step=step, loss=8 - step * 0.06 if step != 7 else float("nan"), learning_rate=1e-3 * step / 40,
            batch_rows=32 * (1 + step // 10), tokens_per_second=14000.0 + 300 * (step % 5),
            model_flops_utilization=0.43,
        )  # fmt: skip
        if validations and step % (steps // validations) == 0:
            log.write("validation", step=step, loss=8 - step * 0.05, accuracy=0.1, tokens=100)
    log.close()
    if summary:
        content = {**SUMMARY, "name": folder.name}
        content["rules"] = rules(content, content["data"], evaluated=False)
        (folder / "summary.json").write_text(json.dumps(content))
    return Run(folder)


def add_scores(run, *, mean=None, **tasks):
    entries = {
        name: {"metric": "accuracy", "median": median, "values": [median] * 3, "train_rows": 2490,
               "validation_rows": 277, "complete": complete}
        for name, (median, complete) in tasks.items()
    }  # fmt: skip
    (run.path / "evaluation").mkdir(exist_ok=True)
    (run.path / "evaluation" / "glue.json").write_text(json.dumps({"tasks": entries, "mean": mean}))


def size_of(path):
    """Width and height of a PNG, from its header."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n" and head[12:16] == b"IHDR"
    return struct.unpack(">II", head[16:24])


def pixels(path, color):
    """How many pixels have very nearly this colour."""
    image = (plt.imread(path)[..., :3] * 255).round()
    return int((abs(image - color).max(axis=2) <= 3).sum())


def test_page_and_pictures(tmp_path):
    run = make_run(tmp_path / "a-run")
    page = report.write_report(run)
    assert page == run.path / "report" / "report.md"
    text = page.read_text()
    shown = re.findall(r"!\[(.*?)\]\((.*?)\)", text)
    assert [title for title, _ in shown] == ["Loss", "Learning rate and batch", "Throughput"]
    assert [name for _, name in shown] == ["loss.png", "schedule.png", "throughput.png"]
    assert {path.name for path in page.parent.iterdir()} == {"report.md", *(name for _, name in shown)}
    assert size_of(page.parent / "loss.png") == (960, 480)
    assert size_of(page.parent / "schedule.png") == size_of(page.parent / "throughput.png") == (960, 816)
    for (_, name), color in zip(shown, (LOSS_CURVE, CURVE, CURVE), strict=True):
        assert pixels(page.parent / name, color) > 100, name  # the curve is there
    assert not plt.get_fignums()  # nothing is left open


def test_the_page_says_what_the_summary_says(tmp_path):
    text = report.write_report(make_run(tmp_path / "a-run")).read_text()
    assert text.startswith("# a-run\n")
    for line in (
        "| recipe | crammed-bert-mini |", "| tokens | 1,234,567 |", "| validation_loss | 5.679 |",
        "| tokens_per_second | 13,794 |", "| model_flops_utilization | 0.4321 |", "| parameters | 11,015,169 |",
        "| data | books (98,765 rows) |", "> **mind the rows**",
    ):  # fmt: skip
        assert line in text.splitlines(), line
    assert re.findall(r"^(\d)\. .*?: (kept|not kept) \(", text, re.M) == [
        ("1", "kept"), ("2", "kept"), ("3", "kept"), ("4", "kept"), ("5", "not kept"),
    ]  # fmt: skip


def test_held_out_points_are_shown_where_there_are_any(tmp_path):
    with_points = report.write_report(make_run(tmp_path / "with")).parent / "loss.png"
    without = report.write_report(make_run(tmp_path / "without", validations=0)).parent / "loss.png"
    assert pixels(with_points, HELD_OUT) > 100 and pixels(without, HELD_OUT) == 0


def test_a_run_that_has_not_ended(tmp_path):
    run = make_run(tmp_path / "going", summary=False)
    assert "The run has not ended." in report.write_report(run).read_text()
    empty = make_run(tmp_path / "empty", steps=0, validations=0, summary=False)
    page = report.write_report(empty)
    assert "![" not in page.read_text() and [path.name for path in page.parent.iterdir()] == ["report.md"]


def test_steps_gone_back_behind_are_left_out(tmp_path):
    """After a resume from step 10, steps 11 to 40 are as if they had not been: the pictures are those of 10 steps."""
    short, whole, resumed = (make_run(tmp_path / name, steps) for name, steps in (("a", 10), ("b", 40), ("c", 40)))
    with open(resumed.log, "a") as file:
        file.write(json.dumps({"event": "resume", "elapsed": 90, "step": 10}) + "\n")
    pictures = {}
    for run in (short, whole, resumed):
        folder = report.write_report(run).parent
        pictures[run.name] = [(folder / name).read_bytes() for name in ("schedule.png", "throughput.png")]
    assert pictures["c"] == pictures["a"] != pictures["b"]


def test_incomplete_scores_are_marked(tmp_path):
    run = make_run(tmp_path / "a-run")
    add_scores(run, cola=(0.123, True), rte=(0.561, False))
    text = report.write_report(run).read_text()
    lines = text.splitlines()
    assert "| cola | accuracy | 12.3 | 12.3..12.3 | 3 | 2,490 | 277 |" in lines
    assert "| rte (incomplete data) | accuracy | 56.1 | 56.1..56.1 | 3 | 2,490 | 277 |" in lines
    assert any(line.startswith("Mean of the nine values: none") for line in lines)
    assert "![GLUE](glue.png)" in lines and size_of(run.path / "report" / "glue.png") == (960, 480)


def test_a_bar_without_its_data_is_hatched(tmp_path):
    """White lines through it: fewer pixels of the bar's own colour."""
    blue = []
    for name, complete in (("whole", True), ("part", False)):
        run = make_run(tmp_path / name, steps=0, validations=0)
        add_scores(run, rte=(0.9, complete), mean=None)
        blue.append(pixels(report.write_report(run).parent / "glue.png", CURVE))
    assert 0 < blue[1] < 0.9 * blue[0]


def test_complete_scores_have_a_mean(tmp_path):
    run = make_run(tmp_path / "a-run", steps=0, validations=0)
    names = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "mnli_mm", "qnli", "rte")
    add_scores(run, mean=0.7654, **{name: (0.7, True) for name in names})
    text = report.write_report(run).read_text()
    assert "Mean of the nine values: 76.5" in text and "incomplete" not in text


def test_scores_that_no_headline_has(tmp_path):
    run = make_run(tmp_path / "a-run", steps=0, validations=0)
    add_scores(run, wnli=(0.5, True))
    text = report.write_report(run).read_text()
    assert "| wnli | accuracy | 50.0 | 50.0..50.0 | 3 |" in text and "glue.png" not in text


def test_as_a_command(tmp_path, capsys):
    run = make_run(tmp_path / "a-run")
    (run.path / "recipe.json").write_text("{}")
    assert report.main(["--out", str(tmp_path), "--run", "a-run"]) == 0
    assert capsys.readouterr().out.strip() == str(run.path / "report" / "report.md")
    assert report.main(["--out", str(tmp_path), "--run", "b-run"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: no run named 'b-run'") and "\n" not in error


def test_without_matplotlib(tmp_path, capsys, monkeypatch):
    """A notice, no report, no traceback; the command fails and says how to get it."""
    run = make_run(tmp_path / "a-run")
    (run.path / "recipe.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert report.write_report(run) is None
    notice = capsys.readouterr().err
    assert "matplotlib is not installed (pip install matplotlib)" in notice and "\n" not in notice.strip()
    assert not (run.path / "report").exists()
    assert report.main(["--out", str(tmp_path)]) == 1
    assert "pip install matplotlib" in capsys.readouterr().err
