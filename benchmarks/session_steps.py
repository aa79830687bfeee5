"""What a session on a card does, as data: the steps, their commands, and their shares of the time."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # where the commands run
PRETRAINING_HOURS, OF_MINUTES = 0.0833, 20  # five minutes of a session of twenty; less of a shorter one


@dataclass(frozen=True)
class Step:
    """A command. ``share`` of the session's time, to which what earlier steps left over is added."""

    name: str
    what: str  # in words
    command: tuple[str, ...]
    share: float
    keep: Path | None = None  # a folder of which the small files belong to the results


def steps(folder: Path, minutes: float, data: str) -> list[Step]:
    """In order; each can be run by hand as it stands."""
    python = sys.executable, "-m"
    results = os.path.relpath(folder, ROOT) if folder.is_relative_to(ROOT) else str(folder)
    runs, name = Path("runs"), f"gpu-session-{time.strftime('%Y%m%d-%H%M%S')}"
    hours = PRETRAINING_HOURS * min(1.0, minutes / OF_MINUTES)
    return [
        Step("info", "what serves which operation here", (*python, "cramkernels.info"), 0.01),
        Step(
            "kernel-tests", "every operation and backend against fp64",
            (*python, "pytest", "tests/gpu", "-q", "-n", "0", "-p", "no:cacheprovider"), 0.22,
        ),
        Step("tune", "launch configurations of attention in Triton", (*python, "cramkernels.tune"), 0.15),
        Step(
            "benchmarks", "kernels against measured ceilings and peers, end to end",
            (*python, "pytest", "benchmarks", "--benchmark-only", "-q", "-p", "no:cacheprovider",
             "--results", results), 0.24,
        ),
        Step(
            "pretraining", f"{60 * hours:.1f} minutes of pretraining from scratch, with its proof",
            (*python, "cramming_train.pretrain", "--recipe", "crammed-bert", "--hours", f"{hours:.4f}", "--verify",
             "--data", data, "--out", str(runs), "--name", name), 0.36, keep=runs / name,
        ),
        Step("report", "pages and pictures of the benchmarks", (*python, "benchmarks.report", results), 0.02),
    ]  # fmt: skip
