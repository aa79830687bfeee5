"""WordPiece: the asked size to the token, special ids in the listed order, the same everywhere and every time."""

import os
import subprocess
import sys

import numpy as np
import pytest

from cramming_train.data.special_tokens import (
    BOS_ID,
    CLS_ID,
    EOS_ID,
    MASK_ID,
    PAD_ID,
    SEP_ID,
    SPECIAL_TOKENS,
    UNK_ID,
)  # fmt: skip
from cramming_train.data.tokenizer import load_tokenizer, train_tokenizer
from cramming_train.errors import RunError, UsageError
from tests.data.helpers import Writer, all_rows, prepare, small, write


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [text.lower() for text in Writer(41, words=3000).documents(400)]


@pytest.mark.parametrize("size", [101, 256, 777, 2048])
def test_exactly_the_asked_vocabulary(size, texts):
    tokenizer = train_tokenizer(texts, size, "ascii")
    assert tokenizer.get_vocab_size() == size
    assert sorted(tokenizer.get_vocab().values()) == list(range(size))


def test_special_ids(texts):
    tokenizer = train_tokenizer(texts, 256, "ascii")
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(7))
    assert SPECIAL_TOKENS == ("<pad>", "<s>", "</s>", "<unk>", "<cls>", "<sep>", "<mask>")
    assert (PAD_ID, BOS_ID, EOS_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID) == (0, 1, 2, 3, 4, 5, 6)


def test_written_special_tokens_are_text(texts, tmp_path):
    """A page about BERT must not place a <mask> into its row."""
    tokenizer = train_tokenizer([*texts, "< > / sep mask cls pad unk s"], 300, "ascii")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for each in (tokenizer, load_tokenizer(tmp_path / "tokenizer.json")):
        ids = each.encode(" ".join(SPECIAL_TOKENS), add_special_tokens=False).ids
        assert len(ids) > 14 and min(ids) >= 7


def test_prepared_rows_hold_no_written_special_tokens(tmp_path):
    documents = [f"<sep> <mask> {text} <pad></s>" for text in Writer(42).documents(200)]
    prepared = prepare(write(tmp_path / "a.jsonl", documents), small(), tmp_path)
    rows = np.concatenate([all_rows(prepared.train), all_rows(prepared.validation)])
    assert set(np.unique(rows[rows < 7])) == {SEP_ID}
    assert abs((rows == SEP_ID).sum() - 200) <= 2, "one a document, less what the dropped ends held"


def test_unknown_characters_and_endless_words(texts):
    tokenizer = train_tokenizer(texts, 256, "unicode")
    assert tokenizer.encode("東", add_special_tokens=False).ids == [UNK_ID]
    assert tokenizer.encode("a" * 101, add_special_tokens=False).ids == [UNK_ID]
    assert UNK_ID not in tokenizer.encode("a" * 100, add_special_tokens=False).ids


def test_the_tokenizer_cleans_for_itself(texts):
    """What fine-tuning gives it is raw."""
    tokenizer = train_tokenizer(texts, 512, "ascii")
    raw = [text.upper().replace(" ", "\u2003\n") for text in texts[:30]]
    for dirty, clean in zip(raw, texts, strict=False):
        assert tokenizer.encode(dirty).ids == tokenizer.encode(clean).ids
        assert tokenizer.decode(tokenizer.encode(dirty).ids).replace(" ", "") == "".join(clean.split())


def test_too_few_pieces(texts):
    with pytest.raises(UsageError, match="too small for a vocabulary of 50000: it yields"):
        train_tokenizer(texts, 50_000, "ascii")


@pytest.mark.parametrize("content", [b"", b"{}", b'{"model": 3}', b"\xff\xfe"])
def test_damaged_file(content, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(RunError, match="tokenizer.json: not a readable tokenizer"):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(RunError, match="nowhere.json: not a readable tokenizer"):
        load_tokenizer(tmp_path / "nowhere.json")


def test_sample_leaves_out_held_out_text(tmp_path):
    """The held-out file has words, and letters, of its own; none may reach the vocabulary."""
    write(tmp_path / "text" / "train.jsonl", Writer(43).documents(150))
    write(tmp_path / "text" / "validation.jsonl", ["secret 0123456789 " + text for text in Writer(44).documents(40)])
    prepared = prepare(tmp_path / "text", small(), tmp_path)
    assert not any(digit in token for token in prepared.tokenizer.get_vocab() for digit in "0123456789")


def test_sample_of_a_large_corpus(tmp_path, monkeypatch):
    """tokenizer_characters bounds what training sees, and the sample is spread over the corpus."""
    from cramming_train.data import pipeline

    seen = []
    train = pipeline.train_tokenizer

    def watched(texts, size, clean):
        seen.extend(texts)
        return train(seen, size, clean)

    monkeypatch.setattr(pipeline, "train_tokenizer", watched)
    documents = [f"number{i} {text}" for i, text in enumerate(Writer(45).documents(900))]
    characters = sum(map(len, documents))
    recipe = small(tokenizer_characters=characters // 5)
    prepare(write(tmp_path / "a.jsonl", documents), recipe, tmp_path)
    assert 0.12 * characters < sum(map(len, seen)) < 0.28 * characters
    numbers = [int(text.split()[0].removeprefix("number")) for text in seen]
    assert numbers == sorted(numbers) and numbers[0] < 90 and numbers[-1] > 810


# Letters of equal frequency, more of them than the alphabet may hold: every tie must be decided the same way each time
_TIES = """
import hashlib, random, sys
from cramming_train.data.tokenizer import train_tokenizer
chosen = random.Random(7)
letters = [chr(c) for c in range(0x4e00, 0x4e00 + int(sys.argv[1]))]
texts = []
for _ in range(6):
    chosen.shuffle(letters)
    texts += [" ".join("".join(letters[i:i + 3]) for i in range(start, start + 60, 3))
              for start in range(0, len(letters) - 60, 60)]
tokenizer = train_tokenizer(texts, int(sys.argv[2]), "unicode")
print(hashlib.sha256(tokenizer.to_str().encode()).hexdigest())
"""


@pytest.mark.parametrize(("letters", "size"), [(600, 1800), (1500, 2600)])
def test_ties_are_decided_the_same_way_in_every_process(letters, size):
    digests = set()
    for seed in ("0", "1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", _TIES, str(letters), str(size)], capture_output=True, text=True, timeout=60,
            env={**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": str(int(seed) + 1)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout.strip())
    assert len(digests) == 1
