"""The order in which rows are seen: a sort on disk, by a key a row, in bounded memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tokenizers

BLOCK_ROWS = 1 << 14
BUCKET_BYTES = 64 << 20
_BINS = 4096

Key = Callable[[np.ndarray, int], np.ndarray]  # (rows [n, S], number of the first) -> float64 [n]


def read_blocks(path: Path, row_length: int, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The rows of a raw file, block by block."""
    with open(path, "rb") as file:
        while True:
            block = np.fromfile(file, dtype=dtype, count=BLOCK_ROWS * row_length)
            if not len(block):
                return
            yield block.reshape(-1, row_length)


def ordered_blocks(
    path: Path, row_length: int, dtype: np.dtype, key: Key | None, scratch: Path
) -> Iterator[np.ndarray]:
    """The rows of a raw file by ascending key, equal keys in their present order; None keeps the present order."""
    if key is None:
        yield from read_blocks(path, row_length, dtype)
        return
    keys = scratch / "keys"
    first = 0
    with open(keys, "wb") as file:
        for block in read_blocks(path, row_length, dtype):
            key(block, first).astype(np.float64).tofile(file)
            first += len(block)
    yield from _sorted(path, keys, row_length, dtype, scratch / "sort")


def _sorted(path: Path, keys: Path, row_length: int, dtype: np.dtype, scratch: Path) -> Iterator[np.ndarray]:
    """Distribute rows into bins of neighbouring keys until a bin fits into memory or has one key only."""
    low, high, _ = _range(keys)
    if low == high:
        yield from read_blocks(path, row_length, dtype)
        return
    if path.stat().st_size <= BUCKET_BYTES:
        rows = np.fromfile(path, dtype=dtype).reshape(-1, row_length)
        yield rows[np.argsort(np.fromfile(keys, dtype=np.float64), kind="stable")]
        return
    scratch.mkdir(parents=True)
    used = _distribute(path, keys, row_length, dtype, scratch, low, high)
    for index in used:
        yield from _sorted(
            scratch / f"{index}.rows", scratch / f"{index}.keys", row_length, dtype, scratch / str(index)
        )
    shutil.rmtree(scratch)


def _range(keys: Path) -> tuple[float, float, int]:
    low, high, count = np.inf, -np.inf, 0
    for block in read_blocks(keys, 1, np.dtype(np.float64)):
        low, high, count = min(low, block.min()), max(high, block.max()), count + len(block)
    return float(low), float(high), count


def _distribute(path, keys, row_length, dtype, scratch: Path, low: float, high: float) -> list[int]:
    """Split into groups of bins, each of at most half a bucket where single bins allow it. Returns the groups used."""
    histogram = np.zeros(_BINS, dtype=np.int64)
    for block in read_blocks(keys, 1, np.dtype(np.float64)):
        histogram += np.bincount(_bin(block[:, 0], low, high), minlength=_BINS)
    group_rows = max(BUCKET_BYTES // 2 // (row_length * dtype.itemsize), 1)
    group_of_bin, group, filled = np.empty(_BINS, dtype=np.int64), 0, 0
    for index, count in enumerate(histogram):
        if filled and filled + count > group_rows:
            group, filled = group + 1, 0
        group_of_bin[index] = group
        filled += count
    key_blocks = read_blocks(keys, 1, np.dtype(np.float64))
    for rows, row_keys in zip(read_blocks(path, row_length, dtype), key_blocks, strict=True):
        groups = group_of_bin[_bin(row_keys[:, 0], low, high)]
        for index in np.unique(groups):
            chosen = groups == index
            for suffix, values in (("rows", rows), ("keys", row_keys)):
                with open(scratch / f"{index}.{suffix}", "ab") as file:
                    values[chosen].tofile(file)
    return sorted(int(path.stem) for path in scratch.glob("*.rows"))


def _bin(keys: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.minimum(((keys - low) / (high - low) * _BINS).astype(np.int64), _BINS - 1)


def make_key(order: str, tokenizer: tokenizers.Tokenizer, counts: np.ndarray, seed: int) -> Key | None:
    """The key of an ordering; rows are sorted by it in ascending order.

    * ``sentence-length-curriculum``: most "." tokens first: short sentences, as in the original;
    * ``unigram``: most probable under the corpus's unigram distribution first;
    * ``word-length``: fewest characters a word first;
    * ``random``: a seeded permutation;
    * ``none``: the order of the corpus.
    """
    if order == "none":
        return None
    if order == "random":
        return lambda rows, first: _uniform(len(rows), first, seed)
    if order == "sentence-length-curriculum":
        period = tokenizer.token_to_id(".")
        return lambda rows, first: -(rows == (-1 if period is None else period)).sum(axis=1, dtype=np.int64)
    if order == "unigram":
        surprise = -np.log(np.maximum(counts, 1) / max(counts.sum(), 1))
        return lambda rows, first: surprise[rows].sum(axis=1)
    characters, is_start = _word_shapes(tokenizer)
    return lambda rows, first: characters[rows].sum(axis=1) / np.maximum(is_start[rows].sum(axis=1), 1)


def _uniform(count: int, first: int, seed: int) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(key=[seed, first]))
    return generator.random(count)


def _word_shapes(tokenizer: tokenizers.Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Characters of every token, and whether it begins a word; special tokens count as nothing."""
    size = tokenizer.get_vocab_size()
    characters, is_start = np.zeros(size), np.zeros(size)
    for token, index in tokenizer.get_vocab().items():
        if not (token.startswith("<") and token.endswith(">") and len(token) > 2):
            characters[index] = len(token.removeprefix("##"))
            is_start[index] = not token.startswith("##")
    return characters, is_start
