"""The command as a user types it."""

import dataclasses
import json
import shutil

import pytest
import torch

from cramming_train import evaluate
from cramming_train.certificate import rules
from cramming_train.evaluation import runner
from cramming_train.evaluation.hub import Hub
from cramming_train.evaluation.results import Scores
from cramming_train.evaluation.suites import GLUE
from tests.training.run_folder import SUMMARY

QUICK = ["--seeds", "2", "--epochs", "1"]


@pytest.fixture
def runs(toy_runs, tmp_path):
    return shutil.copytree(toy_runs, tmp_path / "runs")


def call(runs, *arguments):
    return evaluate.main(["--out", str(runs), *map(str, arguments)])


def content(runs, name="toy"):
    folder = runs / name / "evaluation"
    lines = [json.loads(line) for line in (folder / "glue.jsonl").read_text().splitlines()]
    return json.loads((folder / "glue.json").read_text()), lines


def test_glue(runs, toy_glue, capsys):
    assert call(runs, "--task-dir", toy_glue, "--tasks", "cola", "mnli", *QUICK) == 0
    scores, lines = content(runs)
    assert [(line["task"], line["seed"]) for line in lines] == [
        ("cola", 0),
        ("cola", 1),
        ("mnli", 0),
        ("mnli", 1),
    ]
    assert set(scores["tasks"]) == {"cola", "mnli"} and scores["mean"] is None
    assert scores["incomplete"] == ["cola", "mnli"] and "mnli_mm" in scores["missing"]
    assert scores["recipe"]["epochs"] == 1 and scores["recipe"]["learning_rate"] == 2e-3 and scores["run"] == "toy"
    assert scores["tasks"]["cola"]["train_rows"] == 400 and len(scores["tasks"]["cola"]["values"]) == 2
    printed = capsys.readouterr().out
    for expected in (
        "missing: mnli validation_mismatched is not in",
        "incomplete: cola train: 400 of 8551 rows",
        "betas 0.9 and 0.98, eps 1e-06",
        "(published)",
        "GLUE mean: none",
    ):
        assert expected in printed


def test_the_run_knows_that_it_was_judged(runs, toy_glue):
    """Rule five of summary and certificate, and the scores of the report."""
    pytest.importorskip("matplotlib")
    folder = runs / "toy"
    (folder / "summary.json").write_text(json.dumps({**SUMMARY, "name": "toy", "rules": rules(SUMMARY)}))
    assert call(runs, "--task-dir", toy_glue, "--tasks", "cola", *QUICK) == 0
    fifth = json.loads((folder / "summary.json").read_text())["rules"][4]
    assert fifth["kept"] is None and fifth["why"].startswith("judged on cola; missing: ")
    assert "incomplete data: cola" in fifth["why"]
    assert json.loads((folder / "certificate.json").read_text())["rules"][4] == {**fifth, "state": "open"}
    assert "<h2>GLUE</h2>" in (folder / "report" / "report.html").read_text()


@pytest.mark.parametrize(
    ("epochs", "mean", "kept", "why"),
    [(5, 0.786, True, "GLUE mean 78.6"), (6, 0.786, False, "6 epochs of fine-tuning, more than 5"),
     (5, None, None, "judged on cola; seeds are lacking")],
)  # fmt: skip
def test_the_fifth_rule(recipe, epochs, mean, kept, why):
    settings = dataclasses.replace(recipe.evaluation, epochs=epochs)
    verdict, reason = evaluate.judgement(Scores(rows={"cola": {}}, mean=mean), settings)
    assert verdict is kept and why in reason


def test_an_interrupted_evaluation_continues(runs, toy_glue, tmp_path, monkeypatch, capsys):
    command = ["--run", "toy", "--task-dir", toy_glue, "--tasks", "cola", "stsb", *QUICK]
    other = shutil.copytree(runs, tmp_path / "other")
    assert call(other, *command) == 0
    original, calls = runner.fine_tune, []

    def interrupted(*arguments, **options):
        calls.append(options["seed"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(runner, "fine_tune", interrupted)
    assert call(runs, *command) == 130
    assert len(content(runs)[1]) == 2 and content(runs)[0]["missing"]
    assert call(runs, *command) == 0
    assert len(calls) == 5, "two were done, the third was interrupted and repeated"
    assert content(runs)[0] == content(other)[0]
    assert call(runs, *command) == 0
    assert len(calls) == 5 and "4 of 4 fine-tunings are already" in capsys.readouterr().out
    assert call(runs, *command, "--set", "evaluation.learning_rate=1e-3") == 0
    assert len(calls) == 9, "other settings are another evaluation"


def test_tasks_of_several_calls_come_together(runs, toy_glue):
    assert call(runs, "--task-dir", toy_glue, "--tasks", "stsb", "--seeds", "1", "--epochs", "1") == 0
    assert call(runs, "--task-dir", toy_glue, "--tasks", "cola", "--seeds", "1", "--epochs", "1") == 0
    assert list(content(runs)[0]["tasks"]) == ["cola", "stsb"]


def test_a_row_stands_for_its_task(runs, toy_glue):
    assert call(runs, "--task-dir", toy_glue, "--tasks", "mnli_mm", "--seeds", "1", "--epochs", "1") == 0
    assert list(content(runs)[0]["tasks"]) == ["mnli"]


def test_capped_training_sets(runs, toy_glue, capsys):
    """Labelled in table, JSON and recipe; larger caps than the data cap nothing."""
    command = ["--task-dir", toy_glue, "--tasks", "cola", "mnli", "--seeds", "1", "--epochs", "1"]
    assert call(runs, *command, "--max-train-rows", "64") == 0
    scores, _ = content(runs)
    assert scores["capped"] == ["cola"] and scores["recipe"]["max_train_rows"] == 64
    assert scores["tasks"]["cola"]["train_rows"] == 64 and scores["tasks"]["cola"]["capped_from"] == 400
    assert scores["tasks"]["mnli"]["train_rows"] == 40 and "capped_from" not in scores["tasks"]["mnli"]
    printed = capsys.readouterr().out
    assert "CAPPED: at most 64 training rows a task" in printed and "CAPPED from 400 training rows" in printed
    assert "capped training sets (not comparable with published scores): cola" in printed
    assert call(runs, *command) == 0
    assert content(runs)[0]["capped"] == [] and content(runs)[0]["tasks"]["cola"]["train_rows"] == 400


def test_the_originals_warm_up_is_a_recipe_and_says_so(runs, toy_glue, capsys):
    """Its 267 steps are more than the toy task has, so the whole of it is warm-up, and the result another one."""
    command = ["--task-dir", toy_glue, "--tasks", "cola", "--seeds", "1", "--max-train-rows", "48", "--set"]
    small = ["evaluation.classifier_hidden=32", "evaluation.max_length=32", "evaluation.learning_rate=2e-3"]
    assert call(runs, *command, "evaluation=glue-sane", *small) == 0
    own, _ = content(runs)
    assert call(runs, *command, "evaluation=glue-sane-original", *small) == 0
    original, lines = content(runs)
    assert original["recipe"]["name"] == "glue-sane-original" and original["recipe"]["warmup_steps"] == 267
    assert (
        len(lines) == 2 and lines[0]["train_loss"] != lines[1]["train_loss"] and own["recipe"]["warmup_steps"] is None
    )
    printed = capsys.readouterr().out
    assert "warm-up over 10 % of each task's own steps" in printed
    assert "recipe glue-sane-original" in printed and "warm-up over the first 267 steps of every task" in printed


def test_changed_data_are_not_mistaken_for_the_old(runs, toy_glue, tmp_path):
    glue = shutil.copytree(toy_glue, tmp_path / "glue")
    command = ["--task-dir", glue, "--tasks", "mnli", "--seeds", "1", "--epochs", "1"]
    assert call(runs, *command) == 0
    shutil.copy(glue / "mnli/train.tsv.gz", glue / "mnli/validation_matched.tsv.gz")
    assert call(runs, *command) == 0
    scores, lines = content(runs)
    assert len(lines) == 2 and scores["tasks"]["mnli"]["validation_rows"] == 40


def test_no_pretraining(runs, toy_glue, capsys):
    command = ["--run", "none", "--task-dir", toy_glue, "--tasks", "stsb", *QUICK]
    assert call(runs, *command) == 0
    scores, _ = content(runs, "none")
    values = scores["tasks"]["stsb"]["values"]
    assert scores["run"] == "none" and values[0] != values[1]
    assert "GLUE for none" in capsys.readouterr().out
    shutil.rmtree(runs / "toy")
    assert call(runs, *command) == 2
    assert "--data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--tasks", "colla"], "--tasks colla: no such task in GLUE; known: cola, sst2"),
        (["--suite", "superglue", "--tasks", "cola"], "--tasks cola: no such task in SuperGLUE; known: boolq, cb"),
        (["--suite", "swag", "--task-dir", "GLUE"], "no task folder of SWAG in it; want files such as"),
        (["--suite", "swag", "--predict-test"], "--predict-test writes what GLUE's server takes"),
        (["--max-train-rows", "0"], "evaluation.max_train_rows: got 0"),
        (["--metric", "f1"], "--metric goes with --task-files"),
        (["--text-columns", "a"], "--text-columns goes with --task-files, or with --suite mlm --data"),
        (["--task-files", "a.tsv", "b.tsv", "--suite", "glue"], "--task-files is a task of its own"),
        (["--suite", "mlm", "--tasks", "cola"], "--suite mlm has no tasks"),
        (["--task-dir", "nowhere"], "--task-dir nowhere: no such folder"),
        (["--task-dir", "GLUE", "--tasks", "wnli", "rte"], "has none of the tasks asked for: wnli, rte"),
        (["--task-dir", "GLUE", "--run", "gone"], "no run named 'gone'"),
        (["--task-dir", "GLUE", "--seeds", "0"], "evaluation.seeds"),
        (["--task-dir", "GLUE", "--set", "evaluation.epoch=3"], "no such key (did you mean"),
        (["--task-dir", "GLUE", "--set", "architecture.layers=3"], "the run is as it was trained"),
        (["--task-dir", "GLUE", "--set", "evaluation.max_length=512"], "evaluation.max_length=128"),
        (["--task-dir", "GLUE", "--device", "warp9"], "--device warp9"),
        (["--task-dir", "GLUE", "--recipe", "bert-tiny"], "--recipe and --data go with --run none"),
        (["--task-dir", "GLUE", "--run", "none", "--recipe", "bert-tinny"], "did you mean 'bert-tiny'"),
        (["--suite", "mlm", "--run", "none"], "--run none goes with fine-tuning"),
    ],
)
def test_bad_requests_are_one_line_and_status_2(runs, toy_glue, arguments, complaint, capsys):
    arguments = [str(toy_glue) if argument == "GLUE" else argument for argument in arguments]
    assert call(runs, *arguments) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_missing_cuda_device(runs, toy_glue, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    assert call(runs, "--task-dir", toy_glue, "--device", "cuda") == 2
    assert "--device cuda: not available here" in capsys.readouterr().err


def test_no_network_fails_at_once_and_says_what_to_do(runs, monkeypatch, capsys):
    nowhere = dataclasses.replace(GLUE, repository="nyu-mll/no-such-data-set-anywhere")
    monkeypatch.setattr(Hub, "_reachable", False)
    monkeypatch.setitem(evaluate.SUITES, "glue", nowhere)
    assert call(runs, "--tasks", "cola") == 1
    assert "no network: give --task-dir" in capsys.readouterr().err
