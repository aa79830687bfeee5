"""Committed ratios of our time to a peer's, per machine, and the rule that holds new measurements to them.

A file a machine, ``benchmarks/results/floors/<key>.json``: benchmark -> peer -> ratio, the median of several runs. A
ratio may exceed the committed one by ``ALLOWANCE``, which is less than the 20 % that must not pass and more than the
noise that is left. What has no committed ratio is written there, named, and held to loose ceilings by its test.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).with_name("results") / "floors"
ALLOWANCE = 1.12
ATTEMPTS = 4
Ratios = dict[str, float]


class TooSlow(AssertionError):
    """A ratio above its floor in every attempt."""


class Floors:
    """The file of one machine."""

    def __init__(self, key: str, folder: Path = FOLDER):
        self.path = folder / f"{key}.json"
        self.committed: dict[str, Ratios] = read(self.path) if self.path.exists() else {}
        self.fresh: dict[str, Ratios] = {}

    def exceeded(self, name: str, ratios: Ratios) -> list[str]:
        """A line a peer that we are too slow against; ratios without a floor are kept for :meth:`write`."""
        known = self.committed.get(name, {})
        return [
            f"{ratio:.3f} x {peer}'s time, committed {known[peer]:.3f}, allowed {ALLOWANCE * known[peer]:.3f}"
            for peer, ratio in ratios.items()
            if peer in known and ratio > ALLOWANCE * known[peer]
        ]

    def hold(self, name: str, measure: Callable[[], Ratios], ceilings: Ratios | None = None) -> Ratios:
        """Measure; go on measuring, up to ``ATTEMPTS`` times, while a floor or a ceiling is exceeded: then TooSlow.

        A slower operation stays slower, a disturbance passes. ``ceilings``: for machines without floors.
        """
        for attempt in range(ATTEMPTS):
            time.sleep(attempt)  # what disturbs may pass
            ratios = measure()
            exceeded = self.exceeded(name, ratios)
            for peer, ceiling in (ceilings or {}).items():
                if ratios.get(peer, 0) > ceiling:
                    exceeded.append(f"{ratios[peer]:.3f} x {peer}'s time, {ceiling} on any machine")
            if not exceeded:
                break
        else:
            raise TooSlow(f"{name}: {'; '.join(exceeded)} ({self.path.name}, {ATTEMPTS} attempts)")
        known = self.committed.get(name, {})
        if new := {peer: round(ratio, 4) for peer, ratio in ratios.items() if peer not in known}:
            self.fresh[name] = new
        return ratios

    def write(self) -> Path | None:
        """Add what had no floor, in one step; None where there was nothing new."""
        if not self.fresh:
            return None
        merged = {name: {**self.committed.get(name, {}), **self.fresh.get(name, {})}
                  for name in sorted({*self.committed, *self.fresh})}  # fmt: skip
        return store(self.path, merged)


def read(path: Path) -> dict[str, Ratios]:
    """ValueError that names the file where it is not one of ours."""
    try:
        content = json.loads(path.read_text())
        return {name: {peer: float(ratio) for peer, ratio in ratios.items()} for name, ratios in content.items()}
    except (ValueError, AttributeError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no file of floors ({error}); delete it to have it written anew") from None


def store(path: Path, floors: dict[str, Ratios]) -> Path:
    """A line a benchmark; the file is replaced in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(ratios)}" for name, ratios in sorted(floors.items()))
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text("{\n" + lines + "\n}\n")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return path


def medians(runs: list[dict[str, Ratios]]) -> tuple[dict[str, Ratios], float]:
    """Of several runs: the median of each ratio, and the largest departure of a single one from it, as a factor."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for name, ratios in run.items():
            for peer, ratio in ratios.items():
                found.setdefault(name, {}).setdefault(peer, []).append(ratio)
    middle = {name: {peer: round(statistics.median(all_), 4) for peer, all_ in peers.items()}
              for name, peers in found.items()}  # fmt: skip
    worst = max(
        (max(max(all_) / middle[name][peer], middle[name][peer] / min(all_))
         for name, peers in found.items() for peer, all_ in peers.items()),
        default=1.0,
    )  # fmt: skip
    return middle, worst


def main(arguments: list[str] | None = None) -> int:
    """Make a machine's file of several runs' files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floors", description=main.__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="files as the benchmarks write them, a run each")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    options = parser.parse_args(arguments)
    try:
        middle, worst = medians([read(path) for path in options.files])
        store(options.out, middle)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: medians of {len(options.files)} runs; the worst single ratio departs {worst - 1:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
