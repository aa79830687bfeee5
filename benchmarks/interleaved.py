"""Timing of variants in turn, so that what else the machine does meets all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def compare_all(
    benchmark: Any,
    ours: Callable[[], object],
    peers: dict[str, Callable[[], object]],
    rounds: int,
    timer: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Time ``ours`` with pytest-benchmark, every peer once before each round; median(ours) / median(peer), by peer.

    ``timer`` is the benchmark's. The peers' medians and the ratios go to its ``extra_info`` and so into
    ``--benchmark-json``.
    """
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for run in (ours, *peers.values()):
        run()

    def run_peers() -> None:
        for name, peer in peers.items():
            started = timer()
            peer()
            seconds[name].append(timer() - started)

    benchmark.pedantic(ours, setup=run_peers, rounds=rounds)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ratios = {name: benchmark.stats.stats.median / median for name, median in medians.items()}
    benchmark.extra_info.update(
        threads=torch.get_num_threads(),
        peer_median_seconds=medians,
        ratio_to_peer={name: round(ratio, 3) for name, ratio in ratios.items()},
    )
    return ratios
