"""Prepared data on disk: memory-mapped Arrow rows, the tokenizer, and metadata that says how they came about.

PREPARED/train/       a folder that datasets.load_from_disk opens; column input_ids, fixed length
PREPARED/validation/  likewise
PREPARED/tokenizer.json
PREPARED/metadata.json
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tokenizers

from cramming_train.data.tokenizer import load_tokenizer
from cramming_train.errors import RunError, UsageError

COLUMN = "input_ids"
READ_LATER = (
    "key", "recipe", "source", "source_kind", "fingerprint", "rows", "notices", "unigram_loss", "vocab_size",
    "row_length",
)  # of the metadata, besides the sizes and digests  # fmt: skip
METADATA_FILE, TOKENIZER_FILE = "metadata.json", "tokenizer.json"
SPLITS = ("train", "validation")
FORMAT = 2
CHECKED_BYTES = 1 << 30  # larger files are checked by their size alone: hashing 20 GB at every start takes a minute


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def row_dtype(vocab_size: int) -> np.dtype:
    """The narrowest type for the ids."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)


class Rows:
    """Rows of token ids in one memory-mapped Arrow file."""

    def __init__(self, path: Path, row_length: int):
        self.row_length = row_length
        self._map = pa.memory_map(str(path))  # kept open: arrays are views of it
        table = pa.ipc.open_stream(self._map).read_all()
        self._chunks = [self._as_array(chunk) for chunk in table.column(COLUMN).chunks]
        self._ends = np.cumsum([len(chunk) for chunk in self._chunks], dtype=np.int64)

    def _as_array(self, chunk: pa.FixedSizeListArray) -> np.ndarray:
        return chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, self.row_length)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), [n, S] in their stored type; a view where they lie in one chunk."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start} to {stop}: there are {len(self)}")
        first = int(np.searchsorted(self._ends, start, side="right"))
        parts = []
        for index in range(first, len(self._chunks)):
            begin = int(self._ends[index - 1]) if index else 0
            parts.append(self._chunks[index][max(start - begin, 0) : stop - begin])
            if stop <= self._ends[index]:
                break
        if not parts:
            return self.take(np.empty(0, dtype=np.int64))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def take(self, indices: np.ndarray) -> np.ndarray:
        """The rows with these numbers, in this order."""
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and not (0 <= indices.min() and indices.max() < len(self)):
            raise IndexError(f"row numbers out of range: there are {len(self)} rows")
        chunk_of = np.searchsorted(self._ends, indices, side="right")
        dtype = self._chunks[0].dtype if self._chunks else np.uint16
        out = np.empty((len(indices), self.row_length), dtype=dtype)
        for chunk in np.unique(chunk_of):
            chosen = chunk_of == chunk
            begin = int(self._ends[chunk - 1]) if chunk else 0
            out[chosen] = self._chunks[chunk][indices[chosen] - begin]
        return out


@dataclass(frozen=True)
class PreparedData:
    """Rows, tokenizer and metadata of one prepared folder."""

    path: Path
    metadata: dict[str, Any]

    @cached_property
    def train(self) -> Rows:
        """Training rows in their order."""
        return Rows(_arrow_file(self.path / "train"), self.row_length)

    @cached_property
    def validation(self) -> Rows:
        """Held-out rows."""
        return Rows(_arrow_file(self.path / "validation"), self.row_length)

    @cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer; it cleans text by the rule of the data recipe."""
        return load_tokenizer(self.path / TOKENIZER_FILE)

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the vocabulary."""
        return self.metadata["vocab_size"]

    @property
    def row_length(self) -> int:
        """Tokens in a row."""
        return self.metadata["row_length"]


def is_prepared(path: Path) -> bool:
    """Is this a prepared folder?"""
    return (path / METADATA_FILE).is_file() and (path / "train").is_dir()


def open_prepared(path: Path) -> PreparedData:
    """Open a prepared folder.

    Raises:
        UsageError: no such folder, or not a prepared one.
        RunError: damaged: a file is missing or has another size than was written.
    """
    path = Path(path)
    if not is_prepared(path):
        raise UsageError(f"{path}: not a folder made by python -m cramming_train.prepare")
    try:
        metadata = json.loads((path / METADATA_FILE).read_text(encoding="utf-8"))
        sizes, digests = dict(metadata["file_bytes"]), dict(metadata["file_sha256"])
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{path / METADATA_FILE}: damaged; prepare the data again") from None
    if metadata.get("format") != FORMAT:
        raise RunError(f"{path}: made by another version of this program; prepare the data again")
    if not metadata.keys() >= set(READ_LATER):
        raise RunError(f"{path / METADATA_FILE}: damaged; prepare the data again")
    for name, size in sizes.items():
        file = path / name
        if not file.exists() or file.stat().st_size != size:
            raise RunError(f"{file}: missing or cut short; remove {path} and prepare the data again")
        if size <= CHECKED_BYTES and file_digest(file) != digests.get(name):
            raise RunError(f"{file}: changed since it was written; remove {path} and prepare the data again")
    return PreparedData(path.resolve(), metadata)


def write_rows(
    folder: Path, blocks: Iterable[np.ndarray], row_length: int, dtype: np.dtype, limit: int | None, split: str,
    progress: Callable[[int], None] = lambda rows: None,
) -> tuple[int, str]:  # fmt: skip
    """Write blocks of rows as an Arrow file for ``datasets``; returns (rows, SHA-256 of their bytes)."""
    import datasets

    folder.mkdir(parents=True)
    value = datasets.Value(dtype.name)
    features = datasets.Features({COLUMN: datasets.Sequence(value, length=row_length)})
    digest, rows = hashlib.sha256(), 0
    schema = features.arrow_schema
    with pa.OSFile(str(_arrow_file(folder)), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for block in blocks:
            if rows == limit:
                break
            block = np.ascontiguousarray(block if limit is None else block[: limit - rows])
            values = pa.array(block.reshape(-1), type=pa.from_numpy_dtype(dtype))
            array = pa.FixedSizeListArray.from_arrays(values, row_length)
            writer.write_batch(pa.record_batch([array.cast(schema.field(0).type)], schema=schema))
            digest.update(block.tobytes())
            rows += len(block)
            progress(len(block))
    datasets.DatasetInfo(features=features).write_to_directory(str(folder))
    state = {
        "_data_files": [{"filename": _arrow_file(folder).name}],
        "_fingerprint": digest.hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2))
    return rows, digest.hexdigest()


def write_metadata(folder: Path, metadata: dict[str, Any]) -> None:
    """Write metadata.json, with the sizes of all other files, last of all."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    digests = {str(path.relative_to(folder)): file_digest(path) for path in files}
    content = {"format": FORMAT, **metadata, "file_bytes": sizes, "file_sha256": digests}
    (folder / METADATA_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _arrow_file(folder: Path) -> Path:
    return folder / "data-00000-of-00001.arrow"
