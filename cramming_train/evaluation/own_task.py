"""A task of one's own, from a file to train on and a file to judge on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from cramming_train.errors import UsageError
from cramming_train.evaluation.metrics import METRICS
from cramming_train.evaluation.rows import SUFFIXES, read_rows
from cramming_train.evaluation.sources import Rows
from cramming_train.evaluation.tasks import TRAIN_SPLIT, Split, Suite, Task

MOST_CLASSES = 1000
VALIDATION = "validation"


class Files:
    """The two files as a source of examples."""

    def __init__(self, train: Path, validation: Path):
        self._paths = {TRAIN_SPLIT: train, VALIDATION: validation}
        self.name = f"{train} and {validation}"

    def rows(self, task: Task, config: str | None, split: str) -> Rows:
        """(where, row) of a file."""
        return read_rows(self._paths[split])


def task_name(train: Path) -> str:
    """The training file's name without endings, or its folder's where the file is just called train."""
    stem = next((train.name.removesuffix(end) for end in reversed(SUFFIXES) if train.name.endswith(end)), train.name)
    name = train.resolve().parent.name if stem == TRAIN_SPLIT else stem
    return name or stem


def own_suite(train: Path, columns: Sequence[str], label_column: str, metric: str | None) -> Suite:
    """The suite of this one task; the labels that the training file holds decide what kind of task it is.

    A regression, if ``metric`` is a correlation, or if every label is a number and one has a decimal point. Otherwise
    every distinct label is the name of a class; f1 is that of the second of two, in their order. Default metrics:
    accuracy, and Pearson's correlation.

    Raises:
        UsageError: labels missing, all alike, or of more kinds than classes can be; a metric that does not fit them.
    """
    if metric is not None and (metric not in METRICS or METRICS[metric].needs_references):
        known = ", ".join(name for name, known in METRICS.items() if not known.needs_references)
        raise UsageError(f"--metric {metric}: no such metric for a task of your own; known: {known}")
    values = [_label(row, label_column, where) for where, row in read_rows(train)]
    numbers = [_number(value) for value in values]
    written = any(isinstance(value, float) or (isinstance(value, str) and "." in value) for value in values)
    of_values = metric is not None and METRICS[metric].of_values
    regression = of_values or (metric is None and None not in numbers and written)
    if regression and None in numbers:
        bad = values[numbers.index(None)]
        raise UsageError(f"{train}: label {bad!r} is not a number, which --metric {metric} needs")
    name = task_name(train)
    scale = (fmean(numbers), pstdev(numbers)) if regression else (0.0, 1.0)
    if scale[1] == 0:
        raise UsageError(f"{train}: column {label_column!r} holds one value alone, {values[0]!r}")
    labels = () if regression else _classes(train, label_column, values)
    chosen = metric or ("pearson" if regression else "accuracy")
    if chosen == "f1" and len(labels) > 2:
        raise UsageError(f"--metric {chosen}: {len(labels)} classes; f1_macro or accuracy goes with more than two")
    task = Task(
        name, tuple(columns), labels, (chosen,), None, (Split(name, name, VALIDATION, None),),
        label_column=label_column, label_range=(-math.inf, math.inf) if regression else None, label_scale=scale,
        numbered=False,
    )  # fmt: skip
    return Suite(name, name, {name: task}, headline=())


def _label(row: dict[str, Any], column: str, where: str) -> Any:
    if column not in row:
        raise UsageError(f"{where}: no column {column!r} (there: {', '.join(row)}); choose it with --label-column")
    if not isinstance(row[column], str | int | float) or row[column] == "":
        raise UsageError(f"{where}: column {column!r} holds no label: {row[column]!r}")
    return row[column]


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) and not isinstance(value, bool) else None


def _classes(train: Path, column: str, values: Sequence[Any]) -> tuple[str, ...]:
    """The names of the classes in order: whole numbers by value, other names by the alphabet."""
    found = Counter(str(value) for value in values)
    if len(found) < 2:
        raise UsageError(f"{train}: column {column!r} holds one label alone, {next(iter(found))!r}")
    if len(found) > MOST_CLASSES or (len(found) > 10 and 2 * len(found) > len(values)):
        raise UsageError(
            f"{train}: column {column!r} holds {len(found)} different labels in {len(values)} rows: "
            f"is it the right column? Numbers are learned as values with --metric pearson"
        )
    if all(name.lstrip("-").isdecimal() for name in found):
        return tuple(sorted(found, key=int))
    return tuple(sorted(found))
