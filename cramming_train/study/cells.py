"""The cells of a study: one contender, one seed, one run of ``pretrain`` in a process of its own.

A finished cell is a line of cells.jsonl, written at once. What a run leaves behind lies in a folder beside it, so that
a cell that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cramming_train.errors import Interrupted, RunError, UsageError
from cramming_train.runs import SUMMARY_FILE, Run, read_json
from cramming_train.study.contender import Contender
from cramming_train.study.text import characters_per_token
from cramming_train.tracking import effective_events

LINES_FILE = "cells.jsonl"
STOP_SECONDS = 60.0  # what a run may take to save itself
STOPPED = {128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM}


@dataclass(frozen=True)
class Cell:
    """A contender and a seed."""

    contender: Contender
    seed: int

    @property
    def run_name(self) -> str:
        """Of the run's folder: the recipe, the seed, and what tells it from a changed one."""
        return f"{self.contender.name}-{self.contender.mark}-seed{self.seed}"


def cells_in_turn(contenders: Sequence[Contender], seeds: int) -> list[Cell]:
    """Seed by seed, all contenders in each, every time beginning with another: what drifts on the machine meets all."""
    turned = [[*contenders[s % len(contenders) :], *contenders[: s % len(contenders)]] for s in range(seeds)]
    return [Cell(contender, seed) for seed, order in enumerate(turned) for contender in order]


class Results:
    """cells.jsonl of a study's folder."""

    def __init__(self, folder: Path):
        self._path = folder / LINES_FILE
        self._lines: dict[tuple[str, int], dict[str, Any]] = {}
        if self._path.exists():
            for text in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    line = json.loads(text)
                except ValueError:
                    continue  # cut short by a kill
                self._lines[line["label"], line["seed"]] = line

    def get(self, cell: Cell) -> dict[str, Any] | None:
        """The line of a finished cell; UsageError where its label stands for something else in this folder."""
        line = self._lines.get((cell.contender.label, cell.seed))
        if line is not None and line["mark"] != cell.contender.mark:
            raise UsageError(
                f"{self._path}: {cell.contender.label!r} stands for another recipe or budget there; "
                "give it another label, or another --out"
            )
        return line

    def append(self, line: dict[str, Any]) -> None:
        """Keep a finished cell."""
        before = self._path.read_bytes() if self._path.exists() else b""
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(("\n" if before and not before.endswith(b"\n") else "") + json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._lines[line["label"], line["seed"]] = line


@dataclass(frozen=True)
class Runner:
    """Trains cells.

    Attributes:
        runs: folder of the runs.
        options: further arguments of pretrain, such as ``--data``.
        keep: leave the checkpoints of finished cells, for an evaluation; else they are removed.
    """

    runs: Path
    options: tuple[str, ...]
    keep: bool
    clock: Callable[[], float] = time.monotonic

    def train(self, cell: Cell, deadline: float | None) -> dict[str, Any] | None:
        """The cell's line, or None where the deadline (of the clock) stopped it: its run is saved then.

        Raises:
            RunError: the run failed; its last words are shown. KeyboardInterrupt, Interrupted: the run is saved.
        """
        run = Run((self.runs / cell.run_name).resolve())
        if run.summary is None and not self._pretrain(run, cell, deadline):
            return None
        line = describe(run, cell)
        if not self.keep:
            shutil.rmtree(run.checkpoints, ignore_errors=True)
        return line

    def _pretrain(self, run: Run, cell: Cell, deadline: float | None) -> bool:
        """Whether it came to its end."""
        if not run.checkpoints.is_dir():
            shutil.rmtree(run.path, ignore_errors=True)  # killed before there was anything to go on from
        arguments = ["--resume", "--name", run.name] if run.path.exists() else self._start(cell)
        command = [sys.executable, "-m", "cramming_train.pretrain", *arguments, "--out", str(self.runs)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            status = process.wait(None if deadline is None else max(deadline - self.clock(), 0))
        except (subprocess.TimeoutExpired, KeyboardInterrupt, Interrupted) as stop:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if not isinstance(stop, subprocess.TimeoutExpired):
                raise
            return run.summary is not None
        if status in STOPPED:
            raise KeyboardInterrupt
        if status != 0:
            raise RunError(f"{cell.contender.label}, seed {cell.seed}: pretrain ended with status {status}; see above")
        return True

    def _start(self, cell: Cell) -> list[str]:
        contender = cell.contender
        budget = ["--tokens", contender.tokens] if contender.tokens is not None else ["--hours", contender.hours]
        overrides = ["--set", *contender.overrides] if contender.overrides else []
        name = ["--name", cell.run_name, "--seed", cell.seed]
        return [str(word) for word in ("--recipe", contender.name, *overrides, *budget, *name, *self.options)]


def describe(run: Run, cell: Cell) -> dict[str, Any]:
    """The line of a finished run."""
    summary, prepared = read_json(run.path / SUMMARY_FILE), run.prepared()
    validations = [event for event in effective_events(run.log) if event["event"] == "validation"]
    contender = cell.contender
    return {
        "label": contender.label,
        "seed": cell.seed,
        "mark": contender.mark,
        "recipe": contender.name,
        "overrides": list(contender.overrides),
        "budget_tokens": contender.tokens,
        "budget_hours": contender.hours,
        "loss": summary["validation_loss"],
        "accuracy": summary["validation_accuracy"],
        "bits_per_character": summary["validation_loss"] / 0.6931471805599453 / characters_per_token(prepared),
        "validation_rows": summary["validation_rows"],
        "tokens": summary["tokens"],
        "optimizer_steps": summary["optimizer_steps"],
        "parameters": summary["parameters"],
        "train_seconds": summary["train_seconds"],
        "step_seconds": summary["step_seconds"],
        "processor_seconds": summary["processor_seconds"],
        "curve": [[e["tokens"], e["step_seconds"], e["processor_seconds"], e["loss"]] for e in validations],
        "device": summary["device"],
        "versions": summary["versions"],
        "held_out": prepared.metadata["sha256"]["validation"][:12],
        "tokenizer": hashlib.sha256((run.path / "tokenizer.json").read_bytes()).hexdigest()[:12],
        "finished": summary["finished"],
    }
