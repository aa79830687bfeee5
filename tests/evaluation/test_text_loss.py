"""evaluate --suite mlm --data: the held-out loss of any text, recomputed here from its description."""

import gzip
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cramming_train import evaluate
from cramming_train.data import prepare_data
from cramming_train.data.special_tokens import SEP_ID
from cramming_train.evaluation.text_loss import TextRows, text_rows
from cramming_train.recipes import Data
from cramming_train.runs import Run
from cramming_train.validation import held_out_loss
from tests.evaluation.conftest import sentences


@pytest.fixture
def runs(toy_runs, tmp_path):
    return shutil.copytree(toy_runs, tmp_path / "runs")


@pytest.fixture
def documents(tmp_path):
    """Two files, with what cleaning changes in them; and their documents, cleaned by hand."""
    texts = sentences(np.random.default_rng(0), 90)
    (tmp_path / "a.txt").write_text("  " + texts[0].upper() + " \n\n\n" + "\t".join(texts[1:30]) + "\r\n")
    rows = [{"body": text} for text in texts[30:]] + [{"body": " \n\n "}]
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return [texts[0] + "\n" + " ".join(texts[1:30]), *texts[30:]]


def rows_by_hand(tokenizer, documents, length):
    """Ids one document after the other, <sep> after each, cut into rows."""
    stream = [i for text in documents for i in (*tokenizer.encode(text, add_special_tokens=False).ids, SEP_ID)]
    rows = np.array(stream[: len(stream) // length * length]).reshape(-1, length)
    return TextRows(rows, len(documents), sum(map(len, documents)), len(stream))


def test_loss_and_bits(runs, documents, tmp_path, tokenizer, capsys):
    files = [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl.gz")]
    command = ["--out", str(runs), "--suite", "mlm", "--data", *files, "--text-columns", "body"]
    assert evaluate.main(command) == 0
    content = json.loads((runs / "toy" / "evaluation" / "mlm-text.json").read_text())
    rows = rows_by_hand(tokenizer, documents, 128)
    expected = held_out_loss(Run(runs / "toy").load_model(), rows, device=torch.device("cpu"))
    assert len(rows) > 3 and content["files"] == files and content["documents"] == 61
    assert (content["loss"], content["tokens"], content["rows"]) == (
        pytest.approx(expected["loss"], rel=1e-6), expected["tokens"], len(rows),
    )  # fmt: skip
    bits = expected["loss"] / math.log(2) * rows.tokens / rows.characters
    assert content["bits_per_character"] == pytest.approx(bits, rel=1e-6)
    assert (content["characters"], content["text_tokens"]) == (rows.characters, rows.tokens)
    printed = capsys.readouterr().out
    assert f"{content['loss']:.4f} nats per token, {bits:.3f} bits per character" in printed


def test_rows_are_the_documents_in_order(runs, documents, tmp_path, tokenizer):
    made = text_rows(Run(runs / "toy"), [tmp_path / "a.txt", tmp_path / "b.jsonl.gz"], "body")
    expected = rows_by_hand(tokenizer, documents, 128)
    assert made.ids.tolist() == expected.ids.tolist() and made.row_length == 128
    assert made.take(np.array([2, 0])).tolist() == expected.ids[[2, 0]].tolist()


def test_rows_are_those_of_preparation(documentation_text, tmp_path):
    """A file gives the rows that preparation stores of it as held-out text."""
    lines = documentation_text.read_text().splitlines()[:60]
    for name, part in (("train.jsonl", lines[:40]), ("validation.jsonl", lines[40:])):
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / name).write_text("\n".join(part))
    recipe = Data("d", vocab_size=512, row_length=48, deduplicate="none", compression_threshold=None)
    prepared = prepare_data([str(tmp_path / "text")], recipe, out=tmp_path / "rows", progress=False, processes=1)
    run = SimpleNamespace(recipe=SimpleNamespace(data=recipe), tokenizer=lambda: prepared.tokenizer)
    made = text_rows(run, [tmp_path / "text" / "validation.jsonl"], "text")
    assert len(made) > 20 and made.ids.tolist() == prepared.validation.read(0, len(prepared.validation)).tolist()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("short.txt", "waa wab", "tokens of text, less than one row of 128; give more text"),
        ("empty.txt", "", "the file is empty"),
        ("a.pdf", "x", "unknown format"),
        ("a.jsonl", '{"text": "x"}', "no column 'body' (there: text)"),
        ("gone.txt", None, "no such file"),
    ],
)
def test_text_that_will_not_do(runs, tmp_path, name, content, complaint, capsys):
    if content is not None:
        (tmp_path / name).write_text(content)
    command = ["--out", str(runs), "--suite", "mlm", "--data", str(tmp_path / name), "--text-columns", "body"]
    assert evaluate.main(command) == 2
    error = capsys.readouterr().err
    assert complaint in error and name in error and error.count("\n") == 1


def test_one_column_of_text(runs, tmp_path, capsys):
    command = ["--out", str(runs), "--suite", "mlm", "--data", str(tmp_path / "a.txt"), "--text-columns", "a,b"]
    assert evaluate.main(command) == 2
    assert "with --suite mlm give one column" in capsys.readouterr().err
