"""What the kernels of the LayerNorm/GELU family and rotary cost, counted in a simulator: ``python -m benchmarks.cost``.

Needs no GPU. Each operation's own launchers run, reductions included, and the PTX that they would launch is executed.
The counts are facts about that PTX; the fraction of copy bandwidth is an upper bound, from the least time that each
resource of a part needs, and never a speed. Liger and torch.compile run in the same way on the same shapes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from benchmarks import cost_cases, cost_count, cost_peers, cost_report
from benchmarks.cost_cases import DIRECTIONS, LANGUAGES, TRITON, Case
from benchmarks.cost_count import ACTIVATION, MULTIPROCESSORS, PARAMETER, PARTIAL, PARTS, STATISTIC, Counted
from cramkernels import library

SIMULATED_PART = "rtx3090"  # grids, and so all counts, are those of this part


@dataclass(frozen=True)
class Row:
    """One line of the table: whose kernels, for what."""

    case: Case
    direction: str
    language: str  # ours: CUDA C++ or Triton; else the peer

    def prepared(self, case: Case | None = None, part: str = SIMULATED_PART) -> tuple[Callable, Callable, dict]:
        """(simulation, call, inputs)."""
        case = case or self.case
        inputs = case.inputs(self.direction)
        if self.language in LANGUAGES:
            if not case.written_in(self.language):
                raise cost_peers.Absent("has no kernel for it")
            return cost_cases.simulation(self.language), case.call(self.language, self.direction, inputs), inputs
        call, inputs = cost_peers.peer_case(self.language, case, self.direction, inputs, MULTIPROCESSORS[part])
        return cost_cases.simulation(TRITON), call, inputs

    def counted(self, case: Case | None = None, multiprocessors: int = MULTIPROCESSORS[SIMULATED_PART]) -> Counted:
        """Run it."""
        simulation, call, inputs = self.prepared(case)
        return cost_count.counted(simulation, call, inputs, multiprocessors)

    def loop_conflicts(self, rows: int = 64) -> int:
        """Bank conflicts that twice as many rows add on the same grid: those of the loops over rows."""
        once, twice = (self.counted(replace(self.case, rows=n), 2) for n in (rows, 2 * rows))
        return twice.bank_conflicts - once.bank_conflicts

    def measured(self) -> dict:
        """Everything about this row, as plain values."""
        case, facts = self.case, self.described()
        try:
            counts = self.counted()
            grids = {part: self._grid(part) for part in PARTS}
        except cost_peers.Absent as reason:
            return facts | {"absent": str(reason)}
        compulsory, worst = case.compulsory(self.direction), counts.worst()
        bounds = {part: cost_count.bound(counts, compulsory, part, grids[part]) for part in PARTS}
        partials = counts.of(PARTIAL)
        return facts | {
            "compulsory_bytes": compulsory,
            "worst_request_ratio": round(worst.ratio, 4),
            "worst_tensor": worst.name,
            "footprint_ratio": round(counts.footprint(ACTIVATION, STATISTIC) / compulsory, 4),
            # partial sums as they are written: Liger leaves their sum to torch, uncounted
            "dram_bytes": counts.footprint(ACTIVATION, STATISTIC) + sum(tensor.bytes for tensor in partials),
            "requested_bytes": {
                kind: sum(tensor.loaded + tensor.stored for tensor in counts.of(kind))
                for kind in (ACTIVATION, STATISTIC, PARAMETER, PARTIAL)
            },
            "partial_bytes": sum(tensor.bytes for tensor in partials),
            "bank_conflicts": counts.bank_conflicts,
            "loop_bank_conflicts": self.loop_conflicts() if counts.bank_conflicts else 0,
            "instructions_per_element": round(32 * counts.warp_instructions / case.elements, 2),
            "issued_per_element": round(32 * counts.issued / case.elements, 2),
            "bounds": {part: {"fraction": round(b.fraction, 3), "pipe": b.pipe} for part, b in bounds.items()},
            "launches": [
                {"kernel": name, "ctas": stats.ctas, "warp_instructions": stats.total_warp_instructions}
                for name, stats in counts.launches
            ],
        }

    def described(self) -> dict:
        """The row's name."""
        case = self.case
        return {
            "operation": case.op,
            "variant": case.variant,
            "dtype": str(case.dtype).removeprefix("torch."),
            "shape": f"{case.rows}x{case.columns}",
            "direction": self.direction,
            "language": self.language,
        }

    def _grid(self, part: str) -> list[int]:
        simulation, call, _ = self.prepared(part=part)
        return cost_count.grids(simulation, call, MULTIPROCESSORS[part])


def rows_of(cases: list[Case]) -> list[Row]:
    """Ours in both languages, then the peers that have the operation, one shape and direction together."""
    chosen = []
    for case in cases:
        peers = cost_peers.PEERS if cost_peers.compared(case) else ()
        chosen += [Row(case, direction, language) for direction in DIRECTIONS for language in (*LANGUAGES, *peers)]
    return chosen


def measure(row: Row) -> dict:
    """In a worker process."""
    obstacle()
    return row.measured()


def obstacle() -> str | None:
    """Why nothing can be counted here, or None."""
    if (missing := cost_count.obstacle()) is not None:
        return missing
    if isinstance(library.load(), str):
        return library.load()
    return None if cost_cases.cuda_compiler() else "the cost table needs nvcc, which is not installed"


def main(arguments: list[str] | None = None) -> int:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096, help="tokens (default 4096)")
    parser.add_argument("--widths", type=int, nargs="+", default=[768, 1024], help="hidden sizes (default 768 1024)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cost"), help="folder for the results")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    options = parser.parse_args(arguments)
    if (missing := obstacle()) is not None:
        print(f"benchmarks.cost: {missing}", file=sys.stderr)
        return 2
    rows = rows_of(cost_cases.cases(options.rows, options.widths))
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        results = []
        for result in pool.map(measure, rows):
            results.append(result)
            print(f"\r{len(results)} of {len(rows)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    command = f"python -m benchmarks.cost --rows {options.rows} --widths {' '.join(map(str, options.widths))}"
    print(cost_report.text(results))
    cost_report.write(options.out, results, command, cost_peers.versions())
    return 0


if __name__ == "__main__":
    sys.exit(main())
