"""A task of one's own from two files, and predictions by the model that it leaves."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cramming_train import evaluate, predict
from cramming_train.errors import UsageError
from cramming_train.evaluation import runner
from cramming_train.evaluation.own_task import own_suite, task_name
from cramming_train.evaluation.rows import read_rows
from cramming_train.evaluation.saved import load_classifier
from tests.evaluation.conftest import WORDS

SPEED = ["--seeds", "2", "--epochs", "3"]


@pytest.fixture
def runs(toy_runs, tmp_path):
    return shutil.copytree(toy_runs, tmp_path / "runs")


def write(path: Path, columns: dict[str, list]) -> Path:
    """Columns as .tsv, .csv or .jsonl, plain or .gz, by the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if ".jsonl" in path.name:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        mark = "\t" if ".tsv" in path.name else ","
        text = "\n".join(mark.join(map(str, line)) for line in (columns, *(row.values() for row in rows))) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def moods(rng, rows, labels=("glad", "sad")):
    """Two toy words; the first one is of the first half of the words where the first class is right."""
    texts = [f"{rng.choice(WORDS[:8])} {rng.choice(WORDS)}" for _ in range(rows)]
    return {"note": texts, "mood": [labels[text.split()[0] in WORDS[:4]] for text in texts]}


def fine_tune(runs, train, valid, *more):
    return evaluate.main(["--out", str(runs), "--task-files", str(train), str(valid), *SPEED, *more])


def call_predict(folder, file, *more):
    return predict.main(["--model", str(folder), str(file), *map(str, more)])


def test_classification_end_to_end(runs, tmp_path, capsys):
    """It learns, the saved model labels new rows as well as it was judged, in either form of output."""
    rng = np.random.default_rng(0)
    train = write(tmp_path / "mood" / "train.tsv", moods(rng, 320))
    valid = write(tmp_path / "mood" / "held_out.csv.gz", moods(rng, 100))
    more = ["--text-columns", "note", "--label-column", "mood", "--epochs", "8", "--seeds", "1"]
    assert fine_tune(runs, train, valid, *more) == 0
    folder = runs / "toy" / "evaluation" / "mood"
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.json", "model.safetensors", "mood.json", "mood.jsonl", "tokenizer.json"
    ]  # fmt: skip
    entry = json.loads((folder / "mood.json").read_text())["tasks"]["mood"]
    assert entry["metric"] == "accuracy" and entry["max"] > 0.9 and entry["complete"]
    printed = capsys.readouterr().out
    assert "task mood: 2 classes, acc, from note" in printed and "cramming_train.predict --model" in printed

    new = moods(rng, 90)
    file = write(tmp_path / "new.jsonl", {"note": new["note"]})
    assert call_predict(folder, file, "--out", tmp_path / "out.jsonl") == 0
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [answer["index"] for answer in answers] == list(range(90))
    assert np.mean([a["label"] == b for a, b in zip(answers, new["mood"], strict=True)]) > 0.9
    for answer in answers:
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert max(answer["probabilities"], key=answer["probabilities"].get) == answer["label"]
    assert call_predict(folder, file, "--out", tmp_path / "out.tsv") == 0
    header, *lines = (tmp_path / "out.tsv").read_text().splitlines()
    assert header == "index\tlabel\tp(glad)\tp(sad)"
    assert [line.split("\t")[1] for line in lines] == [answer["label"] for answer in answers]
    capsys.readouterr()
    assert call_predict(folder, file) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == answers


def test_the_saved_model_is_the_fine_tuned_one(runs, tmp_path):
    """Its accuracy on the validation file is, to the last row, the score of the best seed."""
    rng = np.random.default_rng(1)
    train, valid = (write(tmp_path / f"{n}.tsv", moods(rng, rows, (7, 3))) for n, rows in (("few", 40), ("v", 61)))
    assert fine_tune(runs, train, valid, "--text-columns", "note", "--label-column", "mood", "--epochs", "2") == 0
    folder = runs / "toy" / "evaluation" / "few"
    entry, saved = (json.loads((folder / name).read_text()) for name in ("few.json", "model.json"))
    assert saved["score"] == entry["tasks"]["few"]["max"] == entry["tasks"]["few"]["values"][saved["seed"]]
    assert saved["task"]["labels"] == ["3", "7"]
    assert call_predict(folder, valid, "--out", tmp_path / "out.jsonl") == 0
    answers = [json.loads(line)["label"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    labels = [row["mood"] for _, row in read_rows(valid)]
    assert np.mean([a == b for a, b in zip(answers, labels, strict=True)]) == pytest.approx(saved["score"])


def test_regression_end_to_end(runs, tmp_path):
    """Values far from 0 and 1 are learned, and come back in their own unit."""
    rng = np.random.default_rng(2)

    def prices(rows):
        texts = rng.choice(WORDS[:10], rows).tolist()
        values = [2000.5 + 300 * (text in WORDS[:5]) for text in texts]
        return {"a": texts, "b": rng.choice(WORDS, rows).tolist(), "label": values}

    train, valid = write(tmp_path / "prices.jsonl.gz", prices(128)), write(tmp_path / "valid.jsonl", prices(100))
    more = ["--text-columns", "a,b", "--epochs", "10", "--seeds", "1"]
    assert fine_tune(runs, train, valid, *more) == 0
    folder = runs / "toy" / "evaluation" / "prices"
    assert json.loads((folder / "prices.json").read_text())["tasks"]["prices"]["metric"] == "pearson"
    new = prices(80)
    file = write(tmp_path / "new.csv", {"a": new["a"], "b": new["b"]})
    assert call_predict(folder, file, "--out", tmp_path / "out.jsonl") == 0
    values = [json.loads(line)["value"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert np.corrcoef(values, new["label"])[0, 1] > 0.8
    assert abs(np.mean(values) - np.mean(new["label"])) < 60
    assert call_predict(folder, file, "--out", tmp_path / "out.tsv") == 0
    assert (tmp_path / "out.tsv").read_text().splitlines()[0] == "index\tvalue"


def test_words_that_no_example_has_keep_their_pretrained_embedding(runs, tmp_path):
    texts = {"text": [f"{word} {WORDS[9]}" for word in WORDS[:8]] * 4, "label": ["a", "b"] * 16}
    file = write(tmp_path / "part.tsv", texts)
    assert fine_tune(runs, file, file, "--epochs", "1", "--seeds", "1") == 0
    saved = load_classifier(runs / "toy" / "evaluation" / "part")
    tuned = saved.classifier.encoder.embedding.tokens.weight
    pretrained = evaluate.Run(runs / "toy").load_model().encoder.embedding.tokens.weight
    same = (tuned == pretrained).all(dim=1)
    numbers = {word: saved.text.tokenizer.token_to_id(word) for word in WORDS}
    assert not same[[numbers[word] for word in (*WORDS[:8], WORDS[9])]].any()
    assert same[[numbers[word] for word in WORDS[10:]]].all()


def test_another_metric_is_another_score(runs, tmp_path):
    rng = np.random.default_rng(6)
    file = write(tmp_path / "mood.tsv", moods(rng, 40))
    command = ["--text-columns", "note", "--label-column", "mood", "--epochs", "1", "--seeds", "1"]
    entries = []
    for metric in ("accuracy", "f1_macro"):
        assert fine_tune(runs, file, file, *command, "--metric", metric) == 0
        content = json.loads((runs / "toy" / "evaluation" / "mood" / "mood.json").read_text())
        entries.append(content["tasks"]["mood"])
    assert [entry["metric"] for entry in entries] == ["accuracy", "f1_macro"]
    assert entries[0]["median"] != entries[1]["median"]


def test_it_goes_on_and_keeps_the_best(runs, tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    file = write(tmp_path / "mood.tsv", moods(rng, 48))
    calls, original = [], runner.fine_tune
    monkeypatch.setattr(runner, "fine_tune", lambda *a, **o: calls.append(o["seed"]) or original(*a, **o))
    command = ["--text-columns", "note", "--label-column", "mood", "--epochs", "1", "--seeds"]
    assert fine_tune(runs, file, file, *command, "2") == 0
    assert fine_tune(runs, file, file, *command, "4") == 0
    assert calls == [0, 1, 2, 3]
    folder = runs / "toy" / "evaluation" / "mood"
    values = json.loads((folder / "mood.json").read_text())["tasks"]["mood"]["values"]
    assert json.loads((folder / "model.json").read_text())["score"] == max(values)
    (folder / "model.safetensors").unlink()
    assert fine_tune(runs, file, file, *command, "1") == 0
    assert calls == [0, 1, 2, 3, 0] and load_classifier(folder).task.labels == ("glad", "sad")


@pytest.mark.parametrize(
    ("labels", "metric", "expected"),
    [
        (["b", "a", "b"], None, (("a", "b"), "accuracy")),
        ([10, 9, 10], None, (("9", "10"), "accuracy")),
        (["1", "2", "1"], "f1", (("1", "2"), "f1")),
        ([True, False], None, (("False", "True"), "accuracy")),
        ([0.5, 1, 2], None, ((), "pearson")),
        (["0.5", "1", "2"], None, ((), "pearson")),
        ([1, 2, 3], "spearman", ((), "spearman")),
        (["0.5", "1.5", "0.5"], "f1_macro", (("0.5", "1.5"), "f1_macro")),
    ],
)
def test_labels_decide_the_kind_of_task(labels, metric, expected, tmp_path):
    file = write(tmp_path / "t.jsonl", {"text": ["x"] * len(labels), "label": labels})
    (task,) = own_suite(file, ["text"], "label", metric).tasks.values()
    assert (task.labels, task.metrics[0]) == expected and task.regression == (expected[0] == ())


@pytest.mark.parametrize(
    ("labels", "metric", "complaint"),
    [
        (["a", "a"], None, "holds one label alone, 'a'"),
        ([1.5, 1.5], None, "holds one value alone, 1.5"),
        (["a", ""], None, "line 2: column 'label' holds no label: ''"),
        (["a", None], None, "line 2: column 'label' holds no label: None"),
        ([f"text {n}" for n in range(30)], None, "30 different labels in 30 rows: is it the right column?"),
        (["a", "b"], "pearson", "label 'a' is not a number, which --metric pearson needs"),
        (["a", "b", "c"], "f1", "--metric f1: 3 classes; f1_macro or accuracy goes with more than two"),
        (["a", "b"], "record_f1", "no such metric for a task of your own; known: accuracy, f1, f1_macro"),
        (["a", "b"], "bleu", "--metric bleu: no such metric"),
    ],
)
def test_labels_that_make_no_task(labels, metric, complaint, tmp_path):
    file = write(tmp_path / "t.jsonl", {"text": ["x"] * len(labels), "label": labels})
    with pytest.raises(UsageError) as caught:
        own_suite(file, ["text"], "label", metric)
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_columns_and_labels_are_one_line(runs, tmp_path, capsys):
    train = write(tmp_path / "t.tsv", {"text": ["x y"] * 4, "label": ["a", "b"] * 2})
    valid = write(tmp_path / "v.tsv", {"text": ["x"], "label": ["c"]})
    for more, complaint in (
        ([], f"{valid}, line 2: label 'c', want one of: a, b"),
        (
            ["--label-column", "y"],
            f"{train}, line 2: no column 'y' (there: text, label); choose it with --label-column",
        ),
        (["--text-columns", "a,b"], f"{train}, line 2: no column 'a' (there: text, label)"),
        (["--text-columns", "a,"], "--text-columns a,: want names"),
    ):
        assert fine_tune(runs, train, valid, *more) == 2
        error = capsys.readouterr().err
        assert complaint in error and error.count("\n") == 1


def test_predict_refuses_what_is_not_there(runs, tmp_path, capsys):
    file = write(tmp_path / "t.tsv", {"text": ["x y"] * 4, "label": ["a", "b"] * 2})
    assert fine_tune(runs, file, file, "--epochs", "1", "--seeds", "1") == 0
    folder = runs / "toy" / "evaluation" / "t"
    capsys.readouterr()
    for status, complaint, arguments in (
        (2, f"--model {tmp_path}: no model.json in it", (tmp_path, file)),
        (2, "want a name that ends in .jsonl or .tsv", (folder, file, "--out", tmp_path / "x.txt")),
        (2, "no such file", (folder, tmp_path / "gone.tsv")),
        (2, "no column 'text'", (folder, write(tmp_path / "other.tsv", {"words": ["x"]}), "--out", tmp_path / "o.tsv")),
    ):
        assert call_predict(*arguments) == status
        assert complaint in capsys.readouterr().err
    assert not list(tmp_path.glob("o.tsv*")), "nothing half written"
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert call_predict(folder, file) == 1
    assert "damaged, its checksum differs; fine-tune again" in capsys.readouterr().err


def test_names():
    assert (
        task_name(Path("data/reviews.v2.tsv.gz")) == "reviews.v2" and task_name(Path("data/mood/train.csv")) == "mood"
    )


def test_long_files_are_predicted_in_pieces(runs, tmp_path, monkeypatch):
    rng = np.random.default_rng(5)
    file = write(tmp_path / "mood.tsv", moods(rng, 33))
    assert fine_tune(runs, file, file, "--text-columns", "note", "--label-column", "mood", "--epochs", "1") == 0
    saved = load_classifier(runs / "toy" / "evaluation" / "mood")
    whole = np.stack(list(predict.predictions(saved, file, torch.device("cpu"))))
    monkeypatch.setattr(predict, "CHUNK", 10)
    pieces = np.stack(list(predict.predictions(saved, file, torch.device("cpu"))))
    assert whole.shape == (33, 2)
    np.testing.assert_allclose(pieces, whole, rtol=1e-5)
