"""What this machine can do: its real rates of multiplying matrices, the measure of utilisation, and of copying."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def gemm_flops_per_second(device: torch.device, dtype: torch.dtype, *, repeats: int = 7) -> float:
    """Median rate of a square GEMM in FLOP/s: 2048^3 in fp32 on a CPU, 8192^3 in ``dtype`` on a GPU.

    Of ``repeats`` products, or at least three where more would take more than a second.

    A measured ceiling, never a datasheet's. On this scale a GPU is limited by its clocks under load as training is.
    """
    size = 8192 if device.type == "cuda" else 2048
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(size, size, generator=generator).to(device, dtype)
    b = torch.randn(size, size, generator=generator).to(device, dtype)
    out = torch.mm(a, b)
    return 2 * size**3 / _median_seconds(lambda: torch.mm(a, b, out=out), device, repeats)


def copy_bytes_per_second(device: torch.device, *, repeats: int = 7) -> float:
    """Median rate of copying a tensor far larger than caches: bytes read and bytes written, per second."""
    size = 1 << (30 if device.type == "cuda" else 28)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * size / _median_seconds(lambda: target.copy_(source), device, repeats)


def _median_seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        seconds.append(time.perf_counter() - start)
        if len(seconds) >= 3 and sum(seconds) > 1:
            break
    return statistics.median(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
