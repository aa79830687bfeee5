"""What the machine can do, measured on it: the rate of a copy and of a matrix product. Never a datasheet's."""

from __future__ import annotations

import statistics

import torch

from benchmarks.devices import Card, Processor
from benchmarks.operations import DIRECTIONS, STEP, Operation

COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}  # more than any cache holds
GEMM_SIZE = {"cpu": 1024, "cuda": 8192}
ROUNDS = 7


def measure(device: Processor | Card) -> dict[str, float]:
    """copy_bytes_per_second, read and written together, and gemm_flops_per_second in the device's dtype."""
    kind = device.torch.type
    source = torch.ones(COPY_BYTES[kind], dtype=torch.uint8, device=device.torch)
    target = torch.empty_like(source)
    size = GEMM_SIZE[kind]
    a, b = (torch.randn(size, size, device=device.torch).to(device.dtype) for _ in range(2))
    product = torch.empty_like(a)
    copy = device.stopwatch([lambda: target.copy_(source)])
    gemm = device.stopwatch([lambda: torch.mm(a, b, out=product)])
    copy_seconds = statistics.median(copy() for _ in range(ROUNDS))
    gemm_seconds = statistics.median(gemm() for _ in range(ROUNDS))
    return {
        "copy_bytes_per_second": 2 * COPY_BYTES[kind] / copy_seconds,
        "gemm_flops_per_second": 2 * size**3 / gemm_seconds,
    }


def floor_seconds(operation: Operation, direction: str, itemsize: int, ceilings: dict[str, float]) -> float:
    """The least time that the compulsory bytes and the products take at the measured rates."""
    return sum(
        max(
            operation.compulsory(each, itemsize) / ceilings["copy_bytes_per_second"],
            operation.flops(each) / ceilings["gemm_flops_per_second"],
        )
        for each in (DIRECTIONS if direction == STEP else (direction,))
    )
