"""Random text in the shape of English, files of every format, and an independent, straightforward preparation."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import zstandard

from cramming_train.data import PreparedData, prepare_data
from cramming_train.data.special_tokens import SEP_ID
from cramming_train.recipes import Data

SMALL = dict(
    name="small", vocab_size=320, row_length=24, validation_fraction=0.05, compression_threshold=None,
    deduplicate="none", order="none",
)  # fmt: skip
"""Every choice switched off, so that a test switches on the one it is about."""


def small(**changes) -> Data:
    """The small recipe with changes."""
    return Data(**{**SMALL, **changes})


class Writer:
    """Seeded pseudo-English: a lexicon of random words with Zipf's frequencies, sentences, paragraphs, documents."""

    def __init__(self, seed: int, words: int = 700):
        self.random = random.Random(seed)
        syllables = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "ing", "ou", "y")]
        sizes = self.random.choices((1, 2, 2, 3), k=words)
        self.lexicon = ["".join(self.random.choices(syllables, k=size)) for size in sizes]
        self._weights = list(itertools.accumulate(1 / (rank + 3) for rank in range(words)))

    def sentence(self) -> str:
        """3 to 18 words with a capital and an end."""
        words = self.random.choices(self.lexicon, cum_weights=self._weights, k=self.random.randint(3, 18))
        if len(words) > 8:
            words[4] += ","
        return " ".join(words).capitalize() + self.random.choice(".....?!")

    def paragraph(self) -> str:
        """1 to 6 sentences: some shorter than what deduplication looks at, most longer."""
        return " ".join(self.sentence() for _ in range(self.random.randint(1, 6)))

    def document(self) -> str:
        """1 to 7 paragraphs with blank lines between them."""
        return "\n\n".join(self.paragraph() for _ in range(self.random.randint(1, 7)))

    def documents(self, count: int) -> list[str]:
        """Documents, all different."""
        return [self.document() for _ in range(count)]


def encode(documents: Sequence[str], kind: str, column: str = "text") -> bytes:
    """The bytes of a file of one format; a .txt file separates documents by blank lines."""
    if kind == ".txt":
        return "\n\n".join(documents).encode()
    if kind == ".jsonl":
        return "".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(documents)).encode()
    if kind == ".csv":
        file = io.StringIO(newline="")
        rows = csv.writer(file)
        rows.writerow(["id", column])
        rows.writerows(enumerate(documents))
        return file.getvalue().encode()
    assert kind == ".parquet"
    buffer = io.BytesIO()
    table = pa.table({"id": list(range(len(documents))), column: list(documents)})
    pyarrow.parquet.write_table(table, buffer, row_group_size=7)
    return buffer.getvalue()


def pack(data: bytes, compression: str) -> bytes:
    """Compressed as the suffix says."""
    if compression == ".gz":
        return gzip.compress(data)
    return zstandard.ZstdCompressor().compress(data) if compression == ".zst" else data


def write(path: Path, documents: Sequence[str], column: str = "text") -> Path:
    """A file of the format and compression that its name says."""
    suffixes = path.suffixes
    compression = suffixes[-1] if suffixes[-1] in (".gz", ".zst") else ""
    kind = suffixes[-2] if compression else suffixes[-1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack(encode(documents, kind, column), compression))
    return path


def prepare(sources: object, recipe: Data, folder: Path, **options) -> PreparedData:
    """``prepare_data`` in this process, quietly, with a cache of its own."""
    sources = [str(sources)] if isinstance(sources, str | Path) else [str(source) for source in sources]
    return prepare_data(
        sources, recipe, **{"cache_dir": folder / "cache", "processes": 1, "progress": False, **options}
    )


def all_rows(rows) -> np.ndarray:
    """Every row as one array."""
    return np.array(rows.read(0, len(rows)))


def tokens_of(prepared: PreparedData, text: str) -> list[int]:
    """A raw document by the stored tokenizer alone, with its closing <sep>."""
    return [*prepared.tokenizer.encode(text, add_special_tokens=False).ids, SEP_ID]


def packed(documents: Iterable[list[int]], row_length: int) -> np.ndarray:
    """The obvious packing: everything in one list, cut into rows, the rest dropped."""
    stream: list[int] = []
    for ids in documents:
        stream += ids
    whole = len(stream) // row_length * row_length
    return np.array(stream[:whole], dtype=np.int64).reshape(-1, row_length)


def as_sorted(rows: np.ndarray) -> list[tuple[int, ...]]:
    """Rows in an order of their own, to compare two sets with repeats."""
    return sorted(map(tuple, rows.tolist()))
