"""Prepared data without some of its rows: a prepared folder of its own, with a fingerprint of its own."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cramming_train.data.store import (
    TOKENIZER_FILE,
    PreparedData,
    open_prepared,
    row_dtype,
    write_metadata,
    write_rows,
)
from cramming_train.errors import UsageError

BLOCK_ROWS = 4096


def write_without(prepared: PreparedData, left_out: np.ndarray, target: Path, why: str) -> PreparedData:
    """Write all but the marked training rows, in their order, with the same held-out rows and tokenizer.

    Args:
        left_out: bool [rows].
        target: the new folder; it appears when it is whole.
        why: what the rows left out are, for the notice that the data carries from then on.

    Raises:
        UsageError: no row is left.
    """
    if left_out.all():
        raise UsageError("no row is left without those")
    dtype, counts = row_dtype(prepared.vocab_size), np.zeros(prepared.vocab_size, dtype=np.int64)

    def kept() -> Iterator[np.ndarray]:
        for first in range(0, len(left_out), BLOCK_ROWS):
            keep = ~left_out[first : first + BLOCK_ROWS]
            block = prepared.train.read(first, first + len(keep))[keep]
            np.add(counts, np.bincount(block.reshape(-1), minlength=len(counts)), out=counts)
            yield block

    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=target.parent))
    result = scratch / "result"
    try:
        result.mkdir()
        rows, digest = write_rows(result / "train", kept(), prepared.row_length, dtype, None, "train")
        shutil.copytree(prepared.path / "validation", result / "validation")
        shutil.copy(prepared.path / TOKENIZER_FILE, result / TOKENIZER_FILE)
        key = hashlib.sha256(f"{prepared.metadata['key']} {digest}".encode()).hexdigest()[:16]
        before = {k: v for k, v in prepared.metadata.items() if k not in ("file_bytes", "file_sha256", "format")}
        write_metadata(
            result,
            {
                **before,
                "key": key,
                "fingerprint": key,
                "rows": rows,
                "tokens": rows * prepared.row_length,
                "unigram_loss": _unigram_loss(counts, prepared),
                "sha256": {**before["sha256"], "train": digest},
                "notices": [*before["notices"], f"{int(left_out.sum()):,} of {len(left_out):,} rows {why} left out"],
            },
        )
        result.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return open_prepared(target)


def _unigram_loss(counts: np.ndarray, prepared: PreparedData) -> float:
    """Of the held-out rows, in nats a token, as in the pipeline."""
    smoothed = counts + 1.0
    surprise = -np.log(smoothed / smoothed.sum())
    rows = prepared.validation
    sums = [surprise[rows.read(i, min(i + BLOCK_ROWS, len(rows)))].sum() for i in range(0, len(rows), BLOCK_ROWS)]
    return float(sum(sums)) / (len(rows) * prepared.row_length)
