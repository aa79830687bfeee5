"""What a call costs before anything runs: from Python to the C++ launcher, with a launch hook that does nothing.

What the machine does beside is not ours: figures are those of the fastest round.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

import cramkernels
from cramkernels import library
from cramkernels.cuda import normalization
from cramkernels.dispatch import simulate_backend

CALLS, ROUNDS, CEILING = 200, 50, 10e-6  # seconds a call


def test_layer_norm_call_overhead(benchmark):
    """The public operation, validation and all; the backend alone and the call that autograd records stand beside."""
    if isinstance(library.load(), str):
        pytest.skip(library.load())
    x, weight, bias = torch.randn(64, 768).bfloat16(), torch.randn(768), torch.randn(768)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    reached: list[object] = []

    def hook(launch: object) -> None:
        reached.append(1)

    def calls() -> None:
        for _ in range(CALLS):
            cramkernels.layer_norm(x, weight, bias, eps=1e-12)

    with library.launch_hook(hook), simulate_backend("cuda"):
        with torch.no_grad():
            benchmark.pedantic(calls, rounds=ROUNDS, warmup_rounds=2)
        assert len(reached) == (ROUNDS + 2) * CALLS
        backend = _seconds(lambda: normalization.layer_norm_forward(x, weight, bias, 1e-12))
        recorded = _seconds(lambda: cramkernels.layer_norm(*leaves, eps=1e-12))
    seconds = benchmark.stats.stats.min / CALLS
    benchmark.extra_info.update(
        microseconds_a_call=round(1e6 * seconds, 2),
        microseconds_of_the_backend_alone=round(1e6 * backend, 2),
        microseconds_with_autograd=round(1e6 * recorded, 2),
    )
    assert seconds < CEILING


def _seconds(function: Callable[[], object]) -> float:
    """Of a call, in the fastest round."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(CALLS):
            function()
        times.append(time.perf_counter() - started)
    return min(times) / CALLS
