"""A run in use: from Python by cramming_train.load, from a terminal by cramming_train.fill."""

import json
import subprocess
import sys

import pytest
import torch

import cramming_train
from cramming_train import fill
from cramming_train.errors import UsageError
from cramming_train.language_model import BATCH
from tests.exchange.helpers import TEXT, VOCAB, make_run, our_logits, small_tokenizer
from tests.model.cases import small
from tests.model.plain import PlainMaskedLM


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(
        tmp_path_factory.mktemp("runs") / "small", small("cram", document_attention=True), small_tokenizer()
    )


@pytest.fixture(scope="module")
def loaded(run):
    return cramming_train.load("small", runs_dir=run.path.parent)


def ids_of(run, text):
    return [4, *run.tokenizer().encode(text, add_special_tokens=False).ids, 5]


def test_embeddings_are_means_over_all_tokens(run, loaded):
    """Against plain PyTorch, one text at a time; more texts than one batch holds."""
    texts = ["", "the fox", "Paris — the CAPITAL", "a" * 40, "<sep> <mask>"]
    plain = PlainMaskedLM(run.load_model())
    plain.a = small("cram")  # a text is one sequence, whatever stands in it
    for text, vector in zip(texts, loaded.embed(texts), strict=True):
        ids = ids_of(run, text)
        ids = ids if len(ids) <= 16 else [*ids[:15], 5]
        expected = plain.hidden(torch.tensor([ids]))[0].mean(dim=0)
        torch.testing.assert_close(vector, expected.detach(), atol=2e-5, rtol=1e-4)
    many = loaded.embed(texts * (BATCH // len(texts) + 2))
    assert many.shape == (len(texts) * (BATCH // len(texts) + 2), 24) and many.dtype == torch.float32
    torch.testing.assert_close(many[-len(texts) :], loaded.embed(texts))
    assert loaded.embed([]).shape == (0, 24)
    with pytest.raises(TypeError, match="list of texts"):
        loaded.embed("the fox")


def test_logits(run, loaded):
    ids = ids_of(run, "the quick fox")
    expected = our_logits(run.load_model(), torch.tensor(ids))
    assert loaded.logits(ids).equal(expected) and loaded.logits(torch.tensor(ids, dtype=torch.int32)).equal(expected)
    assert loaded.encode("The  QUICK fox") == ids
    for bad, words in (
        ([], "shape"),
        ([[1, 2]], "shape"),
        ([1] * 17, "T from 1 to 16"),
        ([VOCAB], "vocabulary"),
        ([-1], "voc"),
    ):
        with pytest.raises(ValueError, match=words):
            loaded.logits(bad)


def test_fill(run, loaded):
    text = "The <mask> of the <mask>!"
    words = [run.tokenizer().encode(part, add_special_tokens=False).ids for part in ("the", "of the", "!")]
    ids = [4, *words[0], 6, *words[1], 6, *words[2], 5]
    probabilities = loaded.logits(ids).softmax(-1)
    predictions = loaded.fill(text, top=3)
    for position, best in zip((i for i, id_ in enumerate(ids) if id_ == 6), predictions, strict=True):
        expected = probabilities[position].topk(3)
        assert [p.id for p in best] == expected.indices.tolist()
        assert [p.probability for p in best] == pytest.approx(expected.values.tolist())
        assert [p.token for p in best] == [run.tokenizer().id_to_token(p.id) for p in best]
    assert len(loaded.fill("<mask>", top=10_000)[0]) == VOCAB
    for bad, words in (("no mask", "no <mask> in the text"), (f"{TEXT} <mask>", "want at most 16")):
        with pytest.raises(UsageError, match=words):
            loaded.fill(bad)


def test_the_command(run, loaded, capsys):
    place = ["--run", "small", "--out", str(run.path.parent)]
    assert fill.main([*place, "the <mask> fox", "--top", "2"]) == 0
    first, second = loaded.fill("the <mask> fox", top=2)[0]
    assert capsys.readouterr().out.splitlines() == [
        f"{first.probability:7.2%}  {first.token}", f"{second.probability:7.2%}  {second.token}",
    ]  # fmt: skip
    assert fill.main([*place, "<mask> <mask>", "--top", "1"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "<mask>" in line] == ["<mask> 1", "<mask> 2"]
    assert fill.main([*place, "<mask> and <mask>", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        [prediction._asdict() for prediction in best] for best in loaded.fill("<mask> and <mask>")
    ]
    for arguments, words in (
        (["fox"], "no <mask>"),
        (["<mask>", "--top", "0"], "--top 0"),
        (["<mask>", "--run", "x"], "no run"),
    ):
        assert fill.main([*place, *arguments]) == 2
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 1 and words in error[0]


def test_importing_the_package_is_light():
    heavy = (
        "import sys, cramming_train; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'tokenizers')))"
    )
    assert subprocess.run([sys.executable, "-c", heavy], timeout=60).returncode == 0
