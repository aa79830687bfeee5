"""The compressibility filter: a document stays iff tokens < threshold x characters, by our own tokenizer."""

import random

import numpy as np
import pytest

from tests.data.helpers import Writer, all_rows, packed, prepare, small, tokens_of, write


def noise(seed: int, count: int) -> list[str]:
    """What the filter is for: codes, tables, base64."""
    chosen = random.Random(seed)
    return ["".join(chosen.choices("abcdefghijklmnopqrstuvwxyz0123456789+/= ", k=400)) for _ in range(count)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    documents = Writer(61).documents(200) + noise(61, 30)
    random.Random(1).shuffle(documents)
    folder = tmp_path_factory.mktemp("filter") / "text"
    write(folder / "a.jsonl", documents)
    write(folder / "validation.jsonl", Writer(62).documents(20) + noise(62, 5))
    return folder, documents


def cleaned(text: str) -> str:
    return "\n".join(" ".join(part.lower().split()) for part in text.split("\n\n"))


@pytest.mark.parametrize("threshold", [0.3, 0.42, 0.6])
def test_kept_documents(source, threshold, tmp_path):
    folder, documents = source
    prepared = prepare(folder, small(vocab_size=512, compression_threshold=threshold), tmp_path)
    sizes = {text: len(tokens_of(prepared, text)) - 1 for text in documents}  # the closing <sep> is not counted
    kept = [text for text in documents if sizes[text] < threshold * len(cleaned(text))]
    assert 0 < len(kept) < len(documents)
    assert prepared.metadata["documents_filtered"] == len(documents) - len(kept)
    assert np.array_equal(all_rows(prepared.train), packed([tokens_of(prepared, t) for t in kept], 24))


@pytest.mark.parametrize("offset", [-0.5, 0, 0.5])
def test_threshold_beside_one_document(source, offset, tmp_path):
    """A document of n tokens, and a threshold of n tokens less a half, exactly, and more a half."""
    folder, documents = source
    prepared = prepare(folder, small(vocab_size=512), tmp_path)
    counts = {text: len(tokens_of(prepared, text)) - 1 for text in documents}
    middle = sorted(documents, key=lambda text: counts[text] / len(cleaned(text)))[100]
    threshold = (counts[middle] + offset) / len(cleaned(middle))
    expected = sum(counts[text] >= threshold * len(cleaned(text)) for text in documents)
    filtered = prepare(folder, small(vocab_size=512, compression_threshold=threshold), tmp_path)
    assert 0 < filtered.metadata["documents_filtered"] == expected < len(documents)


def test_noise_goes_and_text_stays(source, tmp_path):
    folder, documents = source
    prepared = prepare(folder, small(vocab_size=1024, compression_threshold=0.5), tmp_path)
    assert prepared.metadata["documents_filtered"] == 30
    assert prepare(folder, small(vocab_size=1024), tmp_path).metadata["documents_filtered"] == 0


def test_held_out_text_is_not_filtered(source, tmp_path):
    """The yardstick stays the same whatever the filter."""
    folder, _ = source
    strict = prepare(folder, small(vocab_size=512, compression_threshold=0.4), tmp_path)
    loose = prepare(folder, small(vocab_size=512), tmp_path)
    assert strict.metadata["documents_filtered"] > 0
    assert np.array_equal(all_rows(strict.validation), all_rows(loose.validation))
