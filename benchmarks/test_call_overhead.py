"""What a call costs before anything runs: from Python to the C++ launcher, with a launch hook that does nothing.

What the machine does beside is not ours: figures are those of the fastest round. What is held, on
any machine, is the multiple of what PyTorch's own layer norm of one short row takes there, in turns: 3.85 to 4.03 in
five runs on two cores of an EPYC without AVX-512.
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

CALLS, ROUNDS, CEILING = 200, 50, 4.5  # of calls of PyTorch's


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
        row, ones = torch.randn(1, 8), torch.ones(8)
        with torch.no_grad():
            torchs, public = _in_turns(
                lambda: torch.nn.functional.layer_norm(row, (8,), ones, ones),
                lambda: cramkernels.layer_norm(x, weight, bias, eps=1e-12),
            )
    seconds = benchmark.stats.stats.min / CALLS
    benchmark.extra_info.update(
        microseconds_a_call=round(1e6 * seconds, 2),
        microseconds_of_the_backend_alone=round(1e6 * backend, 2),
        microseconds_with_autograd=round(1e6 * recorded, 2),
        times_pytorchs_call=round(public / torchs, 2),
    )
    assert public < CEILING * torchs


def _seconds(function: Callable[[], object]) -> float:
    """Of a call, in the fastest round."""
    return _in_turns(function)[0]


def _in_turns(*functions: Callable[[], object]) -> list[float]:
    """Of a call of each, in its fastest round."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(ROUNDS):
        for taken, function in zip(times, functions, strict=True):
            started = time.perf_counter()
            for _ in range(CALLS):
                function()
            taken.append(time.perf_counter() - started)
    return [min(taken) / CALLS for taken in times]
