"""What attention moves and computes, beside its peers: ``python -m benchmarks.cost_attention [--full] [--write]``.

Needs no GPU: each implementation's own launchers run, forward and backward, and the PTX for sm_80 that they would
launch is executed in a simulator. Bytes and instructions are counted, of two heads, which all others are like; times
are bounds that follow from the counts. ``--peer-path`` names the folder of the peers' files, which are read and never
kept (benchmarks/cost_attention_peers.py).
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

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import cost, cost_attention_peers, cost_attention_report, cost_cases, cost_count, resources
from benchmarks.cost_attention_peers import PEERS
from benchmarks.cost_cases import CUDA, DIRECTIONS, EXECUTED, LANGUAGES, TRITON, Named
from benchmarks.cost_count import ACTIVATION, MULTIPROCESSORS, PARAMETER, PARTIAL, PARTS, STATISTIC, Counted
from benchmarks.cost_peers import Absent
from cramkernels.attention import attention_with_lse
from tests.simulation.triton import compiled_only, taken

aten = torch.ops.aten
ARCHITECTURES = {"rtx3090": 86, "rtx4090": 89, "a100": 80, "h100": 90}
PACKED = {"qkv": ("q", "k", "v"), "dqkv": ("dq", "dk", "dv")}
TOKENS, COUNTED_HEADS = 16384, 2


@dataclass(frozen=True)
class Shape:
    """A batch of sequences of one length."""

    sequences: int
    length: int
    heads: int = 12
    head_dim: int = 64

    def __str__(self) -> str:
        return f"{self.sequences}x{self.length}"

    @property
    def tokens(self) -> int:
        """In all sequences."""
        return self.sequences * self.length

    @property
    def elements(self) -> int:
        """Of the output."""
        return self.tokens * self.heads * self.head_dim

    def compulsory(self, direction: str) -> int:
        """Bytes: q, k, v and out; or q, k, v, dout and three gradients; and the log-sum-exp."""
        tensors = {"forward": 4, "backward": 7}[direction]
        return tensors * 2 * self.elements + 4 * self.tokens * self.heads

    def flops(self, direction: str) -> int:
        """Of the products: two forward; five backward, with the scores computed again."""
        products = {"forward": 2, "backward": 5}[direction]
        return products * 2 * self.sequences * self.heads * self.length**2 * self.head_dim

    def floor(self, direction: str, part: str) -> float:
        """Seconds: the larger of a copy of the compulsory bytes and the products at the tensor cores' rate."""
        from ptxsim.cost import GPUS

        gpu = GPUS[part]
        rate = 2 * gpu.tensor["fp16_f32"] * gpu.sms * gpu.ghz * 1e9
        return max(self.compulsory(direction) / (gpu.dram_gbs * 1e9), self.flops(direction) / rate)


SHAPES = [Shape(TOKENS // length, length) for length in (128, 256, 512)]


class TorchBytes(TorchDispatchMode):
    """Bytes of what torch itself does between the launches: operands once, result once."""

    OPERATIONS = (aten.mul.Tensor, aten.copy_.default, aten.zero_.default, aten._to_copy.default, aten.clone.default)

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in self.OPERATIONS:
            read = args[1:] if function in (aten.copy_.default, aten.zero_.default) else args
            self.bytes += result.nbytes + sum(x.nbytes for x in read if isinstance(x, torch.Tensor))
        return result


Directions = dict[str, tuple[Callable[[], Named], Named]]  # direction -> (call, which returns its outputs; its inputs)


def _ours(shape: Shape) -> Directions:
    """The forward and then, of what it kept, the backward: through autograd, as in training."""
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(shape.tokens, 3, shape.heads, shape.head_dim, generator=generator).bfloat16().requires_grad_()
    dout = torch.randn(shape.tokens, shape.heads, shape.head_dim, generator=generator).bfloat16()
    cu_seqlens = torch.arange(0, shape.tokens + 1, shape.length, dtype=torch.int32)
    kept: Named = {"qkv": qkv, "dout": dout, "cu_seqlens": cu_seqlens}

    def forward() -> Named:
        out, lse = attention_with_lse(qkv, cu_seqlens, shape.length)
        kept.update(out=out, lse=lse)
        return {"out": out, "lse": lse}

    def backward() -> Named:
        return {"dqkv": torch.autograd.grad(kept["out"], qkv, dout)[0]}

    return {"forward": (forward, {"qkv": qkv, "cu_seqlens": cu_seqlens}), "backward": (backward, kept)}


def calls(language: str, shape: Shape, folder: Path | None = None) -> Directions:
    """Of ours or of a peer."""
    return _ours(shape) if language in LANGUAGES else cost_attention_peers.calls(language, shape, folder)


def simulation(language: str) -> Callable:
    """In which launches in this language execute."""
    return cost_cases.simulation(CUDA if language == CUDA else TRITON)


def measure(language: str, shape: Shape, folder: Path | None = None) -> list[dict]:
    """Both directions, as plain values; in a worker process, perhaps."""
    facts = {"language": language, "shape": str(shape), "length": shape.length}
    if (missing := cost.obstacle()) is not None:
        return [facts | {"direction": direction, "absent": missing} for direction in DIRECTIONS]
    few = replace(shape, heads=min(COUNTED_HEADS, shape.heads))
    try:
        facts |= cost_attention_peers.described(language)
        counts = {}
        for direction, (call, inputs) in calls(language, few, folder).items():
            with TorchBytes() as of_torch:
                counted = cost_count.counted(
                    simulation(language), call, inputs, MULTIPROCESSORS[cost.SIMULATED_PART], PACKED
                )
            counts[direction] = counted, of_torch.bytes
        spills = {direction: [0] * len(counted.launches) for direction, (counted, _) in counts.items()}
        if language != CUDA:  # a test holds every kernel of the library to that
            spills = _spills(language, few, folder)
        grids = {part: _grids(language, shape, folder, part) for part in PARTS}
    except Absent as reason:
        return [facts | {"direction": direction, "absent": str(reason)} for direction in DIRECTIONS]
    rows = []
    for direction, (counted, of_torch) in counts.items():
        row = facts | {"direction": direction, **_facts(counted, few, shape, direction)}
        row["spilled_bytes"] = max(spills[direction])
        counted = cost_count.with_spills(counted, spills[direction])
        row["torch_bytes"] = of_torch * shape.heads // few.heads
        bounds = {part: _bound(counted, few, shape, direction, part, grids[part][direction]) for part in PARTS}
        rows.append(row | {"bounds": bounds, "warps": resident_warps(counted)})
    return rows


def _facts(counted: Counted, few: Shape, shape: Shape, direction: str) -> dict:
    """Bytes for all heads."""
    more, compulsory, worst = shape.heads // few.heads, shape.compulsory(direction), counted.worst()
    moved = counted.of(ACTIVATION, STATISTIC, PARTIAL)
    dram = more * sum(x.footprint for x in moved)
    return {
        "compulsory_bytes": compulsory,
        "requested_bytes": more * sum(x.loaded + x.stored for x in moved),
        "index_bytes": more * sum(x.loaded for x in counted.of(PARAMETER)),
        "dram_bytes": dram,
        "footprint_ratio": round(dram / compulsory, 4),
        "worst_request_ratio": round(worst.ratio, 4),
        "worst_tensor": worst.name,
        "tensors": {
            x.name: [round(side / x.bytes, 4) for side in (x.loaded, x.stored, x.footprint)]
            for x in counted.of(ACTIVATION, STATISTIC)
        },
        "bank_conflicts": counted.bank_conflicts,
        "instructions_per_element": round(32 * counted.warp_instructions / few.elements, 2),
        "issued_per_element": round(32 * counted.issued / few.elements, 2),
        "launches": [name for name, _ in counted.launches],
    }


def _spills(language: str, shape: Shape, folder: Path | None) -> dict[str, list[int]]:
    """Bytes of a thread that each launch stores and loads for want of registers, by direction; none is executed."""
    found = {}
    for direction, (call, _) in calls(language, shape, folder).items():
        with compiled_only(EXECUTED) as kernels:
            call()
        found[direction] = [taken(kernel, EXECUTED)[1] for kernel in kernels]
    return found


def _grids(language: str, shape: Shape, folder: Path | None, part: str) -> dict[str, list[int]]:
    """CTAs of each launch, by direction; nothing is executed."""
    return {
        direction: cost_count.grids(simulation(language), call, MULTIPROCESSORS[part])
        for direction, (call, _) in calls(language, shape, folder).items()
    }


def _bound(counted: Counted, few: Shape, shape: Shape, direction: str, part: str, ctas: list[int]) -> dict:
    seconds, pipe = cost_count.least_seconds(counted, part, ctas)
    seconds *= shape.heads / few.heads
    ratio = seconds / shape.floor(direction, part)
    return {"microseconds": round(1e6 * seconds, 2), "of_floor": round(ratio, 3), "pipe": pipe}


def resident_warps(counted: Counted) -> dict[str, int]:
    """By part, of the launch that has the fewest; empty where the committed table lacks a kernel, as of Triton."""
    known = {(row.kernel, row.architecture): row.ctas * row.threads // 32 for row in resources.committed()[1]}
    names = {name for name, _ in counted.launches}
    found = {part: [known.get((name, number)) for name in names] for part, number in ARCHITECTURES.items()}
    return {part: min(warps) for part, warps in found.items() if None not in warps}


def main(arguments: list[str] | None = None) -> int:
    """Print the table; with --write store it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost_attention", description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="all lengths; without: sequences of 128 tokens alone")
    parser.add_argument(
        "--peer-path",
        type=Path,
        help=f"folder with {', '.join(p.file for p in PEERS)} and COMMITS; "
        "without it the peers' rows that are stored stay",
    )
    parser.add_argument("--write", action="store_true", help="store benchmarks/results/cost/attention.{jsonl,md}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    options = parser.parse_args(arguments)
    if (missing := cost.obstacle()) is not None:
        print(f"benchmarks.cost_attention: {missing}", file=sys.stderr)
        return 2
    peers = [peer.name for peer in PEERS]
    head = cost_attention_report.header(options.full, cost_attention_peers.commits(options.peer_path))
    kept: list[dict] = []
    if options.peer_path is None:
        head, kept = cost_attention_report.with_stored(head, peers)
    languages = *LANGUAGES, *(() if kept else peers)
    asked = [(language, shape, options.peer_path) for shape in SHAPES[: None if options.full else 1]
             for language in languages]  # fmt: skip
    longest_first = sorted(asked, key=lambda job: -job[1].length)
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        measured = [row for rows in pool.map(measure, *zip(*longest_first, strict=True)) for row in rows]
    rows = sorted([*measured, *kept], key=lambda row: (row["length"], DIRECTIONS.index(row["direction"])))
    print(cost_attention_report.markdown(head, rows))
    if options.write:
        cost_attention_report.write(head, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
