"""From a row of a task's table to the token sequences that the encoder reads.

``text``      one sequence, ``<cls> column <sep> column <sep> ...``; a class or a value is read off it. As in BERT
              (Devlin et al. 2019, arXiv 1810.04805, section 4.1) and, for three and more columns (WiC, WSC), as in the
              original project, which joins all columns with separators, indices of spans included.
``choice``    one sequence for each choice, ``<cls> columns ... <sep> choice <sep>``; one linear output scores each, and
              a softmax runs over the choices of a row: BERT's SWAG (section 4.4), RoBERTa's RACE (arXiv 1907.11692,
              section 5.3), SuperGLUE's COPA baseline. The original project reads all choices in one sequence instead
              and predicts the place of the right one as a class.
``multirc``   as ``text``, yes or no for each answer; answers to one question belong together for the exact match
              (Khashabi et al. 2018). The original project does the same.
``record``    one sequence for each distinct entity of the passage, put into the query's place holder, scored as
              choices. In training a right entity beside the one that is the label is left out. F1 and exact match are
              of the chosen entity's text, the best over the accepted answers (Zhang et al. 2018, arXiv 1810.12885).
              The original project predicts the first token of an answer instead, and leaves the task out by default.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cramming_train.errors import UsageError
from cramming_train.evaluation.rows import Row
from cramming_train.evaluation.tasks import Task

PLACE_HOLDER = "@placeholder"


class Framed(NamedTuple):
    """One example: the parts of each of its sequences, its label, and what its metric needs beside that."""

    sequences: Sequence[tuple[str, ...]]
    label: float
    reference: Any = None


class Use(NamedTuple):
    """What a split is read for: its text columns, whether it has labels, and whether it is trained on."""

    columns: tuple[str, ...]
    labelled: bool = True
    training: bool = False


def frame_row(task: Task, row: Row, where: str, use: Use) -> Framed:
    """One row; UsageError that says where, if it lacks a column or has a bad value."""
    return FRAMINGS[task.framing](task, row, where, use)


def _frame_text(task: Task, row: Row, where: str, use: Use) -> Framed:
    return Framed([_texts(row, use.columns, where)], _label(task, row, where, use))


def _frame_choice(task: Task, row: Row, where: str, use: Use) -> Framed:
    context = _texts(row, use.columns, where)
    if len(task.choices) == 1:
        choices = [_text(choice, where, task.choices[0]) for choice in _list(row, task.choices[0], where)]
    else:
        choices = list(_texts(row, task.choices, where))
    if len(choices) != len(task.labels):
        raise UsageError(f"{where}: {len(choices)} choices, want {len(task.labels)}")
    return Framed([(*context, choice) for choice in choices], _label(task, row, where, use))


def _frame_multirc(task: Task, row: Row, where: str, use: Use) -> Framed:
    place = _structure(row, "idx", where)
    try:
        question = (int(place["paragraph"]), int(place["question"]))
    except (KeyError, TypeError, ValueError):
        raise UsageError(f"{where}: column 'idx' has no numbers 'paragraph' and 'question'") from None
    return _frame_text(task, row, where, use)._replace(reference=question)


def _frame_record(task: Task, row: Row, where: str, use: Use) -> Framed:
    query, passage = _texts(row, use.columns, where)
    entities = [_text(entity, where, "entities") for entity in dict.fromkeys(_list(row, "entities", where))]
    answers = [_text(answer, where, "answers") for answer in _list(row, "answers", where)]
    right = [entity for entity in entities if entity in answers]
    if PLACE_HOLDER not in query:
        raise UsageError(f"{where}: column 'query' has no {PLACE_HOLDER}")
    if not entities or (use.labelled and not answers) or (use.training and not right):
        raise UsageError(f"{where}: no entities, no answers, or no entity that is an answer")
    if use.training:
        entities = [entity for entity in entities if entity == right[0] or entity not in right]
    label = entities.index(right[0]) if right else 0
    sequences = [(query.replace(PLACE_HOLDER, entity), passage) for entity in entities]
    return Framed(sequences, label, (tuple(entities), tuple(answers)))


FRAMINGS: dict[str, Callable[[Task, Row, str, Use], Framed]] = {
    "text": _frame_text,
    "choice": _frame_choice,
    "multirc": _frame_multirc,
    "record": _frame_record,
}


def _value(row: Row, column: str, where: str) -> Any:
    if column not in row:
        raise UsageError(f"{where}: no column {column!r} (there: {', '.join(map(str, row)) or 'none'})")
    return row[column]


def _texts(row: Row, columns: Sequence[str], where: str) -> tuple[str, ...]:
    return tuple(_text(_value(row, column, where), where, column) for column in columns)


def _text(value: Any, where: str, column: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):  # such as the place of a span
        return str(value)
    raise UsageError(f"{where}: column {column!r} holds {type(value).__name__}, want text")


def _structure(row: Row, column: str, where: str) -> Any:
    """A list or an object: as it is in .jsonl and on the hub, as JSON text in .tsv and .csv."""
    value = _value(row, column, where)
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise UsageError(f"{where}: column {column!r} is not JSON: {value!r}") from None


def _list(row: Row, column: str, where: str) -> list[Any]:
    value = _structure(row, column, where)
    if not isinstance(value, list):
        raise UsageError(f"{where}: column {column!r} holds {type(value).__name__}, want a list")
    return value


def _label(task: Task, row: Row, where: str, use: Use) -> float:
    return parse_label(_value(row, task.label_column, where), task, where) if use.labelled else 0


def parse_label(value: Any, task: Task, where: str) -> float:
    """The class number or the regression target; UsageError where it is neither."""
    if task.label_range is not None:
        low, high = task.label_range
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not (low <= number <= high and math.isfinite(number)):
            bounds = f" from {low:g} to {high:g}" if math.isfinite(high) else ""
            raise UsageError(f"{where}: label {value!r}, want a number{bounds}")
        return number
    if task.numbered:
        try:
            if 0 <= int(value) < len(task.labels):
                return int(value)
        except (TypeError, ValueError):
            pass
    if str(value) in task.labels:
        return task.labels.index(str(value))
    numbers = f"a whole number from 0 to {len(task.labels) - 1}, or " if task.numbered else ""
    names = ", ".join(task.labels[:8]) + (", ..." if len(task.labels) > 8 else "")
    raise UsageError(f"{where}: label {value!r}, want {numbers}one of: {names}")
