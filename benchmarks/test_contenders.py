"""On a CPU, against plain PyTorch as its users meet it: a process each, in turns, step by step.

On one thread it is the processor's time that counts, which other programs do not take; on two the wall's. What they do
take are the units of a core that is shared with them: products then are a larger share of every step, and what is saved
elsewhere counts for less. Whether that is so is told by the rate of products, which is committed for the machine.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.contenders import GEMM_SIZE, LOSS_ROWS, RECIPE, VOCABULARY
from benchmarks.results import BadFolder, Results, read
from cramming_train.model import flops_per_token

ROUNDS, LOSS_ROUNDS = 9, 3
QUIET = 0.85  # of the committed rate of products
# By whether the machine is quiet: times the peer's tokens a second; a share of the rate of products; of the peer's time
LEAST = {True: {"eager": 1.2, "compiled": 1.05}, False: {"eager": 1.0, "compiled": 0.95}}
LEAST_UTILIZATION = {True: 0.7, False: 0.6}
MOST = {
    True: {256: {"eager": 0.88, "products": 1.15}, 768: {"eager": 0.96, "products": 1.15}},
    False: {256: {"eager": 1.0, "products": 1.3}, 768: {"eager": 1.0, "products": 1.3}},
}
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


def quiet(results: Results, name: str, rate: float) -> bool:
    """Whether products run at the rate (FLOP/s) that this benchmark had when the machine's results were committed.

    True for a machine without results.
    """
    try:
        _, rows = read(results.folder)
    except BadFolder:
        return True
    committed = [row.get("gemm_flops_per_second", 0) for row in rows if row["name"] == name]
    return not committed or rate >= QUIET * committed[0]


@ON_ONE_OR_TWO_THREADS
def test_training(benchmark, threads, results):
    """Tokens a second against plain PyTorch, eager and compiled; FLOPs a second against the machine's GEMM rate."""
    peers, name = ("eager", "compiled"), f"training {RECIPE.name}, {in_words(threads)}"
    medians, losses = race(benchmark, ("ours", *peers, "gemm"), threads, ROUNDS)
    rate = 2 * GEMM_SIZE**3 / medians.pop("gemm")
    ratios = {peer: round(medians["ours"] / medians[peer], 4) for peer in peers}
    utilization = {who: round(FLOPS / seconds / rate, 4) for who, seconds in medians.items()}
    figures = {
        "tokens_per_second": {who: round(TOKENS / seconds) for who, seconds in medians.items()},
        "model_flops_utilization": utilization, "gemm_flops_per_second": rate, "ratios": ratios,
    }  # fmt: skip
    benchmark.extra_info.update(figures)
    results.add(
        kind="training", name=name, direction="step", family="training",
        recipe=f"{RECIPE.name}, {in_words(threads)}", seconds=medians, **figures,
    )  # fmt: skip
    for peer in peers:  # the same training: what is compared is time alone
        assert losses[peer] == pytest.approx(losses["ours"], rel=2e-3)
    alone = quiet(results, name, rate)
    assert all(1 / ratios[peer] >= least for peer, least in LEAST[alone].items()), (ratios, alone)
    assert utilization["ours"] >= LEAST_UTILIZATION[alone], (utilization, alone)


@ON_ONE_OR_TWO_THREADS
@pytest.mark.parametrize("width", [256, pytest.param(768, marks=pytest.mark.exhaustive)])
def test_mlm_loss_of_every_row(benchmark, width, threads, results):
    who, name = ("ours", "eager", "products"), f"mlm_loss of every row {LOSS_ROWS}x{width}, {in_words(threads)}"
    medians, losses = race(benchmark, [f"loss-{each}-{width}" for each in who], threads, LOSS_ROUNDS)
    seconds = dict(zip(who, medians.values(), strict=True))
    ratios = {peer: round(seconds["ours"] / seconds[peer], 4) for peer in who[1:]}
    rate = 3 * 2 * LOSS_ROWS * width * VOCABULARY / seconds["products"]
    benchmark.extra_info.update(ratios=ratios)
    results.add(
        kind="operation", name=name, direction="step", operation="mlm_loss of every row", family="loss",
        tokens=LOSS_ROWS, width=width, seconds=seconds, ratios=ratios, gemm_flops_per_second=rate,
        share_of_floor=round(seconds["products"] / seconds["ours"], 4),
    )  # fmt: skip
    assert losses[f"loss-eager-{width}"] == pytest.approx(losses[f"loss-ours-{width}"], rel=1e-5)
    alone = quiet(results, name, rate)
    assert all(ratio <= MOST[alone][width][peer] for peer, ratio in ratios.items()), (ratios, alone)
