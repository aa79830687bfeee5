"""Predictions of test sets: the server's format, and from which fine-tuning they come."""

import gzip
import json
import shutil
import zipfile

import numpy as np
import pytest

from cramming_train import evaluate
from cramming_train.evaluation import runner
from cramming_train.evaluation.submission import median_seed, table
from cramming_train.evaluation.suites import GLUE

FILES = ["CoLA", "SST-2", "MRPC", "STS-B", "MNLI-m", "MNLI-mm", "QNLI", "QQP", "RTE", "WNLI", "AX"]


@pytest.fixture
def glue_with_tests(toy_glue, tmp_path):
    """Unlabelled rows made of validation text: without a label column, or with the hub's -1 in it."""
    folder = shutil.copytree(toy_glue, tmp_path / "glue")
    for task, split, target in (
        ("cola", "validation", "cola/test"),
        ("stsb", "validation", "stsb/test"),
        ("mnli", "validation_matched", "mnli/test_matched"),
        ("mnli", "validation_matched", "ax/test"),
    ):
        text = gzip.decompress((folder / task / f"{split}.tsv.gz").read_bytes()).decode().splitlines()
        rows = [line.rsplit("\t", 1)[0] for line in text]
        if task == "cola":
            rows = [rows[0] + "\tlabel", *(row + "\t-1" for row in rows[1:])]
        path = folder / f"{target}.tsv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def runs(toy_runs, tmp_path):
    return shutil.copytree(toy_runs, tmp_path / "runs")


def predict_test(runs, folder, *more):
    quick = ["--seeds", "3", "--epochs", "1", "--max-train-rows", "40"]
    return evaluate.main([*map(str, ["--out", runs, "--task-dir", folder, "--predict-test", *quick, *more])])


def cells(path):
    header, *lines = path.read_text().splitlines()
    assert header == "index\tprediction"
    rows = [line.split("\t") for line in lines]
    assert [row[0] for row in rows] == [str(number) for number in range(len(rows))]
    return [row[1] for row in rows]


def test_the_files_that_the_server_wants():
    assert sorted(split.key for task in GLUE.tasks.values() for split in task.tests) == sorted(FILES)


def test_files(runs, glue_with_tests, capsys):
    assert predict_test(runs, glue_with_tests) == 0
    folder = runs / "toy" / "evaluation" / "submission"
    assert sorted(path.stem for path in folder.iterdir()) == ["AX", "CoLA", "MNLI-m", "STS-B"]
    assert set(cells(folder / "CoLA.tsv")) <= {"0", "1"} and len(cells(folder / "CoLA.tsv")) == 120
    names = {"entailment", "neutral", "contradiction"}
    assert set(cells(folder / "MNLI-m.tsv")) <= names and len(cells(folder / "AX.tsv")) == 30
    assert cells(folder / "AX.tsv") == cells(folder / "MNLI-m.tsv"), "the same texts, the same classifier"
    scores = cells(folder / "STS-B.tsv")
    assert len(scores) == 120 and all(0 <= float(score) <= 5 and len(score) == 5 for score in scores)
    with zipfile.ZipFile(folder.with_suffix(".zip")) as packed:
        assert sorted(packed.namelist()) == ["AX.tsv", "CoLA.tsv", "MNLI-m.tsv", "STS-B.tsv"]
        assert packed.read("CoLA.tsv") == (folder / "CoLA.tsv").read_bytes()
    printed = capsys.readouterr().out
    assert "missing: mnli test_mismatched is not in" in printed and "missing: wnli train" in printed
    assert "CoLA.tsv: 120 rows, the server wants 1063" in printed
    assert "it wants SST-2.tsv, MRPC.tsv, QQP.tsv, MNLI-mm.tsv, QNLI.tsv, RTE.tsv, WNLI.tsv as well" in printed


def test_without_test_rows_there_is_nothing_to_predict(runs, toy_glue, capsys):
    assert predict_test(runs, toy_glue, "--tasks", "cola") == 2
    assert "has no test split of the tasks asked for" in capsys.readouterr().err


def test_predictions_are_the_median_seeds_and_agree_with_its_score(runs, glue_with_tests):
    """The test rows are the validation rows here, so the file's accuracy is that seed's score."""
    assert predict_test(runs, glue_with_tests, "--tasks", "mnli") == 0
    evaluation = runs / "toy" / "evaluation"
    text = gzip.decompress((glue_with_tests / "mnli" / "validation_matched.tsv.gz").read_bytes()).decode()
    labels = [int(line.rsplit("\t", 1)[1]) for line in text.splitlines()[1:]]
    names = GLUE.tasks["mnli"].labels
    predicted = [names.index(cell) for cell in cells(evaluation / "submission" / "MNLI-m.tsv")]
    entry = json.loads((evaluation / "glue.json").read_text())["tasks"]["mnli"]
    assert np.mean(np.array(predicted) == labels) == pytest.approx(entry["median"])


def test_what_was_scored_before_is_predicted_once(runs, glue_with_tests, monkeypatch):
    """Scores without predictions do not do; predictions that are there are not made again; changed rows are."""
    calls, original = [], runner.fine_tune
    monkeypatch.setattr(runner, "fine_tune", lambda *a, **o: calls.append(o["seed"]) or original(*a, **o))
    quick = ["--seeds", "3", "--epochs", "1", "--max-train-rows", "40"]
    assert evaluate.main([*map(str, ["--out", runs, "--task-dir", glue_with_tests, "--tasks", "mnli", *quick])]) == 0
    assert predict_test(runs, glue_with_tests, "--tasks", "mnli") == 0
    assert len(calls) == 6
    scores = (runs / "toy" / "evaluation" / "glue.json").read_text()
    assert predict_test(runs, glue_with_tests, "--tasks", "mnli") == 0
    assert len(calls) == 6 and (runs / "toy" / "evaluation" / "glue.json").read_text() == scores
    path = glue_with_tests / "ax" / "test.tsv"
    path.write_text("\n".join(path.read_text().splitlines()[:-3]) + "\n")
    assert predict_test(runs, glue_with_tests, "--tasks", "mnli") == 0
    assert len(calls) == 9 and not (runs / "toy" / "evaluation" / "submission" / "CoLA.tsv").exists()
    assert len(cells(runs / "toy" / "evaluation" / "submission" / "AX.tsv")) == 27


@pytest.mark.parametrize(
    ("task", "predictions", "expected"),
    [
        ("rte", [1, 0], ["not_entailment", "entailment"]),
        ("qnli", [0], ["entailment"]),
        ("qqp", [1, 0], ["1", "0"]),
        ("stsb", [-0.5, 2.34567, 7.0], ["0.000", "2.346", "5.000"]),
    ],
)
def test_labels_as_the_server_writes_them(task, predictions, expected):
    content = table(GLUE.tasks[task], np.array(predictions))
    assert content == "index\tprediction\n" + "".join(f"{n}\t{label}\n" for n, label in enumerate(expected))


@pytest.mark.parametrize(("values", "seed"), [([0.3], 0), ([0.3, 0.9, 0.5], 2), ([0.4, 0.1, 0.3, 0.2], 3)])
def test_median_seed(values, seed):
    assert median_seed(values) == seed
