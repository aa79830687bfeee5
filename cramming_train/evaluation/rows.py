"""Rows of named columns from .tsv, .csv and .jsonl files, plain or .gz."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cramming_train.errors import UsageError

FORMATS = (".tsv", ".csv", ".jsonl")
SUFFIXES = tuple(kind + packed for kind in FORMATS for packed in ("", ".gz"))
Row = dict[str, Any]


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """(where it is, in words; the row), one after the other; UTF-8.

    .tsv: a header, no quoting (quotation marks are text), as in GLUE. .csv: a header, quoted as spreadsheets do it.
    .jsonl: an object a line. Rows of .tsv and .csv hold text alone.

    Raises:
        UsageError: no such file, another format, not UTF-8, damaged, a line that is not a row, no rows at all; with
            file and line.
    """
    kind = next((kind for kind in FORMATS if path.name.removesuffix(".gz").endswith(kind)), None)
    if kind is None:
        raise UsageError(f"{path}: unknown format; want {', '.join(FORMATS)} (plain or .gz)")
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    reader = {".tsv": _read_tsv, ".csv": _read_csv, ".jsonl": _read_jsonl}[kind]
    found = False
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig", newline="" if kind == ".csv" else "\n") as file:
            for number, row in reader(file, path):
                found = True
                yield f"{path}, line {number}", row
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise UsageError(f"{path}: damaged or cut short; not a whole gzip file") from None
    if not found:
        raise UsageError(f"{path}: no rows in it")


def _read_tsv(file: io.TextIOBase, path: Path) -> Iterator[tuple[int, Row]]:
    header: list[str] | None = None
    for number, line in enumerate(file, 1):
        line = line.rstrip("\r\n")
        if not line:
            continue
        cells = line.split("\t")
        if header is None:
            header = cells
            continue
        if len(cells) != len(header):
            raise UsageError(f"{path}, line {number}: {len(cells)} columns, the header has {len(header)}")
        yield number, dict(zip(header, cells, strict=True))


def _read_csv(file: io.TextIOBase, path: Path) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(file, strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            if not cells:
                continue
            if header is None:
                header = cells
                continue
            if len(cells) != len(header):
                where = f"{path}, line {reader.line_num}"
                raise UsageError(f"{where}: {len(cells)} columns, the header has {len(header)}")
            yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from None


def _read_jsonl(file: io.TextIOBase, path: Path) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise UsageError(f"{path}, line {number}: not valid JSON") from None
        if not isinstance(row, dict):
            raise UsageError(f"{path}, line {number}: want a JSON object, got {type(row).__name__}")
        yield number, row
