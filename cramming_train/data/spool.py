"""Scratch files of the pipeline: documents and fixed-size records on disk, read back in pieces of bounded size."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

_HEADER = struct.Struct("<IBQ")  # text bytes, 1 for held-out documents, content hash


class Document(NamedTuple):
    """A cleaned document: paragraphs separated by newlines."""

    text: str
    held_out: bool
    content_hash: int


class DocumentSpool:
    """An append-only file of documents, cut into segments of about ``segment_bytes`` for parallel reading."""

    def __init__(self, path: Path, segment_bytes: int = 4 << 20):
        self.path = path
        self.documents = 0
        self.characters = 0
        self.segments: list[tuple[int, int, int]] = []  # (first document, offset, end offset)
        self.held_out_hash: int | None = None  # documents of this content are held out although not marked so
        self._segment_bytes = segment_bytes
        self._segment_start = (0, 0)
        self._offset = 0
        self._file = open(path, "wb")

    def append(self, document: Document) -> None:
        """Write one document."""
        data = document.text.encode("utf-8", "surrogatepass")
        self._file.write(_HEADER.pack(len(data), document.held_out, document.content_hash))
        self._file.write(data)
        self._offset += _HEADER.size + len(data)
        self.documents += 1
        self.characters += len(document.text)
        if self._offset - self._segment_start[1] >= self._segment_bytes:
            self._end_segment()

    def is_held_out(self, document: Document) -> bool:
        """Marked so, or chosen afterwards."""
        return document.held_out or document.content_hash == self.held_out_hash

    def close(self) -> None:
        """Finish writing."""
        self._end_segment()
        self._file.close()

    def _end_segment(self) -> None:
        first, start = self._segment_start
        if self._offset > start:
            self.segments.append((first, start, self._offset))
        self._segment_start = (self.documents, self._offset)


def read_segment(path: Path, offset: int, end: int) -> Iterator[Document]:
    """The documents between two offsets of a spool."""
    with open(path, "rb") as file:
        file.seek(offset)
        while file.tell() < end:
            size, held_out, content_hash = _HEADER.unpack(file.read(_HEADER.size))
            yield Document(file.read(size).decode("utf-8", "surrogatepass"), bool(held_out), content_hash)


class Buckets:
    """Records of one NumPy dtype, distributed over files, each small enough to be held in memory."""

    def __init__(self, folder: Path, count: int, dtype: np.dtype):
        folder.mkdir(parents=True, exist_ok=True)
        self.paths = [folder / f"{index:04d}" for index in range(count)]
        self.dtype = dtype
        self._files = [open(path, "wb") for path in self.paths]

    def add(self, bucket: np.ndarray, records: np.ndarray) -> None:
        """Append ``records[i]`` to file ``bucket[i]``, keeping their order within each file."""
        if not len(records):
            return
        order = np.argsort(bucket, kind="stable")
        bucket, records = bucket[order], records[order]
        edges = np.flatnonzero(np.diff(bucket)) + 1
        for start, stop in zip([0, *edges], [*edges, len(bucket)], strict=True):
            records[start:stop].tofile(self._files[bucket[start]])

    def close(self) -> None:
        """Finish writing."""
        for file in self._files:
            file.close()

    def read(self, index: int) -> np.ndarray:
        """All records of one file."""
        return np.fromfile(self.paths[index], dtype=self.dtype)
