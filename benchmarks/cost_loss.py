"""What the masked-LM loss asks of memory, beside its peers: ``python -m benchmarks.cost_loss [--full]``.

Needs no GPU: each implementation's own launchers run, forward and backward, and the PTX that they would launch is
executed in a simulator, which counts the sectors that warps request. Products that a library does (cuBLAS) cannot be
counted so: of each the operands and the result are taken once, by their shapes, for everybody alike. Chunked is
compared with Liger's fused linear cross-entropy, recompute with cut-cross-entropy without its filter.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import cost, cost_cases, cost_count
from benchmarks.cost_cases import CUDA, TRITON
from benchmarks.cost_peers import Absent, versions
from cramkernels import decoder

LIGER, CCE = "Liger", "cut-cross-entropy"
LANGUAGES = {"chunked": (CUDA, TRITON, LIGER), "recompute": (CUDA, TRITON, CCE)}
RESULTS = Path(__file__).with_name("results") / "cost"
SLACK = 1.02
IGNORE, BUDGET = -100, 256 << 20


@dataclass(frozen=True)
class Shape:
    """Rows M, vocabulary V, hidden N."""

    rows: int
    vocabulary: int
    hidden: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.vocabulary}x{self.hidden}"

    def inputs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """hidden, weight, labels; bf16."""
        generator = torch.Generator().manual_seed(1)
        hidden = torch.randn(self.rows, self.hidden, generator=generator).bfloat16()
        weight = (torch.randn(self.vocabulary, self.hidden, generator=generator) * 0.05).bfloat16()
        return hidden, weight, torch.randint(self.vocabulary, (self.rows,), generator=generator)


CI, FULL = Shape(256, 4096, 768), Shape(4096, 32768, 768)
BETWEEN = Shape(1024, 8192, 768)


class Products(TorchDispatchMode):
    """Bytes of the products that torch does, by shape."""

    def __init__(self):
        super().__init__()
        self.bytes = 0
        self.paused = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if self.paused:
            pass
        elif function in (torch.ops.aten.mm.default, torch.ops.aten.mm.out):
            self.bytes += sum(x.nbytes for x in (*args[:2], result))
        elif function in (torch.ops.aten.addmm.default, torch.ops.aten.addmm.out, torch.ops.aten.addmm_.default):
            self.bytes += sum(x.nbytes for x in (*args[1:3], result))
        return result


@contextmanager
def _true_products(products: Products) -> Iterator[None]:
    """Ours multiplies 16-bit matrices into fp32 on a GPU, through fp32 on a CPU: count what a GPU would see."""
    original = decoder.multiply

    def multiply(a, b, out, add) -> None:
        products.bytes += a.nbytes + b.nbytes + out.nbytes
        products.paused = True
        original(a, b, out, add)
        products.paused = False

    decoder.multiply = multiply
    try:
        yield
    finally:
        decoder.multiply = original


def _ours(mode: str, language: str, hidden, weight, labels) -> dict[str, Callable]:
    module = importlib.import_module(f"cramkernels.{'cuda' if language == CUDA else 'triton'}.mlm_loss")
    options = IGNORE, 0.0, 0.0, None, BUDGET, None
    kept: list = []

    def forward() -> None:
        wanted = mode == "recompute", True, True, False
        kept[:] = module.mlm_loss_forward(hidden, weight, labels, None, *options, *wanted)

    def backward() -> None:
        module.mlm_loss_backward(hidden, weight, labels, None, kept[4], *options, True, True, False)

    return {"forward": forward} | ({"backward": backward} if mode == "recompute" else {})


def _liger(hidden, weight, labels) -> dict[str, Callable]:
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward
    except ImportError:
        raise Absent("not installed") from None
    for leaf in (hidden, weight):
        leaf.requires_grad_()
    return {"forward": lambda: fused_linear_cross_entropy_forward(hidden, weight, labels)}


def _cut_cross_entropy(hidden, weight, labels) -> dict[str, Callable]:
    try:
        from cut_cross_entropy.cce_backward import cce_backward_kernel
        from cut_cross_entropy.cce_lse_forward import cce_lse_forward_kernel
        from cut_cross_entropy.indexed_dot import indexed_neg_dot_forward_kernel
    except ImportError:
        raise Absent("not installed") from None
    kept: list = []
    weight.requires_grad_()

    def forward() -> None:
        kept[:] = [cce_lse_forward_kernel(hidden, weight)]
        indexed_neg_dot_forward_kernel(hidden, weight, labels, False, None, None, torch.float32)

    def backward() -> None:
        one = torch.ones(())
        cce_backward_kernel(
            one, hidden, weight, kept[0], None, None, None, targets=labels, grad_scale=1 / hidden.shape[0]
        )

    return {"forward": forward, "backward": backward}


def measure(mode: str, language: str, shape: Shape) -> dict:
    """Bytes that kernels request, bytes of products, and of the row kernel how often it asks for each logit."""
    facts = {"mode": mode, "language": language, "shape": str(shape)}
    inputs = shape.inputs()
    started = time.perf_counter()
    try:
        if language in (CUDA, TRITON):
            calls = _ours(mode, language, *inputs)
        else:
            calls = _liger(*inputs) if language == LIGER else _cut_cross_entropy(*inputs)
        requested, products, of_logits = _run(cost_cases.simulation(CUDA if language == CUDA else TRITON), calls)
    except Absent as reason:
        return facts | {"absent": str(reason)}
    if mode == "chunked":
        logits = shape.rows * shape.vocabulary * 2 / cost_count.SECTOR
        read, written = (sum(sectors[side] for sectors in of_logits) for side in (0, 1))
        facts |= {"logits_read": round(read / logits, 4), "logits_written": round(written / logits, 4)}
    total = sum(requested.values()) + sum(products.values())
    seconds = round(time.perf_counter() - started)
    return facts | {"kernels": requested, "products": products, "total": total, "simulated_seconds": seconds}


def _run(simulation, calls: dict[str, Callable]) -> tuple[dict, dict, list]:
    """By direction: bytes that kernels request, bytes of products; sectors of logits that each row kernel asks for."""
    requested, of_products, of_logits = {}, {}, []
    for direction, call in calls.items():
        products = Products()
        with cost_count.of_a_part(cost_count.MULTIPROCESSORS[cost.SIMULATED_PART]), simulation() as executed:
            with cost_count.requests_by_buffer() as requests, products, _true_products(products), torch.no_grad():
                call()
        every = [result.stats for _, result in executed]
        requested[direction] = cost_count.SECTOR * sum(s.global_load.sectors + s.global_store.sectors for s in every)
        of_products[direction] = products.bytes
        for name, result in executed:
            if "rows" in name or "cross_entropy_kernel" in name:  # logits are what it asks for most
                of_logits.append([max(sides) for sides in zip(*requests[id(result.stats)].values(), strict=True)])
    return requested, of_products, of_logits


def misses(rows: list[dict]) -> list[str]:
    """Rows of ours that ask for more than their peer, or for a logit more than once."""
    found = []
    for row in rows:
        if row["language"] not in (CUDA, TRITON) or "absent" in row:
            continue
        name = f"{row['mode']} {row['language']} {row['shape']}"
        if max(row.get("logits_read", 0), row.get("logits_written", 0)) > SLACK:
            found.append(f"{name}: logits read {row['logits_read']} x, written {row['logits_written']} x")
        for peer in rows:
            if peer["mode"] == row["mode"] and peer["language"] in (LIGER, CCE) and "absent" not in peer:
                if peer["shape"] == row["shape"] and row["total"] > peer["total"]:
                    found.append(f"{name}: {row['total'] / 1e6:.1f} MB, {peer['language']} {peer['total'] / 1e6:.1f}")
    return found


def markdown(rows: list[dict]) -> str:
    """The table."""
    made = ", ".join(f"{name} {version}" for name, version in versions("cut-cross-entropy").items())
    lines = ["# Bytes that the masked-LM loss asks for", "", "`python -m benchmarks.cost_loss --full`", ""]
    lines += [f"{made}. bf16, no bias, no ignored rows, grids of {cost.SIMULATED_PART}.", ""]
    lines += [" ".join(__doc__.split("\n\n")[1].split()), ""]
    lines += ["| mode | implementation | M x V x N | kernels, MB | products, MB | total, MB | logits read | written |"]
    lines += ["|" + " --- |" * 8]
    for row in rows:
        cells = [row["mode"], row["language"], row["shape"]]
        if "absent" in row:
            cells += [row["absent"], "", "", "", ""]
        else:
            cells += [_both(row["kernels"]), _both(row["products"]), f"{row['total'] / 1e6:.1f}"]
            cells += [f"{row[key]:.3f}" if key in row else "" for key in ("logits_read", "logits_written")]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Where ours misses a target:", "", *(f"- {line}" for line in misses(rows) or ["nowhere"])]
    return "\n".join(lines) + "\n"


def _both(directions: dict[str, int]) -> str:
    return " + ".join(f"{value / 1e6:.1f}" for value in directions.values())


def main(arguments: list[str] | None = None) -> int:
    """Print the table; the full one is stored."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost_loss", description=__doc__.splitlines()[0])
    stored = f"stored in {RESULTS.parent.name}/{RESULTS.name}/loss.md"
    parser.add_argument("--full", action="store_true", help=f"also {BETWEEN} and {FULL}, half an hour; {stored}")
    options = parser.parse_args(arguments)
    if (missing := cost.obstacle()) is not None:
        print(f"benchmarks.cost_loss: {missing}", file=sys.stderr)
        return 2
    rows = []
    for shape in (CI, BETWEEN, FULL) if options.full else (CI,):
        for mode, languages in LANGUAGES.items():
            for language in languages:
                rows.append(measure(mode, language, shape))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
                if options.full:  # after each row: the last ones take long
                    (RESULTS / "loss.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
                    (RESULTS / "loss.md").write_text(markdown(rows))
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
