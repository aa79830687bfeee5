"""What this machine can do: its real matrix-multiplication rate, against which utilisation is reported."""

from __future__ import annotations

import statistics
import time

import torch


def gemm_flops_per_second(device: torch.device, dtype: torch.dtype, *, repeats: int = 7) -> float:
    """Median rate of a square GEMM in FLOP/s: 2048^3 in fp32 on a CPU, 8192^3 in ``dtype`` on a GPU.

    A measured ceiling, never a datasheet's. On this scale a GPU is limited by its clocks under load as training is.
    """
    size = 8192 if device.type == "cuda" else 2048
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(size, size, generator=generator).to(device, dtype)
    b = torch.randn(size, size, generator=generator).to(device, dtype)
    out = torch.mm(a, b)
    seconds = []
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
