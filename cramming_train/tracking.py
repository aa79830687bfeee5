"""The log of a run: one JSON object a line, flushed at once, so that a kill loses nothing but the present step."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cramming_train.trackers import Tracker


class RunLog:
    """Appends events to ``log.jsonl``. Every line has ``event``, ``time`` (unix) and ``elapsed`` (budget seconds)."""

    def __init__(self, path: Path, elapsed: Callable[[], float], trackers: tuple[Tracker, ...] = ()):
        self._path = path
        self._elapsed = elapsed
        self._trackers = trackers
        cut_short = _is_cut_short(path)
        self._file = open(path, "a", encoding="utf-8")
        if cut_short:
            self._file.write("\n")  # keep our first line apart from what a kill left
        self.last_write = time.monotonic()

    def write(self, event: str, **fields: Any) -> None:
        """Append one event. Numbers that are not finite become null: JSON has no word for them."""
        record = {
            "event": event,
            "time": round(time.time(), 3),
            "elapsed": round(self._elapsed(), 3),
            **fields,
        }
        self._file.write(json.dumps(_finite(record)) + "\n")
        self._file.flush()
        self.last_write = time.monotonic()
        if event in ("step", "validation"):
            prefix = "train" if event == "step" else "validation"
            numbers = {f"{prefix}/{k}": float(v) for k, v in fields.items() if isinstance(v, int | float)}
            for tracker in self._trackers:
                self._guarded(tracker, lambda tracker: tracker.scalars(numbers, fields["step"]))

    def heartbeat(self, every: float = 5.0) -> None:
        """Note the time used when nothing was written for ``every`` seconds: a resumed run continues from here."""
        if time.monotonic() - self.last_write >= every:
            self.write("heartbeat")

    def close(self) -> None:
        """Close the file and the trackers."""
        self._file.close()
        for tracker in self._trackers:
            self._guarded(tracker, lambda tracker: tracker.close())

    def _guarded(self, tracker: Tracker, action: Callable[[Tracker], None]) -> None:
        """A tracker that fails is left out from then on: a day of training is worth more than its mirror."""
        try:
            action(tracker)
        except Exception as error:  # their network, disk and server errors share no base class
            self._trackers = tuple(other for other in self._trackers if other is not tracker)
            what = (str(error).splitlines() or [""])[0]
            print(f"WARNING: --track {tracker.name}: {type(error).__name__}: {what}; left out from here on",
                  file=sys.stderr, flush=True)  # fmt: skip


def _is_cut_short(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a log, oldest first. Lines cut short by a kill are passed over."""
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "event" in record:
                yield record


def effective_events(path: Path) -> list[dict[str, Any]]:
    """The events of what became of the run: steps that a resume or a recovery went back behind are left out."""
    kept: list[dict[str, Any]] = []
    for record in read_log(path):
        if record["event"] in ("resume", "recovery"):
            kept = [r for r in kept if r["event"] not in ("step", "validation") or r["step"] <= record["step"]]
        kept.append(record)
    return kept


def seconds_used(path: Path) -> float:
    """Budget seconds used according to the last event of the log, 0 where there is none."""
    return max((float(record.get("elapsed") or 0.0) for record in read_log(path)), default=0.0)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
