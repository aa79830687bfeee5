"""``python -m cramming_train.compare --recipes A B --tokens 1000000``: recipes side by side under equal budgets.

Every recipe is trained from scratch with every seed, each run with a schedule that ends at its own budget, in turn, on
the same text; all are judged on the same held-out rows and masks. A contender is one argument:
``'[LABEL:] RECIPE [KEY=VALUE ...] [tokens=N | hours=H]'``. What is finished is kept; the same command goes on.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cramming_train.data.prepare import AUTO
from cramming_train.display import duration
from cramming_train.errors import UsageError, command
from cramming_train.signals import terminate_by_exception
from cramming_train.study.cells import Cell, Results, Runner, cells_in_turn
from cramming_train.study.contender import Contender, parse_contenders
from cramming_train.study.pictures import draw
from cramming_train.study.table import CLOCKS, make_rows, markdown


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="python -m cramming_train.compare", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--recipes", nargs="+", required=True, metavar="CONTENDER",
        help="'[LABEL:] RECIPE [KEY=VALUE ...] [tokens=N | hours=H]'; others are held to the first",
    )  # fmt: skip
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--tokens", type=int, help="budget of a run in tokens")
    budget.add_argument("--hours", type=float, help="budget of a run in hours")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each recipe (default 1)")
    parser.add_argument("--data", nargs="+", default=[AUTO], metavar="SOURCE", help="as in cramming_train.pretrain")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the results: cells.jsonl, table.md, a picture"
    )
    parser.add_argument("--runs", type=Path, help="folder of the runs (default OUT/runs)")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints of finished runs, to evaluate them")
    parser.add_argument("--threads", type=int, help="of a run on a CPU (default: PyTorch's)")
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall",
        help="time of the table; a busy machine's is better told by its processors (one thread)",
    )  # fmt: skip
    parser.add_argument("--max-minutes", type=float, help="stop then, everything saved; the same command goes on")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    arguments = build_parser().parse_args(argv)
    for name in ("tokens", "hours", "seeds", "threads", "max_minutes"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"--{name.replace('_', '-')} {value}: want a positive number")
    contenders = parse_contenders(arguments.recipes, arguments.tokens, arguments.hours)
    if arguments.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # of the runs, which inherit it
    arguments.out.mkdir(parents=True, exist_ok=True)
    runner = Runner(arguments.runs or arguments.out / "runs", ("--data", *arguments.data), arguments.keep)
    results = Results(arguments.out)
    cells = cells_in_turn(contenders, arguments.seeds)
    with terminate_by_exception():
        ended = run(cells, results, runner, arguments.max_minutes)
    finished = [line for cell in cells if (line := results.get(cell)) is not None]
    page = write_page(arguments.out, contenders, finished, arguments.clock, sys.argv[1:] if argv is None else argv)
    print(page)
    if not ended:
        print(f"{len(finished)} of {len(cells)} runs finished; the same command goes on", file=sys.stderr)
    return 0


def run(cells: Sequence[Cell], results: Results, runner: Runner, max_minutes: float | None) -> bool:
    """Train what is missing; False where time ended before."""
    deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
    left = [cell for cell in cells if results.get(cell) is None]
    for number, cell in enumerate(left, 1):
        if deadline is not None and time.monotonic() >= deadline:
            return False
        _say(f"[{number}/{len(left)}] {cell.contender.label}, seed {cell.seed}, {cell.contender.budget}")
        started = time.monotonic()
        line = runner.train(cell, deadline)
        if line is None:
            return False
        results.append(line)
        _say(f"  held-out loss {line['loss']:.4f}, accuracy {100 * line['accuracy']:.2f} %, "
             f"{line['tokens']:,} tokens in {line['step_seconds']:.0f} s of steps; "
             f"{duration(time.monotonic() - started)} in all")  # fmt: skip
    return True


def write_page(
    folder: Path, contenders: Sequence[Contender], lines: list[dict], clock: str, argv: Sequence[str]
) -> str:
    """table.md and the picture; returns the table."""
    labels = [contender.label for contender in contenders]
    table = markdown(make_rows(labels, lines, clock))
    shown = shlex.join(["python", "-m", "cramming_train.compare", *argv])
    machine = "; ".join(dict.fromkeys(f"{line['device']}, torch {line['versions']['torch']}" for line in lines))
    text = [
        "# Recipes compared", "", f"`{shown}`", "", f"Machine: {machine}.", "",
        f"Medians over seeds; spread: largest less smallest loss. A is {labels[0]}. Seconds are those spent in "
        f"optimizer steps, by the {clock} clock, without validations and checkpoints. Loss: nats on the held-out rows, "
        "15 % masked.",
        "", table, "",
    ]  # fmt: skip
    try:
        if lines:
            draw(folder / "loss.png", labels, lines, clock)
            text += ["![held-out loss](loss.png)", ""]
    except ImportError:
        _say("no picture: matplotlib is not installed (pip install matplotlib)")
    temporary = folder / ".writing-table.md"
    temporary.write_text("\n".join(text), encoding="utf-8")
    os.replace(temporary, folder / "table.md")
    return table


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
