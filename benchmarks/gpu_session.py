"""``python -m benchmarks.gpu_session --minutes 20``: all that a card can prove and measure, in one folder.

Kernel tests, tuning, benchmarks, five minutes of pretraining with its proof, and a page of it all, ready to be posted
and committed: benchmarks/results/<card>/summary.md. A step that fails is recorded, and the next goes on. After Ctrl-C,
or to repeat what failed, run it again: what has passed is kept (--again: nothing is).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import devices, session_machine, session_summary
from benchmarks.results import FOLDER
from benchmarks.session_steps import ROOT, Step, steps

STATE = "session.json"
KEPT = ("*.json", "*.jsonl", "*.md", "report/*.md", "report/*.png")
KEPT_BYTES = 5 << 20  # of a file: what is larger is not to be committed
PATIENCE = 30.0  # seconds for a step that was asked to stop
Runner = Callable[[Sequence[str], Path, float], int | None]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    options = parser().parse_args(argv)
    if options.minutes <= 0:
        return refused(f"--minutes: got {options.minutes:g}, want a positive number")
    if not torch.cuda.is_available():
        built = torch.version.cuda
        remedy = "nvidia-smi must show a card" if built else "install a CUDA build of PyTorch (pytorch.org tells how)"
        return refused(f"there is no GPU here that torch {torch.__version__} can use: {remedy}, then run this again")
    folder = (options.out or FOLDER / devices.key(devices.present())).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Session(folder, options.minutes, steps(folder, options.minutes, options.data), options.again).run()
    except OSError as error:
        print(f"error: {folder}: {error.strerror or error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.gpu_session", description=__doc__.partition("\n\n")[0])
    made.add_argument("--minutes", type=float, default=20, help="of all steps together (default 20)")
    made.add_argument("--out", type=Path, help="folder of results (default benchmarks/results/<card>)")
    made.add_argument("--data", default="embedded", help="text to pretrain on, as in cramming_train.pretrain "
                      "(default embedded: nothing is downloaded)")  # fmt: skip
    made.add_argument("--again", action="store_true", help="repeat what has passed, too")
    return made


def refused(why: str) -> int:
    """One line, status 2."""
    print(f"error: {why}", file=sys.stderr)
    return 2


class Session:
    """The steps that are left, within the time. ``runner`` and ``facts`` are stood in for by tests."""

    def __init__(
        self,
        folder: Path,
        minutes: float,
        planned: list[Step],
        again: bool = False,
        runner: Runner | None = None,
        facts: Callable[[], dict[str, str]] = session_machine.facts,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.folder, self.planned, self.clock = folder, planned, clock
        self.deadline = clock() + 60 * minutes
        self.runner = runner or run_command
        before = {} if again else read_state(folder)
        self.state: dict[str, Any] = {
            "machine": facts(),
            "started": time.strftime("%Y-%m-%d %H:%M"),
            "planned": {step.name: step.what for step in planned},
            "steps": before.get("steps", {}),
        }

    def run(self) -> int:
        """0 where all passed, 1 where one did not, 130 after Ctrl-C."""
        status = 0
        for number, step in enumerate(self.planned):
            if self.state["steps"].get(step.name, {}).get("status") == "passed" and not self._is_last(step):
                print(f"{step.name}: passed before", flush=True)
                continue
            if self._run(step, self.planned[number:]) == "interrupted":
                status = 130
                break
        summary = session_summary.write(self.folder, self.state)
        passed = [name for name, step in self.state["steps"].items() if step["status"] == "passed"]
        print(f"{len(passed)} of {len(self.planned)} steps passed: {summary}")
        return status or int(len(passed) < len(self.planned))

    def _is_last(self, step: Step) -> bool:
        """The report is always made again, of what is there now."""
        return step is self.planned[-1]

    def _run(self, step: Step, left: list[Step]) -> str:
        """One step, into its log; its state is stored before and after."""
        remaining = self.deadline - self.clock()
        seconds = max(remaining * step.share / sum(other.share for other in left), 0.0)
        print(f"{step.name}: {step.what}, at most {seconds / 60:.1f} minutes", flush=True)
        log, started = self.folder / f"{step.name}.log", self.clock()
        try:
            code = self.runner(step.command, log, seconds) if seconds else None
            status = "timed out" if code is None else "passed" if code == 0 else f"failed ({code})"
        except KeyboardInterrupt:
            status = "interrupted"
        except OSError as error:
            status = f"failed ({error})"
        took = self.clock() - started
        self.state["steps"][step.name] = {
            "status": status, "seconds": round(took, 1), "command": ["python", *step.command[1:]],
        }  # fmt: skip
        if step.keep is not None:
            keep(ROOT / step.keep, self.folder / step.name)
        write_state(self.folder, self.state)
        session_summary.write(self.folder, self.state)
        print(f"{step.name}: {status} after {took:.0f} s ({log.name})", flush=True)
        return status


def run_command(command: Sequence[str], log: Path, seconds: float) -> int | None:
    """The exit status, or None where the time was up. Its output goes to ``log``.

    Stopped, by time or Ctrl-C, it may end in its own way (pretraining saves), and is killed where it does not.
    """
    with open(log, "wb") as out:
        process = subprocess.Popen(
            list(command), stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                stop(process)


def stop(process: subprocess.Popen) -> None:
    """And all that it started."""
    for sent, patience in ((signal.SIGINT, PATIENCE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, sent)
            process.wait(patience)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def keep(source: Path, target: Path) -> None:
    """Copy the small files that say what came of a run; the weights stay where they are."""
    for pattern in KEPT:
        for path in sorted(source.glob(pattern)):
            if path.is_file() and path.stat().st_size <= KEPT_BYTES:
                target.mkdir(exist_ok=True)
                shutil.copyfile(path, target / path.name)


def read_state(folder: Path) -> dict[str, Any]:
    """Of the session before; nothing where there was none or its file is damaged."""
    try:
        state = json.loads((folder / STATE).read_text())
        return state if all("status" in step for step in state["steps"].values()) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """In one step."""
    fresh = folder / f".{STATE}.{os.getpid()}"
    fresh.write_text(json.dumps(state, indent=1) + "\n")
    fresh.replace(folder / STATE)


if __name__ == "__main__":
    sys.exit(main())
