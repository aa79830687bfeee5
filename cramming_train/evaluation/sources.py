"""Examples of a task, from local files (here) or from the hub (:mod:`cramming_train.evaluation.hub`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cramming_train.errors import UsageError
from cramming_train.evaluation.framing import Use, frame_row
from cramming_train.evaluation.rows import SUFFIXES, Row, read_rows
from cramming_train.evaluation.tasks import TRAIN_SPLIT, Split, Suite, Task

CAP_SEED = 0  # of the rows that a capped training set keeps


@dataclass(frozen=True)
class Examples:
    """One split of a task.

    Attributes:
        sequences: of all examples in turn, each the texts that make it up.
        labels: int64 class numbers, or float32 regression targets; of each example.
        counts: sequences of each example; None: one each.
        references: what a metric needs beside the label, of each example; empty where it needs nothing.
    """

    sequences: list[tuple[str, ...]]
    labels: np.ndarray
    counts: np.ndarray | None = None
    references: list[Any] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)


Rows = Iterable[tuple[str, Row]]


class Source(Protocol):
    """Where tasks come from."""

    name: str

    def rows(self, task: Task, config: str | None, split: str) -> Rows | None:
        """(where, row) of a split, of the task itself or of ``config``; None where the source does not have it."""


class Folder:
    """Local files ``<folder>/<task>/<split>.tsv``, ``.csv`` or ``.jsonl``, plain or ``.gz``: columns as on the hub.

    Raises:
        UsageError: no such folder, or one with none of the suite's task folders.
    """

    def __init__(self, path: Path, suite: Suite):
        if not path.is_dir():
            raise UsageError(f"--task-dir {path}: no such folder")
        if not any((path / task).is_dir() for task in suite.tasks):
            first = next(iter(suite.tasks))
            raise UsageError(
                f"--task-dir {path}: no task folder of {suite.title} in it; want files such as "
                f"{path}/{first}/{TRAIN_SPLIT}.tsv or .jsonl.gz"
            )
        self.path = path
        self.name = str(path)

    def rows(self, task: Task, config: str | None, split: str) -> Rows | None:
        """See :class:`Source`."""
        for suffix in SUFFIXES:
            path = self.path / (config or task.name) / (split + suffix)
            if path.is_file():
                return read_rows(path)
        return None


def load_train(source: Source, task: Task, max_rows: int | None) -> tuple[Examples | None, int]:
    """The training examples, at most ``max_rows`` of them, drawn with a fixed seed; and how many rows there were."""
    rows = source.rows(task, None, TRAIN_SPLIT)
    if rows is None:
        return None, 0
    if max_rows is None:
        examples = frame_rows(task, rows, Use(task.columns, training=True))
        return examples, len(examples)
    everything = list(rows)
    chosen = np.random.default_rng(CAP_SEED).permutation(len(everything))[:max_rows]
    kept = [everything[number] for number in sorted(chosen.tolist())]
    return frame_rows(task, kept, Use(task.columns, training=True)), len(everything)


def load_split(source: Source, task: Task, split: Split, *, labelled: bool) -> Examples | None:
    """A split that the task is scored on, or predicts; None where the source does not have it."""
    rows = source.rows(task, split.config, split.name)
    return None if rows is None else frame_rows(task, rows, Use(split.columns or task.columns, labelled))


def frame_rows(task: Task, rows: Rows, use: Use) -> Examples:
    """All rows of a split; UsageError that names the place of a bad one."""
    sequences: list[tuple[str, ...]] = []
    labels, counts, references = [], [], []
    for where, row in rows:
        framed = frame_row(task, row, where, use)
        sequences += framed.sequences
        counts.append(len(framed.sequences))
        labels.append(framed.label)
        if framed.reference is not None:
            references.append(framed.reference)
    if task.regression:
        mean, deviation = task.label_scale
        targets = ((np.asarray(labels) - mean) / deviation).astype(np.float32)
    else:
        targets = np.asarray(labels, dtype=np.int64)
    several = task.framing in ("choice", "record")
    return Examples(sequences, targets, np.asarray(counts, dtype=np.int64) if several else None, references)
