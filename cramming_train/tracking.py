"""The log of a run: one JSON object a line, flushed at once, so that a kill loses nothing but the present step."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from cramming_train.errors import UsageError


class Tracker(Protocol):
    """Where numbers go besides the log file."""

    def scalars(self, values: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


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
                tracker.scalars(numbers, fields["step"])

    def heartbeat(self, every: float = 5.0) -> None:
        """Note the time used when nothing was written for ``every`` seconds: a resumed run continues from here."""
        if time.monotonic() - self.last_write >= every:
            self.write("heartbeat")

    def close(self) -> None:
        """Close the file and the trackers."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


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


def open_trackers(names: list[str], folder: Path, run_name: str) -> tuple[Tracker, ...]:
    """Trackers by name, ``tensorboard`` or ``wandb``; UsageError where the package is not installed."""
    return tuple(_TRACKERS[name](folder, run_name) for name in names)


class _TensorBoard:
    def __init__(self, folder: Path, run_name: str):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UsageError("--track tensorboard: not installed; run pip install tensorboard") from None
        self._writer = SummaryWriter(folder / "tensorboard")

    def scalars(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, folder: Path, run_name: str):
        try:
            import wandb
        except ImportError:
            raise UsageError("--track wandb: not installed; run pip install wandb") from None
        self._run = wandb.init(project="cramming_train", name=run_name, dir=str(folder), resume="allow", id=run_name)

    def scalars(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


_TRACKERS: dict[str, Callable[[Path, str], Tracker]] = {"tensorboard": _TensorBoard, "wandb": _WandB}
TRACKER_NAMES = tuple(_TRACKERS)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
