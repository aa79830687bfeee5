"""``python -m cramming_train.plan --hours 24 [--gpu rtx3090]``: what each recipe would do in that time.

Nothing is trained. Rates are measured on this machine, or with ``--gpu`` taken from a data sheet.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from cramming_train.errors import UsageError, command
from cramming_train.machine import device_name
from cramming_train.parts import PARTS
from cramming_train.prediction import Prediction, predict
from cramming_train.rates import Machine, measured, tabulated
from cramming_train.recipes import BUNDLES, apply_overrides, get_recipe
from cramming_train.scaling import choose, is_sized

HEADER = ("recipe", "tokens/s", "tokens", "steps", "memory", "micro-batch")
UNPROVEN = "Predictions for a GPU have not been compared with a measured run."


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="python -m cramming_train.plan", description=__doc__)
    parser.add_argument("--hours", type=float, default=24.0, help="wall-clock budget in hours (default 24)")
    parser.add_argument("--gpu", metavar="NAME", help=f"predict for this part by its data sheet: {', '.join(PARTS)}")
    parser.add_argument("--recipe", nargs="+", metavar="NAME", dest="recipes", help="bundles of recipes (default all)")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="overrides",
                        help="change the recipes, as in cramming_train.pretrain")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the predictions there as well, one a line")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    arguments = build_parser().parse_args(argv)
    if not (arguments.hours > 0 and math.isfinite(arguments.hours)):
        raise UsageError(f"--hours {arguments.hours}: want a positive number")
    recipes = {name: apply_overrides(get_recipe(name), arguments.overrides) for name in arguments.recipes or BUNDLES}
    machine = this_machine() if arguments.gpu is None else tabulated(arguments.gpu)
    choices = [choose(machine, arguments.hours) for name in recipes if is_sized(name, arguments.overrides)]
    recipes |= {choice.recipe.name: apply_overrides(choice.recipe, arguments.overrides) for choice in choices}
    predictions = [predict(recipe, machine, arguments.hours) for recipe in recipes.values()]
    show(predictions, machine, arguments.hours)
    for choice in choices:
        print(f"{choice}\n  {choice.expectation}")
    if arguments.json is not None:
        arguments.json.write_text("".join(json.dumps(p.to_dict()) + "\n" for p in predictions), encoding="utf-8")
    return 0


def this_machine(device: torch.device | None = None) -> Machine:
    """The given device, or a GPU where there is one; its rates are measured."""
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return measured(device, device_name(device))


def show(predictions: list[Prediction], machine: Machine, hours: float) -> None:
    """A table, and what it is worth."""
    print(f"Predicted, not measured: {hours:g} hours on {machine.name}")
    rows = [HEADER, *map(cells, predictions)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        print("  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]))
    print(f"rates: {machine.source}")
    for rates in dict.fromkeys(rates_in_words(p) for p in predictions):
        print(f"  {rates}")
    print("not counted: launches, Python, validation, checkpoints; small models will be slower on a GPU")
    if machine.device_type == "cuda":
        print(UNPROVEN)


def cells(p: Prediction) -> tuple[str, ...]:
    """A line of the table."""
    rows = f"{p.micro_batch_rows} rows" if p.fits else "none fits"
    return (
        p.recipe, f"{p.tokens_per_second:,.0f}", amount(p.tokens), f"{p.optimizer_steps:,}",
        f"{p.memory_bytes / 1e9:.1f} GB", rows,
    )  # fmt: skip


def in_a_line(p: Prediction) -> str:
    """For ``pretrain --dry-run``."""
    rate = f"{p.tokens_per_second:,.0f} tokens/s ({rates_in_words(p)})"
    rows = f"{p.micro_batch_rows} rows a micro-batch" + ("" if p.fits else ", which do not fit")
    amounts = f"{amount(p.tokens)} tokens and {p.optimizer_steps:,} steps in {p.hours:g} hours"
    return f"{rate}: {amounts}; {p.memory_bytes / 1e9:.1f} GB at {rows}"


def rates_in_words(p: Prediction) -> str:
    """The rates that a prediction stands on."""
    gemm, copy = p.gemm_flops_per_second / 1e12, p.copy_bytes_per_second / 1e9
    return f"{p.precision}: {gemm:.3g} TFLOP/s of matrix products, {copy:.3g} GB/s of copies"


def amount(tokens: int) -> str:
    """1.23 G, 4.56 M or the number."""
    for unit, size in (("G", 10**9), ("M", 10**6)):
        if tokens >= size:
            return f"{tokens / size:.2f} {unit}"
    return f"{tokens:,}"


if __name__ == "__main__":
    sys.exit(main())
