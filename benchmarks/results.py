"""Results as JSON lines: ``results.jsonl`` in a folder, which ``python -m benchmarks.report`` makes pages of.

The first line is the machine: {"kind": "machine", "name", "key", "threads", "torch", "ceilings": {...}, ...}. Then a
line a measurement:
    kind        "operation" or "training"
    name        of the benchmark, as in the file of floors
    operation, family, tokens, width    of an operation; ``recipe`` of training
    direction   "forward", "backward" (of a GPU: the step's time without the forward's) or "step", both together
    seconds     implementer -> median seconds a call; "ours" among them
    ratios      peer -> ours over theirs, the median over the rounds
    bytes, flops, share_of_floor        what has to be moved and multiplied, and the least time for it at the measured
                ceilings over our time
    tokens_per_second, model_flops_utilization    of training, by implementer; the FLOPs over ceilings of the machine
"""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

FILE = "results.jsonl"
FOLDER = Path(__file__).with_name("results")
RATES = ("copy_bytes_per_second", "gemm_flops_per_second")
PACKAGES = ("triton", "liger-kernel", "flash-attn")


class BadFolder(Exception):
    """A folder without results that can be read; the message says what is wrong."""


class Results:
    """Collects lines, and writes them in one step. Lines of benchmarks that did not run this time are kept."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.machine: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []

    def add(self, **row: Any) -> None:
        """A measurement."""
        self.rows.append(row)

    def write(self) -> Path | None:
        """None where nothing was measured."""
        if not self.rows:
            return None
        fresh = {(row["name"], row["direction"]) for row in self.rows}
        try:
            _, before = read(self.folder)
        except BadFolder:
            before = []
        kept = [row for row in before if (row["name"], row["direction"]) not in fresh]
        return write(self.folder, self.machine, kept + self.rows)


def write(folder: Path, machine: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """In one step."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f".{FILE}.{os.getpid()}"
    lines = [{"kind": "machine", **machine}, *rows]
    try:
        fresh.write_text("".join(json.dumps(line) + "\n" for line in lines))
        fresh.replace(folder / FILE)
    finally:
        fresh.unlink(missing_ok=True)
    return folder / FILE


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The machine and the measurements. BadFolder where there are none."""
    path = folder / FILE
    if not folder.is_dir():
        raise BadFolder(f"{folder}: no such folder; run pytest benchmarks --benchmark-only first")
    if not path.is_file():
        raise BadFolder(f"{folder}: no {FILE} in it; run pytest benchmarks --benchmark-only first")
    try:
        machine, *rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        if machine.pop("kind") != "machine" or "name" not in machine:
            raise ValueError("the first line is not the machine's")
        machine["dtype"], *(machine["ceilings"][rate] / 1 for rate in RATES)
        for row in rows:
            row["name"], row["direction"], row["family"], row["seconds"]["ours"], row["ratios"].items()
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise BadFolder(f"{path}: damaged ({type(error).__name__}: {error}); delete it and measure again") from None
    return machine, rows


def versions() -> dict[str, str]:
    """Of Python and the packages that matter."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            pass
    return found
