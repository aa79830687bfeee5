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
from cramming_train.evaluation.tasks import TRAIN_SPLIT, Split, Suite, Task

EVALUATION_FOLDER = "evaluation"
SPREAD = "min..max over the seeds"


def fingerprint(settings: Any) -> str:
    """A short name for settings (plain JSON values): results of like settings belong together."""
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()


class ResultLines:
    """SUITE.jsonl: one line per finished (task, seed), written at once, where an evaluation continues.

    Each line carries the fingerprint of the settings it was made with; lines of other settings are passed
    over and kept. A line cut short by a kill is passed over.
    """

    def __init__(self, folder: Path, suite: Suite, settings: str):
        self._path = folder / f"{suite.name}.jsonl"
        self._settings = settings
        self._order = list(suite.tasks)
        self._lines = {(line["task"], line["seed"]): line for line in self._read() if line.get("settings") == settings}

    def get(self, task: str, seed: int, data: str) -> dict[str, Any] | None:
        """The line of a fine-tuning on the same data, if there is one."""
        line = self._lines.get((task, seed))
        return line if line is not None and line["data"] == data else None

    def up_to(self, seeds: int) -> list[dict[str, Any]]:
        """The lines of seeds 0 to ``seeds`` - 1, in the order of tasks and seeds."""
        lines = [line for (_, seed), line in self._lines.items() if seed < seeds]
        return sorted(lines, key=lambda line: (self._order.index(line["task"]), line["seed"]))

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
            if isinstance(line, dict) and line.get("task") in self._order:
                yield line


def shortfalls(task: Task, rows: dict[str, int]) -> list[str]:
    """How the numbers of rows ("train" and rows of the score table) differ from the official ones, in words."""
    official = {TRAIN_SPLIT: (TRAIN_SPLIT, task.train_rows), **{s.key: (s.name, s.rows) for s in task.splits}}
    return [
        f"{task.name} {name}: {rows[key]} of {count} rows"
        for key, (name, count) in official.items()
        if key in rows and count is not None and rows[key] != count
    ]


@dataclass
class Scores:
    """The score table.

    Attributes:
        rows: row name -> metric, median, min, max, values (fractions, by seed), train_rows, validation_rows, complete;
            where the score is a mean of several metrics also ``metrics``, the median of each; where the training set
            was capped also ``capped_from``, its whole size.
        missing: rows of the headline without a value.
        incomplete: rows whose data are not the official release.
        capped: rows of fine-tunings on a capped training set; they are incomplete as well.
        mean: of the medians of all rows of the headline; None unless all are there, complete and of all seeds.
        mean_range: least and greatest mean of one seed's values, where there is a mean.
        notes: what a reader of the numbers has to know, in words.
    """

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)
    capped: list[str] = field(default_factory=list)
    mean: float | None = None
    mean_range: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)


def aggregate(suite: Suite, lines: Sequence[dict[str, Any]], seeds: int) -> Scores:
    """Scores from the lines of finished fine-tunings."""
    scores = Scores()
    parts: dict[str, list[dict[str, float]]] = {}
    for line in lines:
        task = suite.tasks[line["task"]]
        for row, value in line["values"].items():
            entry = scores.rows.setdefault(row, _empty_row(task, task.rows[row], line))
            entry["values"].append(value)
            parts.setdefault(row, []).append(line["metrics"][row])
        scores.notes += line["notes"]
    for row, entry in scores.rows.items():
        entry.update(median=median(entry["values"]), min=min(entry["values"]), max=max(entry["values"]))
        if len(parts[row][0]) > 1:
            entry["metrics"] = {metric: median(part[metric] for part in parts[row]) for metric in parts[row][0]}
        if not entry["complete"]:
            scores.incomplete.append(row)
        if "capped_from" in entry:
            scores.capped.append(row)
        if len(entry["values"]) < seeds:
            scores.notes.append(f"{row}: {len(entry['values'])} of {seeds} seeds")
    scores.missing = [row for row in suite.headline if row not in scores.rows]
    headline = [scores.rows.get(row) for row in suite.headline]
    if headline and all(entry and entry["complete"] and len(entry["values"]) == seeds for entry in headline):
        scores.mean = sum(entry["median"] for entry in headline) / len(headline)
        by_seed = [sum(values) / len(headline) for values in zip(*(entry["values"] for entry in headline), strict=True)]
        scores.mean_range = (min(by_seed), max(by_seed))
    return scores


def _empty_row(task: Task, split: Split, line: dict[str, Any]) -> dict[str, Any]:
    rows = line["rows"]
    official = ((TRAIN_SPLIT, task.train_rows), (split.key, split.rows))
    capped = {"capped_from": line["capped_from"]} if line.get("capped_from") else {}
    return {
        "metric": " + ".join(split.metrics or task.metrics),
        "median": None,
        "min": None,
        "max": None,
        "values": [],
        "train_rows": rows[TRAIN_SPLIT],
        "validation_rows": rows[split.key],
        "complete": not capped and all(count is None or rows[key] == count for key, count in official),
        **capped,
    }


def write_scores(folder: Path, suite: Suite, scores: Scores, settings: dict[str, Any]) -> Path:
    """SUITE.json, replaced as a whole: the settings and the scores. Values are fractions, not percent."""
    content = {
        "suite": suite.name,
        **settings,
        "unit": "fraction",
        "spread": SPREAD,
        "tasks": scores.rows,
        "missing": scores.missing,
        "incomplete": scores.incomplete,
        "capped": scores.capped,
        "mean": scores.mean,
        "mean_range": scores.mean_range,
        "notes": scores.notes,
    }
    return write_json(folder / f"{suite.name}.json", content)


def glue_scores(run_path: Path) -> dict[str, Any] | None:
    """The content of glue.json of a run's evaluation; None where there is none, RunError where it is damaged."""
    path = run_path / EVALUATION_FOLDER / "glue.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise RunError(f"{path}: not valid JSON; remove it and evaluate again") from None


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """Write a JSON file, replaced as a whole."""
    return write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file, replaced as a whole; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".writing")
    temporary.write_bytes(content)
    os.replace(temporary, path)
    return path
