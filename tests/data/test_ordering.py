"""Orderings: each key against its definition, and the sort on disk against a sort in memory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cramming_train.data import ordering
from cramming_train.data.ordering import make_key, ordered_blocks, read_blocks
from tests.data.helpers import Writer, all_rows, prepare, small, write

ORDERS = ("sentence-length-curriculum", "unigram", "word-length", "random")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ordering") / "text"
    write(folder / "a.jsonl", Writer(91).documents(250))
    write(folder / "validation.jsonl", Writer(92).documents(20))
    return folder


def defined_key(order: str, prepared) -> np.ndarray:
    """The key of every row in plain Python, from the tokens as text."""
    rows = all_rows(prepared.train)
    names = {index: token for token, index in prepared.tokenizer.get_vocab().items()}
    words = [[names[token] for token in row] for row in rows.tolist()]
    if order == "sentence-length-curriculum":
        return np.array([-row.count(".") for row in words])
    if order == "unigram":
        share = np.bincount(rows.reshape(-1), minlength=len(names)) / rows.size
        return np.array([-sum(np.log(share[token]) for token in row) for row in rows.tolist()])
    plain = [[token for token in row if token != "<sep>"] for row in words]
    return np.array(
        [sum(len(t.removeprefix("##")) for t in row) / sum(not t.startswith("##") for t in row) for row in plain]
    )


@pytest.mark.parametrize("order", ORDERS[:3])
def test_rows_ascend_by_the_key(order, source, tmp_path):
    prepared = prepare(source, small(order=order), tmp_path)
    keys = defined_key(order, prepared)
    assert len(np.unique(keys)) > 3
    assert (np.diff(keys) >= -1e-9 * np.abs(keys[1:])).all()


def test_random_order_is_seeded(source, tmp_path):
    tokens = []
    for seed in (0, 0, 1):
        prepared = prepare(source, small(order="random", seed=seed), tmp_path / str(len(tokens)))
        tokens.append(prepared.tokenizer.decode_batch(all_rows(prepared.train).tolist()))
    assert tokens[0] == tokens[1]
    assert tokens[0] != tokens[2] and sorted(tokens[0]) == sorted(tokens[2])


def test_random_order_is_spread(tmp_path):
    """No part of the corpus stays together, also beyond one block."""
    key = make_key("random", None, np.zeros(1), seed=3)
    blocks = [np.zeros((16384, 1)), np.zeros((16384, 1)), np.zeros((17, 1))]
    keys = np.concatenate([key(block, first) for block, first in zip(blocks, (0, 16384, 32768), strict=True)])
    assert len(np.unique(keys)) == len(keys)
    places = np.argsort(np.argsort(keys))
    assert abs(np.corrcoef(places, np.arange(len(keys)))[0, 1]) < 0.02
    other = make_key("random", None, np.zeros(1), seed=4)(blocks[0], 0)
    assert not np.isin(other, keys).any()


KEYS = {
    "few values": lambda random, n: random.integers(0, 4, n).astype(float),
    "one value": lambda random, n: np.full(n, -2.5),
    "spread": lambda random, n: random.normal(size=n) * 1e3,
    "one far away": lambda random, n: np.where(np.arange(n) == n // 2, 1e12, random.random(n)),
    "neighbouring floats": lambda random, n: 1 + random.integers(0, 5, n) * np.finfo(float).eps,
    "descending": lambda random, n: -np.arange(n, dtype=float),
    "infinitesimal": lambda random, n: random.integers(0, 3, n) * 5e-324,
}


def sorted_on_disk(rows: np.ndarray, keys: np.ndarray, folder) -> np.ndarray:
    folder.mkdir(parents=True)
    rows.tofile(folder / "rows")
    blocks = ordered_blocks(
        folder / "rows", rows.shape[1], rows.dtype, lambda block, first: keys[first : first + len(block)], folder
    )
    return np.concatenate([np.array(block) for block in blocks])


@pytest.mark.parametrize("bucket_rows", [1, 3, 40, 10**6])
@pytest.mark.parametrize("kind", KEYS)
def test_sort_on_disk(kind, bucket_rows, tmp_path, monkeypatch):
    """Stable, whatever fits into memory."""
    random = np.random.default_rng(7)
    rows = random.integers(0, 60_000, (537, 11)).astype(np.uint16)
    keys = KEYS[kind](random, len(rows))
    monkeypatch.setattr(ordering, "BUCKET_BYTES", bucket_rows * 22)
    monkeypatch.setattr(ordering, "BLOCK_ROWS", 50)
    expected = rows[np.argsort(keys, kind="stable")]
    assert np.array_equal(sorted_on_disk(rows, keys, tmp_path / "sort"), expected)
    assert not [path for path in (tmp_path / "sort").iterdir() if path.is_dir()], "scratch is removed"


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    keys=st.lists(
        st.floats(-1e9, 1e9) | st.sampled_from([0.0, -0.0, 1.0, 1e-300]), min_size=1, max_size=90
    ),
    bucket_rows=st.integers(1, 30),
)  # fmt: skip
def test_sort_of_any_keys(tmp_path_factory, keys, bucket_rows):
    rows = np.arange(len(keys) * 3, dtype=np.int32).reshape(-1, 3)
    values = np.array(keys)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordering, "BUCKET_BYTES", bucket_rows * 12)
        patch.setattr(ordering, "BLOCK_ROWS", 7)
        result = sorted_on_disk(rows, values, tmp_path_factory.mktemp("sort") / "a")
    assert np.array_equal(result, rows[np.argsort(values, kind="stable")])


def test_sort_holds_no_more_than_a_bucket(tmp_path, monkeypatch):
    """Bins that are larger must be split again rather than read whole."""
    monkeypatch.setattr(ordering, "BUCKET_BYTES", 2200)
    monkeypatch.setattr(ordering, "BLOCK_ROWS", 50)
    random = np.random.default_rng(8)
    rows = random.integers(0, 999, (5000, 11)).astype(np.uint16)
    keys = random.random(5000) ** 40  # nearly all in the first bin
    rows.tofile(tmp_path / "rows")
    blocks = ordered_blocks(tmp_path / "rows", 11, rows.dtype, lambda b, first: keys[first : first + len(b)], tmp_path)
    assert max(len(block) for block in blocks) <= 100


def test_read_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(ordering, "BLOCK_ROWS", 10)
    rows = np.random.default_rng(9).integers(0, 9, (37, 5)).astype(np.int32)
    rows.tofile(tmp_path / "rows")
    blocks = list(read_blocks(tmp_path / "rows", 5, rows.dtype))
    assert [len(block) for block in blocks] == [10, 10, 10, 7]
    assert np.array_equal(np.concatenate(blocks), rows)


@pytest.mark.parametrize("order", ORDERS)
def test_pipeline_with_tiny_buckets(order, source, tmp_path, monkeypatch):
    whole = prepare(source, small(order=order), tmp_path)
    monkeypatch.setattr(ordering, "BUCKET_BYTES", 24 * 2 * 9)
    pieces = prepare(source, small(order=order), tmp_path / "other")
    assert np.array_equal(all_rows(pieces.train), all_rows(whole.train))
