"""The ratios of a session, printed together at its end."""

from __future__ import annotations

import platform

import torch


def pytest_terminal_summary(terminalreporter, config):
    """One line a benchmark and peer: our median, the peer's, the ratio."""
    session = getattr(config, "_benchmarksession", None)
    rows = [bench for bench in getattr(session, "benchmarks", []) if "ratio_to_peer" in bench.extra_info]
    for bench in getattr(session, "benchmarks", []):
        if "microseconds_a_call" in bench.extra_info:
            call = bench.extra_info["microseconds_a_call"]
            backend = bench.extra_info["microseconds_of_the_backend_alone"]
            recorded = bench.extra_info["microseconds_with_autograd"]
            terminalreporter.write_line(
                f"{bench.name}: {call} us a call, {backend} us of them the backend's; {recorded} us with autograd"
            )
    if not rows:
        return
    terminalreporter.section("time against plain PyTorch, interleaved")
    machine = f"{platform.machine()}, torch {torch.__version__}"
    terminalreporter.write_line(f"{'median, ms':48} {'threads':>7} {'ours':>9} {'peer':>9} {'ratio':>6}   ({machine})")
    for bench in rows:
        info, ours = bench.extra_info, 1e3 * bench.stats.median
        for name, ratio in info["ratio_to_peer"].items():
            peer = 1e3 * info["peer_median_seconds"][name]
            terminalreporter.write_line(
                f"{bench.name:48} {info['threads']:7} {ours:9.2f} {peer:9.2f} {ratio:6.2f}   {name}"
            )
