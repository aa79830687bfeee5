"""What an evaluation has found so far: a line per fine-tuning on disk, and the scores that follow."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from cramming_train.errors import RunError
from cramming_train.glue.tasks import HEADLINE_ROWS, TASKS, TRAIN_SPLIT, Task

EVALUATION_FOLDER, LINES_FILE, SCORES_FILE = "evaluation", "glue.jsonl", "glue.json"


def fingerprint(settings: Any) -> str:
    """A short name for settings (plain JSON values): results of like settings belong together."""
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()


class ResultLines:
    """glue.jsonl: one line per finished (task, seed), written at once, where an evaluation continues.

    Each line carries the fingerprint of the settings it was made with; lines of other settings are passed
    over and kept. A line cut short by a kill is passed over.
    """

    def __init__(self, folder: Path, settings: str):
        self._path = folder / LINES_FILE
        self._settings = settings
        self._lines = {(line["task"], line["seed"]): line for line in self._read() if line.get("settings") == settings}

    def get(self, task: str, seed: int, data: str) -> dict[str, Any] | None:
        """The line of a fine-tuning on the same data, if there is one."""
        line = self._lines.get((task, seed))
        return line if line is not None and line["data"] == data else None

    def up_to(self, seeds: int) -> list[dict[str, Any]]:
        """The lines of seeds 0 to ``seeds`` - 1, in the order of tasks and seeds."""
        order = list(TASKS)
        lines = [line for (_, seed), line in self._lines.items() if seed < seeds]
        return sorted(lines, key=lambda line: (order.index(line["task"]), line["seed"]))

    def append(self, line: dict[str, Any]) -> None:
        """Add the line of a finished fine-tuning."""
        line = {**line, "settings": self._settings}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        before = self._path.read_bytes() if self._path.exists() else b""
        cut_short = before and not before.endswith(b"\n")
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(("\n" if cut_short else "") + json.dumps(line, allow_nan=False) + "\n")
        self._lines[line["task"], line["seed"]] = line

    def _read(self) -> Iterable[dict[str, Any]]:
        if not self._path.exists():
            return
        for text in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and line.get("task") in TASKS:
                yield line


def shortfalls(task: Task, rows: dict[str, int]) -> list[str]:
    """How the numbers of rows differ from the official ones, in words; empty where they do not."""
    return [
        f"{task.name} {split}: {rows[split]} of {official} rows"
        for split, official in task.official.items()
        if split in rows and rows[split] != official
    ]


@dataclass
class Scores:
    """The score table.

    Attributes:
        rows: row name -> metric, median, values (fractions, by seed), train_rows, validation_rows, complete.
        missing: rows of the headline without a value.
        incomplete: rows whose data are not the official release.
        mean: of the medians of all nine rows; None unless all are there, complete and of all seeds.
        notes: what a reader of the numbers has to know, in words.
    """

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)
    mean: float | None = None
    notes: list[str] = field(default_factory=list)


def aggregate(lines: Sequence[dict[str, Any]], seeds: int) -> Scores:
    """Scores from the lines of finished fine-tunings."""
    scores = Scores()
    for line in lines:
        task = TASKS[line["task"]]
        for row, value in line["values"].items():
            entry = scores.rows.setdefault(row, _empty_row(task, row, line["rows"]))
            entry["values"].append(value)
        scores.notes += line["notes"]
    for row, entry in scores.rows.items():
        entry["median"] = median(entry["values"])
        if not entry["complete"]:
            scores.incomplete.append(row)
        if len(entry["values"]) < seeds:
            scores.notes.append(f"{row}: {len(entry['values'])} of {seeds} seeds")
    scores.missing = [row for row in HEADLINE_ROWS if row not in scores.rows]
    headline = [scores.rows.get(row) for row in HEADLINE_ROWS]
    if all(entry and entry["complete"] and len(entry["values"]) == seeds for entry in headline):
        scores.mean = sum(entry["median"] for entry in headline) / len(headline)
    return scores


def _empty_row(task: Task, row: str, rows: dict[str, int]) -> dict[str, Any]:
    split = task.splits[row]
    return {
        "metric": task.metric,
        "median": None,
        "values": [],
        "train_rows": rows[TRAIN_SPLIT],
        "validation_rows": rows[split],
        "complete": all(rows[name] == task.official[name] for name in (TRAIN_SPLIT, split)),
    }


def write_scores(folder: Path, scores: Scores, settings: dict[str, Any]) -> Path:
    """glue.json, replaced as a whole: the settings and the scores. Values are fractions, not percent."""
    content = {
        "suite": "glue",
        **settings,
        "unit": "fraction",
        "tasks": scores.rows,
        "missing": scores.missing,
        "incomplete": scores.incomplete,
        "mean": scores.mean,
        "notes": scores.notes,
    }
    return write_json(folder / SCORES_FILE, content)


def glue_scores(run_path: Path) -> dict[str, Any] | None:
    """The content of glue.json of a run's evaluation; None where there is none, RunError where it is damaged."""
    path = run_path / EVALUATION_FOLDER / SCORES_FILE
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise RunError(f"{path}: not valid JSON; remove it and evaluate again") from None


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """Write a JSON file, replaced as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".writing")
    temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path
