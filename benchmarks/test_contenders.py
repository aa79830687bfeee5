"""Tokens a second of crammed-bert-mini on a CPU against plain PyTorch, eager and compiled, and the machine's GEMM rate.

Interleaved step by step. On one thread it is the processor's time that counts, which other programs do not take.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.contenders import CONTENDERS, GEMM_SIZE, RECIPE
from cramming_train.model import flops_per_token

ROUNDS = 9
LEAST = {"eager": 1.2, "compiled": 1.05}  # times the peer's tokens a second
LEAST_UTILIZATION = 0.7
TOKENS = RECIPE.training.batch_size * RECIPE.data.row_length
FLOPS = TOKENS * flops_per_token(
    RECIPE.architecture, RECIPE.data.vocab_size, RECIPE.data.row_length, RECIPE.training.masking_rate
)


class Process:
    """A contender, waiting for its turn."""

    def __init__(self, name: str, threads: int):
        self.seconds: list[tuple[float, float]] = []  # processor, wall
        self.losses: list[float] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contenders", name, str(threads)], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1],
        )  # fmt: skip

    def step(self) -> None:
        """Take one step and wait for it."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the process ended with {self._process.wait()}"
        processor, wall, loss = map(float, line.split())
        self.seconds.append((processor, wall))
        self.losses.append(loss)

    def end(self) -> None:
        """Let it go."""
        self._process.stdin.close()
        self._process.wait()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU's figures; test_training.py has the card's")
@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_training_on_a_cpu(benchmark, threads):
    processes = {name: Process(name, threads) for name in CONTENDERS}
    try:
        for process in processes.values():  # which compiles, and fills what is cached
            process.step(), process.step()
        kept = {name: len(process.seconds) for name, process in processes.items()}
        others = [processes[name] for name in processes if name != "ours"]
        benchmark.pedantic(processes["ours"].step, setup=lambda: [p.step() for p in others] and None, rounds=ROUNDS)
    finally:
        for process in processes.values():
            process.end()
    clock = 0 if threads == 1 else 1
    medians = {
        name: statistics.median(seconds[clock] for seconds in process.seconds[kept[name] :])
        for name, process in processes.items()
    }
    ratios = {name: medians[name] / medians["ours"] for name in LEAST}
    rate = 2 * GEMM_SIZE**3 / medians["gemm"]
    utilization = FLOPS / medians["ours"] / rate
    benchmark.extra_info.update(
        threads=threads,
        clock=("processor", "wall")[clock],
        tokens_per_second={name: round(TOKENS / medians[name]) for name in ("ours", *LEAST)},
        times_the_peers_tokens_per_second={name: round(ratio, 3) for name, ratio in ratios.items()},
        gemm_gflops_per_second=round(rate / 1e9, 1),
        model_flops_utilization=round(utilization, 3),
    )
    for name in LEAST:  # the same training: what is compared is time alone
        assert processes[name].losses == pytest.approx(processes["ours"].losses, rel=2e-3)
    assert all(ratios[name] >= least for name, least in LEAST.items()), ratios
    assert utilization >= LEAST_UTILIZATION
