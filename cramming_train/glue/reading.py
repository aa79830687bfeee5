"""GLUE examples from local TSV files or from the hub."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cramming_train.errors import UsageError
from cramming_train.glue.tasks import TASKS, Task

SUFFIXES = (".tsv", ".tsv.gz")


@dataclass(frozen=True)
class Examples:
    """One split of a task.

    Attributes:
        texts: one list of strings per text column, each as long as ``labels``.
        labels: int64 class numbers, or float32 regression targets.
    """

    texts: tuple[list[str], ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


class Source(Protocol):
    """Where GLUE comes from."""

    name: str

    def load(self, task: Task, split: str) -> Examples | None:
        """The split, or None where the source does not have it."""


class Folder:
    """Local files ``<folder>/<task>/<split>.tsv`` or ``.tsv.gz``.

    UTF-8, tab-separated, a header row, no quoting (quotation marks are text). Needed are the task's text
    columns and ``label``; other columns are passed over.

    Raises:
        UsageError: no such folder, or one with none of the task folders.
    """

    def __init__(self, path: Path):
        if not path.is_dir():
            raise UsageError(f"--glue-dir {path}: no such folder")
        if not any((path / task).is_dir() for task in TASKS):
            raise UsageError(f"--glue-dir {path}: no task folder in it; want files such as {path}/cola/train.tsv.gz")
        self.path = path
        self.name = str(path)

    def load(self, task: Task, split: str) -> Examples | None:
        """Read one split; UsageError that names file and line where it is not what the task needs."""
        for suffix in SUFFIXES:
            path = self.path / task.name / (split + suffix)
            if path.is_file():
                return read_tsv(path, task)
        return None


def read_tsv(path: Path, task: Task) -> Examples:
    """Read one TSV file of a task.

    Raises:
        UsageError: a missing column, a short row, a bad label, no rows; it names the file and the line.
    """
    lines = _numbered_lines(path)
    header = next(lines, (0, ""))[1].split("\t")
    missing = [column for column in (*task.columns, "label") if column not in header]
    if missing:
        found = ", ".join(column for column in header if column) or "nothing"
        raise UsageError(f"{path}, line 1: column {missing[0]!r} is missing from the header (found: {found})")
    places = [header.index(column) for column in task.columns]
    label_place = header.index("label")
    texts: tuple[list[str], ...] = tuple([] for _ in places)
    labels = []
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) != len(header):
            raise UsageError(f"{path}, line {number}: {len(cells)} columns, the header has {len(header)}")
        for column, place in zip(texts, places, strict=True):
            column.append(cells[place])
        labels.append(parse_label(cells[label_place], task, f"{path}, line {number}"))
    if not labels:
        raise UsageError(f"{path}: no examples in it, only a header")
    return Examples(texts, label_array(labels, task))


def _numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text) of all lines but wholly empty ones."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                line = line.rstrip("\r\n")
                if line:
                    yield number, line
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise UsageError(f"{path}: damaged or cut short; not a whole gzip file") from None


def parse_label(text: Any, task: Task, where: str) -> float:
    """A label of the task from its text or number; UsageError where it is not one."""
    if task.label_range is not None:
        low, high = task.label_range
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise UsageError(f"{where}: label {text!r}, want a number from {low:g} to {high:g}")
        return value
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < task.classes:
        raise UsageError(f"{where}: label {text!r}, want a whole number from 0 to {task.classes - 1}")
    return value


def label_array(labels: list[float], task: Task) -> np.ndarray:
    """int64 class numbers, or float32 regression targets."""
    return np.asarray(labels, dtype=np.float32 if task.label_range is not None else np.int64)
