"""Timing of two variants in turn, so that what else the machine does meets both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def compare(benchmark: Any, ours: Callable[[], object], peer: Callable[[], object], rounds: int) -> float:
    """Time ``ours`` with pytest-benchmark, ``peer`` once before every round; returns median(ours) / median(peer).

    The peer's median and the ratio go to the benchmark's ``extra_info`` and so into ``--benchmark-json``.
    """
    ours()
    peer()
    peer_seconds: list[float] = []

    def run_peer() -> None:
        started = time.perf_counter()
        peer()
        peer_seconds.append(time.perf_counter() - started)

    benchmark.pedantic(ours, setup=run_peer, rounds=rounds)
    peer_median = statistics.median(peer_seconds)
    ratio = benchmark.stats.stats.median / peer_median
    benchmark.extra_info.update(peer_median_seconds=peer_median, ratio_to_peer=round(ratio, 3))
    return ratio
