"""The counted cost of every kernel on small shapes, held to committed counts: ``python -m benchmarks.guard [--write]``.

Needs no GPU: each operation's own launchers run in a simulator (benchmarks/cost.py), which counts what they ask of each
tensor. One more pass over any tensor, scratch memory and torch's own copies included, is at least that tensor's bytes
more, and fails; so do a tenth more instructions, where the compilers are those of the committed counts. ``--write``
stores the present counts to benchmarks/results/cost/guard.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import cost, cost_attention, cost_count
from benchmarks.cost_attention import PACKED, TorchBytes
from benchmarks.cost_cases import CUDA, DIRECTIONS, LANGUAGES, Case, Named, simulation
from benchmarks.cost_loss import Shape as LossShape
from benchmarks.results import versions

TABLE = Path(__file__).with_name("results") / "cost" / "guard.json"
MULTIPROCESSORS = 4
SLACK = 1.02  # on bytes, of code by other compilers than the committed counts'; by the same ones none
MORE_INSTRUCTIONS = 1.10
INSTRUCTIONS = "instructions"
Counts = dict[str, int]

ROWS = (
    Case("layer_norm", 160, 768),
    Case("add_layer_norm", 160, 768, dropout_p=0.1),
    Case("layer_norm_gelu", 160, 768, approximate="tanh"),
    Case("gelu_layer_norm", 160, 768, approximate="tanh", linear_bias=True),
    Case("geglu", 160, 1536, approximate="tanh", linear_bias=True),
    Case("rotary", 256, 768),
)
SEQUENCES = {"short": cost_attention.Shape(2, 128, heads=1), "long": cost_attention.Shape(1, 384, heads=1)}
LOSS, LOSS_MODES = LossShape(64, 2048, 256), ("chunked", "recompute")
LOSS_OPTIONS = -100, 0.0, 0.0, None, 256 << 20, None


@dataclass(frozen=True)
class Guarded:
    """One call, all its launches together."""

    operation: str
    language: str
    direction: str

    def __str__(self) -> str:
        return f"{self.operation}, {self.language}, {self.direction}"

    @property
    def family(self) -> str:
        """As in benchmarks.operations."""
        first = self.operation.split()[0]
        return {"attention": "attention", "rotary": "attention", "mlm_loss": "loss"}.get(first, "rows")

    def counts(self, within: Callable | None = None) -> Counts:
        """Run it. ``within``: the simulation, for tests that plant something."""
        within = within or simulation(self.language)
        call, inputs, packed = self._prepared(within)
        with TorchBytes() as of_torch, torch.no_grad() if self.family == "loss" else torch.enable_grad():
            counted = cost_count.counted(within, call, inputs, MULTIPROCESSORS, packed)
        found: Counts = {INSTRUCTIONS: counted.warp_instructions, "of torch": of_torch.bytes}
        for tensor in counted.tensors:
            for what in ("loaded", "stored", "footprint"):
                name = f"{tensor.name} {what}"  # scratch tensors are one
                found[name] = found.get(name, 0) + getattr(tensor, what)
        return dict(sorted(found.items()))

    def _prepared(self, within: Callable) -> tuple[Callable[[], Named], Named, dict | None]:
        name, _, variant = self.operation.partition(" ")
        if name == "attention":
            made = cost_attention.calls(self.language, SEQUENCES[variant])
            if self.direction == "backward":  # of what the forward kept
                with within():
                    made["forward"][0]()
            return *made[self.direction], PACKED
        if name == "mlm_loss":
            return *_loss(variant, self.language, self.direction, within), None
        case = next(case for case in ROWS if case.op == name)
        inputs = case.inputs(self.direction)
        return case.call(self.language, self.direction, inputs), inputs, None


def guarded() -> list[Guarded]:
    """All of them; the chunked loss has its gradients from the forward."""
    names = [case.op for case in ROWS] + [f"attention {length}" for length in SEQUENCES]
    found = [Guarded(name, language, direction) for name in names for language in LANGUAGES for direction in DIRECTIONS]
    for language in LANGUAGES:
        found.append(Guarded("mlm_loss chunked", language, "forward"))
        found += [Guarded("mlm_loss recompute", language, direction) for direction in DIRECTIONS]
    return found


def _loss(mode: str, language: str, direction: str, within: Callable) -> tuple[Callable[[], Named], Named]:
    module = importlib.import_module(f"cramkernels.{'cuda' if language == CUDA else 'triton'}.mlm_loss")
    hidden, weight, labels = LOSS.inputs()
    inputs = {"hidden": hidden, "decoder": weight, "labels": labels}

    def forward() -> Named:
        wanted = mode == "recompute", True, True, False
        results = module.mlm_loss_forward(hidden, weight, labels, None, *LOSS_OPTIONS, *wanted)
        names = ("loss", "z_loss", "tokens", "hits", "lse", "dhidden", "ddecoder", "dbias")
        return {name: x for name, x in zip(names, results, strict=True) if x.numel()}

    if direction == "forward":
        return forward, inputs
    with within():
        inputs["lse"] = forward()["lse"]

    def backward() -> Named:
        results = module.mlm_loss_backward(
            hidden, weight, labels, None, inputs["lse"], *LOSS_OPTIONS, True, True, False
        )
        return {name: x for name, x in zip(("dhidden", "ddecoder", "dbias"), results, strict=True) if x.numel()}

    return backward, inputs


def exceeded(committed: Counts | None, counts: Counts, *, same_compilers: bool = True) -> list[str]:
    """A line a count above the committed one. By other compilers instructions may be any number."""
    if committed is None:
        return ["no committed counts: python -m benchmarks.guard --write"]
    found = []
    for name, count in counts.items():
        if name == INSTRUCTIONS and not same_compilers:
            continue
        slack = MORE_INSTRUCTIONS if name == INSTRUCTIONS else 1 if same_compilers else SLACK
        if count > slack * committed.get(name, 0):
            found.append(f"{name}: {count:,}, committed {committed.get(name, 0):,}")
    return found


def compilers() -> dict[str, str]:
    """Whose code the counts are of."""
    from native_build import find_nvcc, release  # csrc/, on the path since tests.simulation.cuda was imported

    return {"triton": versions().get("triton", "none"), "nvcc": release(find_nvcc())}


def read() -> tuple[dict[str, str], dict[str, Counts]]:
    """The committed compilers and counts."""
    stored = json.loads(TABLE.read_text())
    return stored["compilers"], stored["counts"]


def write(counts: dict[str, Counts]) -> None:
    """A line a call."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(each)}" for name, each in counts.items())
    TABLE.write_text(f'{{"compilers": {json.dumps(compilers())},\n "counts": {{\n{lines}\n}}}}\n')


@contextmanager
def _progress(name: str) -> Iterator[None]:
    print(name, end="\r", file=sys.stderr, flush=True)
    yield
    print(" " * len(name), end="\r", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Count, and compare with the committed counts or store them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"store {TABLE.name}")
    options = parser.parse_args(arguments)
    if (missing := cost.obstacle()) is not None:
        print(f"benchmarks.guard: {missing}", file=sys.stderr)
        return 2
    counts = {}
    for one in guarded():
        with _progress(str(one)):
            counts[str(one)] = one.counts()
    if options.write:
        write(counts)
        return 0
    made_by, committed = read()
    lines = [f"{name}: {line}" for name, each in counts.items()
             for line in exceeded(committed.get(name), each, same_compilers=made_by == compilers())]  # fmt: skip
    print("\n".join(lines) or f"{len(counts)} calls ask for no more than committed")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
