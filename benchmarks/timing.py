"""Variants of one operation timed in turn on a device: what else the machine does meets all of them alike."""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch

from benchmarks import peers
from benchmarks.devices import Card, Processor, Stopwatch
from benchmarks.operations import Operation

OURS = "ours"
MOST_COPIES = 16
SECONDS, ROUNDS = 3.0, (4, 1001)  # of an attempt, all implementers together; at least and at most so many rounds
Samples = dict[str, list[float]]


def copies(device: Processor | Card, operation: Operation) -> int:
    """Sets of inputs in turn: more than the card's cache holds twice over, so that each launch finds its own cold."""
    if not device.cache_bytes:
        return 1
    a_set = operation.compulsory("forward", device.dtype.itemsize) // 2 or operation.shape.vocabulary * 1024
    return min(max(math.ceil(2 * device.cache_bytes / a_set), 3), MOST_COPIES)


def stopwatches(
    device: Processor | Card, operation: Operation, direction: str = "step", *, compiled: bool = False
) -> dict[str, Stopwatch]:
    """Of the forward and the backward together ("step") or of the forward alone: ours and each peer's."""
    problems = [operation.problem(device.torch, device.dtype, seed) for seed in range(copies(device, operation))]
    if compiled:
        torch.compiler.reset()
        once = torch.compile(problems[0].functions["eager"], dynamic=False)  # the others' inputs are like the first's
        for problem in problems:
            problem.functions[peers.COMPILED] = once
    made = {}
    for who in problems[0].functions:
        calls = [getattr(problem, direction)(who) for problem in problems]
        made[who] = device.stopwatch(calls, capture=who not in peers.UNCAPTURED)
    return made


def in_turn(watches: dict[str, Stopwatch], rounds: int, benchmark: Any = None) -> Samples:
    """Seconds a call of each, in rounds; every other round in the reverse order.

    With pytest-benchmark's fixture ours is what it times, too, so that its table and its JSON have the run.
    """
    samples: Samples = {who: [] for who in watches}
    others = [who for who in watches if who != OURS]

    def take(who: str) -> None:
        samples[who].append(watches[who]())

    def take_others() -> None:
        for who in others if len(samples[OURS]) % 2 else reversed(others):
            take(who)

    for who in watches:  # once for nothing: the first call allocates
        watches[who]()
    if benchmark is not None:
        benchmark.pedantic(take, args=(OURS,), setup=take_others, rounds=rounds)
    else:
        for _ in range(rounds):
            take_others()
            take(OURS)
    return samples


def medians(samples: Samples) -> dict[str, float]:
    """Seconds a call, by implementer."""
    return {who: statistics.median(taken) for who, taken in samples.items()}


def ratios(samples: Samples) -> dict[str, float]:
    """Ours to each peer's: the median over the rounds of the ratio within a round, whose halves met the same noise."""
    return {
        who: statistics.median(a / b for a, b in zip(samples[OURS], taken, strict=True))
        for who, taken in samples.items()
        if who != OURS
    }


def difference(step: dict[str, float], forward: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """The backward, as seconds and ratios: the step's time without the forward's."""
    seconds = {who: step[who] - forward[who] for who in step if step[who] > forward[who]}
    if OURS not in seconds:
        return {OURS: step[OURS]}, {}
    return seconds, {who: seconds[OURS] / taken for who, taken in seconds.items() if who != OURS}


class Measurement:
    """Called, measures and returns the ratios; called again, those of all samples so far.

    The first time through pytest-benchmark, whose fixture measures once.
    """

    def __init__(self, watches: dict[str, Stopwatch], benchmark: Any = None, seconds: float = SECONDS):
        self.watches, self.benchmark = watches, benchmark
        self.samples: Samples = {who: [] for who in watches}
        one_turn = sum(watch() for watch in watches.values()) and sum(watch() for watch in watches.values())
        self.rounds = min(max(int(seconds / max(one_turn, 1e-9)), ROUNDS[0]), ROUNDS[1])

    def __call__(self) -> dict[str, float]:
        for who, taken in in_turn(self.watches, self.rounds, self.benchmark).items():
            self.samples[who] += taken
        self.benchmark = None
        return ratios(self.samples)
