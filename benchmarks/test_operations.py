"""Forward and backward of every operation against the same mathematics in PyTorch and against peers.

On a CPU the step of both together, for one micro-batch of 32 rows of 128 tokens (T = 4096), hidden 256
(crammed-bert-mini) and 768 (crammed-bert), vocabulary 32768, a quarter of the tokens masked. On a GPU forward and step
for a micro-batch of crammed-bert (T = 16384), the backward as their difference, beside the least time that the card's
own copy and product rates allow. Ratios are held to the committed ones of the machine (benchmarks/floors.py), where
there are any; everywhere to loose ceilings.
"""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks import ceilings as ceilings_of
from benchmarks import timing
from benchmarks.operations import Operation, Shape, operations

TOKENS, VOCAB = 4096, 32768
ON_A_CARD = torch.cuda.is_available()
SHAPES = (Shape(16384, 768, VOCAB),) if ON_A_CARD else (Shape(TOKENS, 256, VOCAB), Shape(TOKENS, 768, VOCAB))
# Slower than this against eager is a regression on any machine; room for a noisy one included.
CEILING = {"attention": 1.7, "rows": 1.7, "loss": 1.3}
RECOMPUTE_CEILING = 1.9  # the logits twice
# What a compiler can fuse, at one width: the rest is products
COMPILED = ("rotary", "layer_norm", "add_layer_norm", "layer_norm_gelu", "gelu_layer_norm", "geglu")


def name(operation: Operation) -> str:
    return f"{operation.name}-{operation.shape.width}"


def slow(operation: Operation) -> bool:
    """What the same code at another width stands for."""
    return not ON_A_CARD and operation.family == "loss" and operation.shape.width == 768


@pytest.mark.benchmark(timer=time.perf_counter if ON_A_CARD else time.process_time)
@pytest.mark.parametrize("operation", [
    pytest.param(op, marks=pytest.mark.exhaustive) if slow(op) else op for shape in SHAPES for op in operations(shape)
], ids=name)  # fmt: skip
def test_operation(benchmark, operation, device, floors, ceilings, results):
    measured = measure(operation, device, floors, benchmark)
    itemsize = device.dtype.itemsize
    for direction, (seconds, ratios) in measured.items():
        floor = ceilings_of.floor_seconds(operation, direction, itemsize, ceilings)
        results.add(
            kind="operation", name=str(operation), direction=direction, operation=operation.name,
            family=operation.family, tokens=operation.shape.tokens, width=operation.shape.width, seconds=seconds,
            ratios=ratios, bytes=operation.compulsory(direction, itemsize), flops=operation.flops(direction),
            share_of_floor=round(floor / seconds["ours"], 4),
        )  # fmt: skip
    benchmark.extra_info.update({direction: ratios for direction, (_, ratios) in measured.items()})


def measure(operation, device, floors, benchmark) -> dict[str, tuple[dict, dict]]:
    """Direction -> median seconds by implementer, ratios by peer. TooSlow where a floor is exceeded."""
    compiled = device.compiles and (ON_A_CARD or (operation.name in COMPILED and operation.shape.width == 768))
    ceiling = RECOMPUTE_CEILING if "recompute" in operation.name else CEILING[operation.family]
    found = {}
    for direction in ("step", "forward") if ON_A_CARD else ("step",):
        watches = timing.stopwatches(device, operation, direction, compiled=compiled)
        taken = timing.Measurement(watches, benchmark if direction == "step" else None)
        ratios = floors.hold(f"{operation} {direction}", taken, None if ON_A_CARD else {"eager": ceiling})
        found[direction] = timing.medians(taken.samples), ratios
    if "forward" in found:
        found["backward"] = timing.difference(found["step"][0], found["forward"][0])
    return found
