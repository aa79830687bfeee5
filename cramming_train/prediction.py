"""What a recipe will do on a machine in a given time: a roofline, operation by operation, over a micro-batch.

The time of an operation is that of the slower of its products at the machine's GEMM rate and its bytes at its copy
rate (Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model"); of the loss, which
does one after the other, their sum. Times add up: nothing overlaps. :mod:`cramming_train.dry_step` counts both.
Not counted: launches and Python, the pipeline that feeds rows, validation and checkpoints, what a compiler fuses
beyond the fused operations, and that small matrices are multiplied below the machine's rate. Memory is counted as
eager PyTorch holds it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from cramming_train.distributed import World
from cramming_train.dry_step import LOSS, DryStep, Operation, dry_step
from cramming_train.optim.schedules import batch_size_at, micro_batches_at, smaller_micro_batch
from cramming_train.precision import Precision
from cramming_train.rates import Machine, free_bytes
from cramming_train.recipes import Recipe

SEGMENTS = 1000  # of the budget, in each of which the batch is taken as constant
SLACK = 1.05  # a caching allocator holds more than is asked of it: blocks that are cut up, or a little too small


@dataclass(frozen=True)
class Prediction:
    """A run, before it is started."""

    recipe: str
    machine: str
    hours: float
    precision: str
    micro_batch_rows: int
    fits: bool
    tokens_per_second: float
    tokens: int
    optimizer_steps: int
    seconds_per_micro_batch: float
    seconds_per_update: float
    share_of_time: dict[str, float]  # of a micro-batch, by kind of operation
    memory_bytes: int
    memory: dict[str, int]
    memory_available: int | None
    gemm_flops_per_second: float
    copy_bytes_per_second: float
    rates: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def predict(recipe: Recipe, machine: Machine, hours: float, micro_rows: int | None = None) -> Prediction:
    """Predict a run of one process.

    Args:
        micro_rows: rows of a micro-batch; by default the most, up to the recipe's, that fit the machine's memory.
    """
    dtype = machine.dtype(recipe.training.precision)
    step = fitting(recipe, machine) if micro_rows is None else dry_step(recipe, micro_rows, dtype, machine.device_type)
    seconds = by_kind(step, machine.gemm(dtype), machine.copy)
    micro_seconds = sum(seconds.values())
    update_seconds = operation_seconds(step.optimizer, machine.gemm(dtype), machine.copy)
    rows, steps = _over_the_budget(recipe, step.rows, hours * 3600, micro_seconds, update_seconds)
    tokens = rows * recipe.data.row_length
    return Prediction(
        recipe=recipe.name,
        machine=machine.name,
        hours=hours,
        precision=str(dtype).removeprefix("torch."),
        micro_batch_rows=step.rows,
        fits=fits(step, machine.memory),
        tokens_per_second=tokens / (hours * 3600),
        tokens=int(tokens),
        optimizer_steps=int(steps),
        seconds_per_micro_batch=micro_seconds,
        seconds_per_update=update_seconds,
        share_of_time={kind: value / micro_seconds for kind, value in seconds.items()},
        memory_bytes=int(SLACK * step.bytes),
        memory={
            "parameters": step.parameter_bytes,
            "gradients": step.gradient_bytes,
            "moments": step.moment_bytes,
            "activations": step.activation_bytes,
            "slack": int(SLACK * step.bytes) - step.bytes,
        },
        memory_available=machine.memory,
        gemm_flops_per_second=machine.gemm(dtype),
        copy_bytes_per_second=machine.copy,
        rates=machine.source,
    )


def micro_batch_sizes(recipe: Recipe) -> list[int]:
    """The recipe's micro-batch and the smaller ones that make the same batches, the largest first, down to one row."""
    sizes = [min(recipe.training.micro_batch_size, recipe.training.batch_size)]
    while sizes[-1] > 1:
        sizes.append(smaller_micro_batch(sizes[-1]))
    return sizes


def fitting(recipe: Recipe, machine: Machine) -> DryStep:
    """A micro-batch of the recipe's size, or of the largest smaller one that fits; of one row where none does."""
    dtype = machine.dtype(recipe.training.precision)
    for rows in micro_batch_sizes(recipe):
        step = dry_step(recipe, rows, dtype, machine.device_type)
        if fits(step, machine.memory):
            break
    return step


def agreed_micro_rows(recipe: Recipe, precision: Precision, device: torch.device, world: World) -> int:
    """For a run that begins: the most rows, up to the recipe's, predicted to fit the free memory of every process."""
    free = free_bytes(device)
    for rows in micro_batch_sizes(recipe):
        step = dry_step(recipe, rows, precision.gemm_dtype, device.type)
        if not world.any(not fits(step, free), device):
            break
    return rows


def fits(step: DryStep, memory: int | None) -> bool:
    """Whether a step's memory, with some slack, is there."""
    return memory is None or SLACK * step.bytes <= memory


def by_kind(step: DryStep, gemm: float, copy: float) -> dict[str, float]:
    """Seconds of a micro-batch by kind of operation."""
    seconds: dict[str, float] = {}
    for operation in step.operations:
        seconds[operation.kind] = seconds.get(operation.kind, 0.0) + operation_seconds(operation, gemm, copy)
    return seconds


def operation_seconds(operation: Operation, gemm: float, copy: float) -> float:
    """The roofline of one operation."""
    multiplying, moving = operation.flops / gemm, operation.bytes / copy
    return multiplying + moving if operation.kind == LOSS else max(multiplying, moving)


def _over_the_budget(
    recipe: Recipe, micro_rows: int, seconds: float, micro_seconds: float, update_seconds: float
) -> tuple[float, float]:
    """(rows, optimizer steps) in a budget of time: the batch follows its ramp, and with it the share of updates."""
    t = recipe.training
    unit = min(t.micro_batch_size, t.batch_size)
    rows = steps = 0.0
    for segment in range(SEGMENTS):
        batch = batch_size_at((segment + 0.5) / SEGMENTS, ceiling=t.batch_size, ramp=t.batch_ramp, micro_batch=unit)
        micro_batches = micro_batches_at(batch, unit, micro_rows, 1)
        here = seconds / SEGMENTS / (micro_batches * micro_seconds + update_seconds)
        steps += here
        rows += here * micro_batches * micro_rows
    return rows, math.floor(steps)
