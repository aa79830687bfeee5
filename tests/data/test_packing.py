"""Rows: every token of every document once, in order, with a <sep> after each, against the obvious packing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cramming_train.data.pipeline import RowPacker
from cramming_train.data.special_tokens import SEP_ID
from tests.data.helpers import Writer, all_rows, as_sorted, packed, prepare, small, tokens_of, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder source of three formats with a held-out file, and its documents."""
    path = tmp_path_factory.mktemp("packing") / "text"
    writer = Writer(51)
    training, held_out = writer.documents(301), writer.documents(37)
    training[17] = "tiny"
    training[18] = "   \n\n \n"  # nothing after cleaning: no document at all
    training[19] = training[19].upper() + "\n\n\n\n“Ünïcode”…\u2003\x00end"
    write(path / "a.jsonl", training[:120])
    write(path / "b.csv.gz", training[120:200])
    write(path / "c.parquet", training[200:])
    write(path / "validation.jsonl.zst", held_out)
    del training[18]
    return path, training, held_out


@pytest.mark.parametrize(("row_length", "vocab_size"), [(24, 320), (31, 513), (128, 1024), (9, 320)])
def test_round_trip(folder, row_length, vocab_size, tmp_path):
    path, training, held_out = folder
    prepared = prepare(path, small(row_length=row_length, vocab_size=vocab_size), tmp_path)
    for rows, documents in ((prepared.train, training), (prepared.validation, held_out)):
        expected = packed([tokens_of(prepared, text) for text in documents], row_length)
        assert np.array_equal(all_rows(rows), expected)
    assert prepared.metadata["tokens"] == all_rows(prepared.train).size
    assert prepared.metadata["documents"] == len(training) + len(held_out)


@pytest.mark.parametrize("order", ["sentence-length-curriculum", "unigram", "word-length", "random"])
def test_every_order_has_the_same_rows(folder, order, tmp_path):
    path, training, _ = folder
    prepared = prepare(path, small(order=order), tmp_path)
    expected = packed([tokens_of(prepared, text) for text in training], 24)
    assert as_sorted(all_rows(prepared.train)) == as_sorted(expected)
    assert not np.array_equal(all_rows(prepared.train), expected)


def test_separators_are_the_document_ends(folder, tmp_path):
    path, training, held_out = folder
    prepared = prepare(path, small(), tmp_path)
    stream = all_rows(prepared.train).reshape(-1)
    ends = np.flatnonzero(stream == SEP_ID)
    lengths = np.diff([-1, *ends])
    expected = [len(tokens_of(prepared, text)) for text in training]
    assert lengths.tolist() == expected[: len(lengths)]
    assert len(expected) - len(lengths) <= 1, "at most the last one is cut by the dropped rest"
    assert prepared.metadata["tokens_per_document"] == pytest.approx(len(stream) / len(training))


def test_small_batches_and_segments_change_nothing(folder, tmp_path, monkeypatch):
    """The pieces in which work goes to the processes are no part of the result."""
    from cramming_train.data import pipeline

    path, _, _ = folder
    whole = prepare(path, small(deduplicate="paragraph"), tmp_path)
    monkeypatch.setattr(pipeline, "BATCH_CHARACTERS", 700)
    spool = pipeline.DocumentSpool
    monkeypatch.setattr(pipeline, "DocumentSpool", lambda path: spool(path, segment_bytes=1234))
    pieces = prepare(path, small(deduplicate="paragraph"), tmp_path / "other")
    assert whole.metadata["sha256"] == pieces.metadata["sha256"]


def test_unigram_loss(folder, tmp_path):
    """Against its definition, in plain arithmetic."""
    path, _, _ = folder
    prepared = prepare(path, small(), tmp_path)
    counts = np.bincount(all_rows(prepared.train).reshape(-1), minlength=320).astype(float) + 1
    expected = -np.log(counts / counts.sum())[all_rows(prepared.validation)].mean()
    assert prepared.metadata["unigram_loss"] == pytest.approx(expected, rel=1e-12)
    assert 3 < expected < np.log(320)


@pytest.mark.parametrize("order", ["none", "random", "sentence-length-curriculum"])
def test_cap_keeps_the_first_rows_of_the_order(folder, order, tmp_path):
    path, _, _ = folder
    whole = prepare(path, small(order=order), tmp_path)
    capped = prepare(path, small(order=order, max_rows=77), tmp_path)
    assert np.array_equal(all_rows(capped.train), whole.train.read(0, 77))
    assert capped.metadata["rows"] == 77
    assert np.array_equal(all_rows(capped.validation), all_rows(whole.validation)), "the held-out rows are not capped"


def test_figures_of_capped_data_are_of_the_rows_that_are_there(folder, tmp_path):
    path, _, _ = folder
    capped = prepare(path, small(order="random", max_rows=77), tmp_path)
    assert capped.metadata["tokens"] == 77 * 24
    counts = np.bincount(all_rows(capped.train).reshape(-1), minlength=320).astype(float) + 1
    expected = -np.log(counts / counts.sum())[all_rows(capped.validation)].mean()
    assert capped.metadata["unigram_loss"] == pytest.approx(expected, rel=1e-12)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 70), max_size=40), row_length=st.integers(8, 40), seed=st.integers(0, 9),
    flush_every=st.integers(1, 9),
)  # fmt: skip
def test_packer(tmp_path_factory, lengths, row_length, seed, flush_every):
    random = np.random.default_rng(seed)
    documents = [random.integers(7, 320, size=n).astype(np.uint16) for n in lengths]
    path = tmp_path_factory.mktemp("packer") / "rows"
    packer = RowPacker(path, small(row_length=row_length), np.dtype(np.uint16))
    for number, ids in enumerate(documents, start=1):
        packer.add(ids)
        if number % flush_every == 0:
            packer._flush()
    packer.close()
    rows = np.fromfile(path, dtype=np.uint16).reshape(-1, row_length)
    assert np.array_equal(rows, packed([ids.tolist() for ids in documents], row_length))
    assert packer.tokens == rows.size and packer.documents == len(documents)
    assert np.array_equal(packer.counts, np.bincount(rows.reshape(-1), minlength=320))
