"""What a call costs before anything runs: from Python to the C++ launcher, with a launch hook that does nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch

import cramkernels
from cramkernels import library
from cramkernels.cuda import normalization
from cramkernels.dispatch import simulate_backend

CALLS, CEILING = 200, 10e-6  # seconds a call


def test_layer_norm_call_overhead(benchmark):
    """The backend's own path: outputs allocated, arguments packed, launcher called, without validation and autograd."""
    if isinstance(library.load(), str):
        pytest.skip(library.load())
    x, weight, bias = torch.randn(64, 768).bfloat16(), torch.randn(768), torch.randn(768)
    reached: list[object] = []

    def hook(launch: object) -> None:
        reached.append(1)

    def call() -> None:
        for _ in range(CALLS):
            normalization.layer_norm_forward(x, weight, bias, 1e-12)

    with library.launch_hook(hook), simulate_backend("cuda"):
        benchmark.pedantic(call, rounds=25, warmup_rounds=2)
        public = _seconds(lambda: cramkernels.layer_norm(x, weight, bias, eps=1e-12))
    assert len(reached) >= 27 * CALLS
    seconds = benchmark.stats.stats.median / CALLS
    benchmark.extra_info.update(
        microseconds_a_call=round(1e6 * seconds, 2), microseconds_of_the_public_operation=round(1e6 * public, 2)
    )
    assert benchmark.stats.stats.min / CALLS < CEILING  # the fastest round: what the machine does beside is not ours


def _seconds(function: Callable[[], object]) -> float:
    """Median of a call."""
    times = []
    for _ in range(15):
        started = time.perf_counter()
        for _ in range(CALLS):
            function()
        times.append(time.perf_counter() - started)
    return statistics.median(times) / CALLS
