"""What launch configurations of attention in Triton take: ``python -m benchmarks.tilings [--candidates]``.

Needs no GPU. Each is compiled for each part: shared memory, registers, spilled bytes and resident warps are facts. Time
is the least that the binding resource of a part would need for the counted instructions and bytes, relative to the
table's row, on parts whose PTX the simulator executes: a bound for comparison, never a speed. The rows of
cramkernels/configurations.py were chosen from this.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.cost_count import MULTIPROCESSORS, obstacle
from benchmarks.resources import LIMITS
from cramkernels import configurations, tune
from cramkernels.configurations import BACKWARD, Key, Tiling
from tests.simulation.triton import compiled_only, simulated, taken

PARTS = {80: "a100", 86: "rtx3090", 89: "rtx4090"}  # that are executed; others are compiled
TOKENS = 512


def is_triton(key: Key) -> bool:
    """Whether what a row launches is compiled here; what CUDA C++ takes is in benchmarks/results/resources.json."""
    return key.kernel.startswith("triton.")


def call_of(key: Key) -> Callable[[], object]:
    """The tuner's problem, small."""
    return tune.problem(key, torch.device("cpu"), TOKENS)


def measure(key: Key, tiling: Tiling, part: int) -> dict[str, int]:
    """Of the main kernel of the operation."""
    with compiled_only(part) as kernels:
        call = call_of(key)
        with configurations.override(key, tiling):
            call()
    kernel = kernels[-1]
    registers, spilled = taken(kernel, part)
    shared, threads = kernel.metadata.shared, 32 * kernel.metadata.num_warps
    fits = shared <= configurations.SHARED_BYTES[part]
    resident = LIMITS[part].resident(threads, registers, shared) * threads // 32 if fits else 0
    return {"shared": shared, "registers": registers, "spilled": spilled, "warps": resident}


def bound(key: Key, tiling: Tiling, part: int) -> tuple[float, str]:
    """(least seconds, what binds) of all launches of the operation."""
    with simulated(part, check="none") as executed:
        call = call_of(key)
        with configurations.override(key, tiling):
            call()
    import ptxsim  # whose folder is on the path by now

    last = 2 if key.kernel == BACKWARD and not tiling.whole else 1  # delta, too
    # as if the grid filled every multiprocessor evenly, which the small problem does not
    stats = [replace(result.stats, ctas=math.lcm(*MULTIPROCESSORS.values())) for _, result in executed[-last:]]
    estimates = [ptxsim.estimate(one, PARTS[part]) for one in stats]
    return sum(e.seconds for e in estimates), max(estimates, key=lambda e: e.seconds).binding


def lines(key: Key, part: int, candidates: bool) -> list[str]:
    """The table's row, then the candidates."""
    own = configurations.ROWS[key, part]
    first = bound(key, own, part)[0] if part in PARTS else 0.0
    made = []
    for tiling in configurations.candidates(key, part) if candidates else [own]:
        try:
            facts = measure(key, tiling, part)
            words = ", ".join(f"{name} {value}" for name, value in facts.items())
            if part in PARTS:
                seconds, pipe = bound(key, tiling, part)
                words += f", bound {seconds / first:.2f} {pipe}"
        except Exception as error:  # of the compiler: this tile cannot be
            words = f"does not compile: {type(error).__name__}"
        made.append(
            f"sm_{part} {key.kernel} {key.bits} D={key.head_dim} {key.longest or 'any':>3} {tuple(tiling)}: {words}"
        )
    return made


def main(arguments: list[str] | None = None) -> int:
    """Print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tilings", description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", action="store_true", help="everything that the tuner would time, not the table")
    parser.add_argument("--parts", type=int, nargs="+", default=configurations.AMPERE_ON, help="such as 86 120")
    options = parser.parse_args(arguments)
    if (missing := obstacle()) is not None:
        print(f"benchmarks.tilings: {missing}", file=sys.stderr)
        return 2
    for part in options.parts:
        for key in filter(is_triton, configurations.keys_of(part)):
            for line in lines(key, part, options.candidates):
                print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
