"""Local text files: finding them, and reading documents from them as a stream, whatever their size."""

from __future__ import annotations

import contextlib
import csv
import glob
import gzip
import io
import json
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from cramming_train.errors import RunError, UsageError

FORMATS = (".txt", ".jsonl", ".csv", ".parquet")
COMPRESSIONS = (".gz", ".zst")
TXT_DOCUMENT_CHARACTERS = 10_000
_PARAGRAPH_END = re.compile(r"\n\s*\n")


def is_local(source: str) -> bool:
    """Does this look like a path or a glob (rather than the name of a hub data set)?"""
    looks_local = (
        source.startswith((".", "/", "~")) or glob.has_magic(source) or source.endswith(FORMATS + COMPRESSIONS)
    )
    return looks_local or Path(source).expanduser().exists()


def find_files(source: str) -> list[Path]:
    """The text files of a file, folder or glob, in sorted order.

    Raises:
        UsageError: nothing there, or nothing of a known format.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if data_format(path) is None:
            raise UsageError(f"{path}: unknown format; want one of {_accepted()}")
        return [path]
    if path.is_dir():
        candidates = [p for p in sorted(path.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    else:
        candidates = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if Path(p).is_file()]
        if not candidates:
            raise UsageError(f"{source}: no such file or folder")
    found = [p for p in candidates if data_format(p) is not None]
    if not found:
        raise UsageError(f"{source}: no file of a known format in it; want {_accepted()}")
    return found


def is_validation_file(path: Path) -> bool:
    """A file named validation.* is held-out text."""
    return path.name.split(".")[0] == "validation"


def data_format(path: Path) -> str | None:
    """The format by the file's name, compression aside, or None."""
    name = path.name
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return next((suffix for suffix in FORMATS if name.endswith(suffix)), None)


def estimated_characters(path: Path) -> int:
    """Rough size of the text, for the disk estimate: compressed text is about a third of its size."""
    size = path.stat().st_size
    return size * 4 if path.suffix in COMPRESSIONS or path.suffix == ".parquet" else size


def read_documents(path: Path, column: str) -> Iterator[str]:
    """The documents of one file, one by one.

    .jsonl, .csv and .parquet have one document a row, in ``column``. A .txt file is cut into documents at blank lines,
    each of at least 10,000 characters: chapters of a book rather than the whole of it, and a file of any size streams.

    Raises:
        UsageError: empty, binary, not UTF-8, not the format its name says, or no such column; with the line.
        RunError: a compressed file that is cut short or damaged.
    """
    kind = data_format(path)
    try:
        if path.stat().st_size == 0:
            raise UsageError(f"{path}: the file is empty")
        if kind == ".parquet":
            yield from _read_parquet(path, column)
            return
        with _open_text(path) as file:
            reader = {".txt": _read_txt, ".jsonl": _read_jsonl, ".csv": _read_csv}[kind]
            yield from reader(file, path, column)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason}, byte {error.object[error.start]:#04x})") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RunError(f"{path}: the compressed file is damaged or cut short ({error})") from None


def _accepted() -> str:
    return ", ".join(FORMATS) + " (plain, .gz or .zst)"


def _open_text(path: Path) -> io.TextIOBase:
    buffered = io.BufferedReader(_open_bytes(path), 1 << 20)
    if b"\0" in buffered.peek(4096)[:4096]:
        raise UsageError(f"{path}: a binary file, not text")
    return io.TextIOWrapper(buffered, encoding="utf-8-sig", errors="strict", newline=None)


def _open_bytes(path: Path) -> io.RawIOBase | io.BufferedIOBase:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    return _Zst(path) if path.suffix == ".zst" else open(path, "rb")


class _Zst(io.RawIOBase):
    """All frames of a .zst file; EOFError, as from gzip, where it is damaged or ends inside a frame."""

    def __init__(self, path: Path):
        self._file = open(path, "rb")
        self._frame = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._output:
            self._input = self._input or self._file.read(1 << 17)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("it ends inside a frame")
                return 0
            self._output = memoryview(self._decompress())
        size = min(len(buffer), len(self._output))
        buffer[:size], self._output = self._output[:size], self._output[size:]
        return size

    def _decompress(self) -> bytes:
        import zstandard

        if self._frame is None:  # files of zstd --long have windows of up to 2 GB
            self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
        try:
            output = self._frame.decompress(self._input)
        except zstandard.ZstdError as error:
            raise EOFError(str(error)) from None
        self._input = b""
        if self._frame.eof:
            self._input, self._frame = self._frame.unused_data, None
        return output

    def close(self) -> None:
        self._file.close()
        super().close()


def _read_txt(file: io.TextIOBase, path: Path, column: str) -> Iterator[str]:
    pending = ""
    while block := file.read(1 << 20):
        pending += block
        start = 0
        for end in _PARAGRAPH_END.finditer(pending):
            if end.start() - start >= TXT_DOCUMENT_CHARACTERS:
                yield pending[start : end.start()]
                start = end.end()
        pending = pending[start:]
        if len(pending) > 100 * TXT_DOCUMENT_CHARACTERS:  # no blank line in sight: cut at a line's end, or anywhere
            cut = pending.rfind("\n") + 1 or len(pending)
            yield pending[:cut]
            pending = pending[cut:]
    if pending.strip():
        yield pending


def _read_jsonl(file: io.TextIOBase, path: Path, column: str) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            raise UsageError(f"{path}, line {number}: not valid JSON") from None
        if not isinstance(record, dict):
            raise UsageError(f"{path}, line {number}: want a JSON object, got {type(record).__name__}")
        if column not in record:
            raise _no_column(path, column, record)
        yield _as_text(record[column], path, number, column)


def _read_csv(file: io.TextIOBase, path: Path, column: str) -> Iterator[str]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.DictReader(file)
    if column not in (reader.fieldnames or []):
        raise _no_column(path, column, reader.fieldnames or [])
    try:
        for record in reader:
            yield _as_text(record[column], path, reader.line_num, column)
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from None


def _read_parquet(path: Path, column: str) -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        if path.suffix != ".parquet":  # its directory is at its end: unpack it to where one can seek
            unpacked = stack.enter_context(tempfile.TemporaryFile())
            with _open_bytes(path) as packed:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
        else:
            unpacked = path
        yield from _read_parquet_rows(unpacked, path, column)


def _read_parquet_rows(opened, path: Path, column: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(opened)
        if column not in file.schema_arrow.names:
            raise _no_column(path, column, file.schema_arrow.names)
        row = 0
        for batch in file.iter_batches(batch_size=256, columns=[column]):
            for value in batch.column(0):
                row += 1
                yield _as_text(value.as_py(), path, row, column)
    except pyarrow.ArrowException as error:
        raise RunError(f"{path}: damaged, or not a parquet file ({str(error).splitlines()[0]})") from None


def _as_text(value: object, path: Path, number: int, column: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UsageError(f"{path}, row {number}: column {column!r} holds {type(value).__name__}, want text")
    return value


def _no_column(path: Path, column: str, present: Iterable[str]) -> UsageError:
    names = ", ".join(map(str, present)) or "none"
    return UsageError(f"{path}: no column {column!r} (there: {names}); choose one with --text-column")
