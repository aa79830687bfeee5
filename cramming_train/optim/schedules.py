"""Schedules as pure functions of the fraction of the budget used, t in [0, 1].

All but the trapezoid are those of the original's "budget" schedulers (cramming, backend/optimizers/schedulers.py),
which rescale the usual step-based ones by elapsed time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

_POLYNOMIAL_END = 1e-3  # the original decays from 1e-4 to 1e-7


def _triangle(t: float, warmup: float, cooldown: float) -> float:
    """min(.25 + t, 4 - 4t): from a quarter to the peak at t = .75, then to zero ("budget-triangle2")."""
    return min(0.25 + t, 4 - 4 * t)


def _one_cycle(t: float, warmup: float, cooldown: float) -> float:
    """Up to the peak at half time, down to zero at the end."""
    return min(2 * t, 2 - 2 * t)


def _linear(t: float, warmup: float, cooldown: float) -> float:
    """Linear warm-up, then linear to zero."""
    return t / warmup if t < warmup else (1 - t) / (1 - warmup)


def _cosine(t: float, warmup: float, cooldown: float) -> float:
    """Linear warm-up, then half a cosine to zero."""
    return t / warmup if t < warmup else 0.5 * (1 + math.cos(math.pi * (t - warmup) / (1 - warmup)))


def _polynomial(t: float, warmup: float, cooldown: float) -> float:
    """Linear warm-up, then a first-degree polynomial to a thousandth of the peak."""
    return t / warmup if t < warmup else _POLYNOMIAL_END + (1 - _POLYNOMIAL_END) * (1 - t) / (1 - warmup)


def _constant(t: float, warmup: float, cooldown: float) -> float:
    """Linear warm-up, then the peak."""
    return t / warmup if t < warmup else 1.0


def _trapezoid(t: float, warmup: float, cooldown: float) -> float:
    """Linear warm-up, the peak, then linear to zero ("warmup-stable-decay", Hu et al. 2024)."""
    return t / warmup if t < warmup else min(1.0, (1 - t) / cooldown)


SCHEDULES: dict[str, Callable[[float, float, float], float]] = {
    "triangle": _triangle,
    "one-cycle": _one_cycle,
    "linear": _linear,
    "cosine": _cosine,
    "polynomial": _polynomial,
    "constant": _constant,
    "trapezoid": _trapezoid,
}


def learning_rate_factor(name: str, fraction: float, warmup: float, cooldown: float = 1.0) -> float:
    """Factor in [0, 1] on the peak learning rate after ``fraction`` of the budget.

    ``warmup`` and ``cooldown`` (of the trapezoid alone) are fractions too.
    """
    return max(SCHEDULES[name](min(max(fraction, 0.0), 1.0), warmup, cooldown), 0.0)


def batch_size_at(fraction: float, *, ceiling: int, ramp: float, micro_batch: int) -> int:
    """Rows of a batch: min(mbs * floor(t * ceiling / ramp / mbs + 1), ceiling), one micro-batch at the start.

    The original's relative ramp, for any ceiling and ramp; ``ramp`` = 0 is a constant batch.
    """
    if ramp == 0:
        return ceiling
    return min(micro_batch * math.floor(fraction * ceiling / ramp / micro_batch + 1), ceiling)


def masking_rate_at(fraction: float, start: float, end: float) -> float:
    """Share of masked positions, linear from ``start`` to ``end`` of the budget."""
    return start + (end - start) * min(max(fraction, 0.0), 1.0)


def window_at(fraction: float, *, first: int | None, growth: float, row_length: int) -> int | None:
    """|i - j| that attention reaches: ``first``, doubled at equal intervals, and None (all) from ``growth`` on.

    A narrow window shows a young model its neighbours first, which decide most of what it can learn then (after the
    window warm-up of Jordan et al. 2024, github.com/KellerJordan/modded-nanogpt). Few windows are few kernels to
    capture.
    """
    if first is None or fraction >= growth or first >= row_length:
        return None
    widths = math.ceil(math.log2(row_length / first))
    return first << min(int(fraction / growth * widths), widths - 1)


def micro_batches_at(rows: int, unit: int, micro_rows: int, processes: int) -> int:
    """Micro-batches of ``micro_rows`` rows, per process, of a step of ``rows``.

    Batches grow in units of the recipe's micro-batch, whatever part of one (a divisor) this machine takes at a time.
    """
    return max(rows // (unit * processes), 1) * (unit // micro_rows)


def smaller_micro_batch(rows: int) -> int:
    """The largest divisor that is smaller: of a power of two, its half."""
    return next(candidate for candidate in range(rows // 2, 0, -1) if rows % candidate == 0)
