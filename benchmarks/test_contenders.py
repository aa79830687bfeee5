"""On a CPU, against plain PyTorch as its users meet it: a process each, in turns, step by step.

On one thread it is the processor's time that counts, which other programs do not take; on two the wall's.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.contenders import GEMM_SIZE, LOSS_ROWS, RECIPE
from cramming_train.model import flops_per_token

ROUNDS, LOSS_ROUNDS = 9, 3
LEAST = {"eager": 1.2, "compiled": 1.05}  # times the peer's tokens a second
LEAST_UTILIZATION = 0.7
MOST = {256: {"eager": 0.88, "products": 1.15}, 768: {"eager": 0.96, "products": 1.15}}  # of the peer's time
TOKENS = RECIPE.training.batch_size * RECIPE.data.row_length
FLOPS = TOKENS * flops_per_token(
    RECIPE.architecture, RECIPE.data.vocab_size, RECIPE.data.row_length, RECIPE.training.masking_rate
)

ON_ONE_OR_TWO_THREADS = pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="of the CPU; test_training.py has the card's")


def in_words(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"


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


def race(benchmark, names: Sequence[str], threads: int, rounds: int) -> tuple[dict[str, float], dict[str, list[float]]]:
    """(median seconds, losses) of each; the first is what the benchmark shows. On one thread processor time."""
    processes = {name: Process(name, threads) for name in names}
    try:
        for process in processes.values():  # which compiles, and fills what is cached
            process.step(), process.step()
        ours, *others = processes.values()

        def peers() -> None:
            for process in others:
                process.step()

        benchmark.pedantic(ours.step, setup=peers, rounds=rounds)
    finally:
        for process in processes.values():
            process.end()
    clock = 0 if threads == 1 else 1
    benchmark.extra_info.update(threads=threads, clock=("processor", "wall")[clock])
    medians = {name: statistics.median(s[clock] for s in p.seconds[2:]) for name, p in processes.items()}
    return medians, {name: process.losses for name, process in processes.items()}


@ON_ONE_OR_TWO_THREADS
def test_training(benchmark, threads, results):
    """Tokens a second against plain PyTorch, eager and compiled; FLOPs a second against the machine's GEMM rate."""
    medians, losses = race(benchmark, ("ours", *LEAST, "gemm"), threads, ROUNDS)
    rate = 2 * GEMM_SIZE**3 / medians.pop("gemm")
    ratios = {name: round(medians["ours"] / medians[name], 4) for name in LEAST}
    utilization = {name: round(FLOPS / seconds / rate, 4) for name, seconds in medians.items()}
    figures = {
        "tokens_per_second": {name: round(TOKENS / seconds) for name, seconds in medians.items()},
        "model_flops_utilization": utilization, "gemm_flops_per_second": rate, "ratios": ratios,
    }  # fmt: skip
    benchmark.extra_info.update(figures)
    results.add(
        kind="training", name=f"training {RECIPE.name}, {in_words(threads)}", direction="step", family="training",
        recipe=f"{RECIPE.name}, {in_words(threads)}", seconds=medians, **figures,
    )  # fmt: skip
    for name in LEAST:  # the same training: what is compared is time alone
        assert losses[name] == pytest.approx(losses["ours"], rel=2e-3)
    assert all(1 / ratios[name] >= least for name, least in LEAST.items()), ratios
    assert utilization["ours"] >= LEAST_UTILIZATION, utilization


@ON_ONE_OR_TWO_THREADS
@pytest.mark.parametrize("width", [256, pytest.param(768, marks=pytest.mark.exhaustive)])
def test_mlm_loss_of_every_row(benchmark, width, threads, results):
    who = ("ours", "eager", "products")
    medians, losses = race(benchmark, [f"loss-{name}-{width}" for name in who], threads, LOSS_ROUNDS)
    seconds = dict(zip(who, medians.values(), strict=True))
    ratios = {peer: round(seconds["ours"] / seconds[peer], 4) for peer in who[1:]}
    benchmark.extra_info.update(ratios=ratios)
    results.add(
        kind="operation", name=f"mlm_loss of every row {LOSS_ROWS}x{width}, {in_words(threads)}", direction="step",
        operation="mlm_loss of every row", family="loss", tokens=LOSS_ROWS, width=width, seconds=seconds, ratios=ratios,
        share_of_floor=round(seconds["products"] / seconds["ours"], 4),
    )  # fmt: skip
    assert losses[f"loss-eager-{width}"] == pytest.approx(losses[f"loss-ours-{width}"], rel=1e-5)
    assert all(ratio <= MOST[width][peer] for peer, ratio in ratios.items()), ratios
