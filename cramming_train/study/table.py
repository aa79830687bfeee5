"""The table of a study: a row a contender, medians over seeds, the first contender being what others are held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

CLOCKS = {"processor": ("processor_seconds", 2), "wall": ("step_seconds", 1)}  # field of a cell, column of its curve
HEADER = (
    "contender", "budget", "seeds", "loss", "spread", "accuracy %", "bits/char", "tokens", "tokens/s", "seconds",
    "s to A's loss", "A's s / these",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A contender, over its finished seeds.

    Attributes:
        loss: median of the held-out loss in nats; ``spread``: largest less smallest over the seeds.
        seconds: median time in optimizer steps, by the chosen clock.
        seconds_to_first: median time to the first contender's median loss, on the line through the held-out losses of
            the run; None where it was not reached, or was not measured on the same rows.
        comparable: measured on the held-out rows of the first contender.
    """

    label: str
    budget: str
    seeds: int
    loss: float
    spread: float
    accuracy: float
    bits_per_character: float
    tokens: float
    tokens_per_second: float
    seconds: float
    seconds_to_first: float | None
    comparable: bool


def make_rows(labels: Sequence[str], cells: Sequence[dict[str, Any]], clock: str) -> list[Row]:
    """Rows of the contenders that have a finished cell, in the order of ``labels``."""
    field, column = CLOCKS[clock]
    groups = {label: [cell for cell in cells if cell["label"] == label] for label in labels}
    groups = {label: group for label, group in groups.items() if group}
    if not groups:
        return []
    first = next(iter(groups.values()))
    target, held_out = median(cell["loss"] for cell in first), first[0]["held_out"]
    rows = []
    for label, group in groups.items():
        comparable = group[0]["held_out"] == held_out
        reached = [crossing(cell["curve"], column, target) if comparable else None for cell in group]
        times = [time for time in reached if time is not None]
        losses = [cell["loss"] for cell in group]
        rows.append(
            Row(
                label=label,
                budget=budget_of(group[0]),
                seeds=len(group),
                loss=median(losses),
                spread=max(losses) - min(losses),
                accuracy=median(cell["accuracy"] for cell in group),
                bits_per_character=median(cell["bits_per_character"] for cell in group),
                tokens=median(cell["tokens"] for cell in group),
                tokens_per_second=median(cell["tokens"] / cell[field] for cell in group),
                seconds=median(cell[field] for cell in group),
                seconds_to_first=median(times) if len(times) == len(group) else None,
                comparable=comparable,
            )
        )
    return rows


def crossing(curve: Sequence[Sequence[float]], column: int, target: float) -> float | None:
    """When a held-out curve first falls to ``target``, on the straight line between two validations; None if never."""
    before = None
    for point in curve:
        time, loss = point[column], point[3]
        if loss <= target:
            if before is None or before[1] <= loss:
                return time
            share = (before[1] - target) / (before[1] - loss)
            return before[0] + share * (time - before[0])
        before = time, loss
    return None


def budget_of(cell: dict[str, Any]) -> str:
    """In words."""
    return f"{cell['budget_tokens'] / 1e6:g} M" if cell["budget_tokens"] else f"{cell['budget_hours']:g} h"


def markdown(rows: Sequence[Row]) -> str:
    """The table."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    for row in rows:
        lines.append("| " + " | ".join(_cells(row, rows[0])) + " |")
    return "\n".join(lines)


def _cells(row: Row, first: Row) -> list[str]:
    reached = row.seconds_to_first
    mark = "" if row.comparable else " (other rows)"
    return [
        row.label, row.budget, str(row.seeds), f"{row.loss:.3f}{mark}",
        f"{row.spread:.3f}" if row.seeds > 1 else "", f"{100 * row.accuracy:.1f}", f"{row.bits_per_character:.3f}",
        f"{row.tokens / 1e6:.3f} M", f"{row.tokens_per_second:,.0f}", f"{row.seconds:,.0f}",
        "" if reached is None else f"{reached:,.0f}", "" if reached is None else f"{first.seconds / reached:.2f}",
    ]  # fmt: skip
