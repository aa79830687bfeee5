"""``cram`` for a budget: how large a model, and in which batches, by a law fitted to small runs (docs/recipe.md).

The law is that of :mod:`benchmarks.scaling_law`, which wrote scaling.json. Of a ladder of sizes the one is taken whose
held-out loss would be the lowest after the tokens that the machine is predicted to train it on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from cramming_train.errors import UsageError
from cramming_train.prediction import predict
from cramming_train.rates import Machine
from cramming_train.recipes import DEFAULT_RECIPE, Recipe, get_recipe, is_replaced, is_set

LAW_FILE = Path(__file__).parent / "scaling.json"
BATCH_TOKENS, BATCH_BUDGET, BATCH_EXPONENT = 1024, 330_000, 0.4  # a batch, the budget it is for, growth with budgets
FEW_ROWS = 16  # in a batch, up to which Muon moves in every second step
CHOSEN = ("architecture.layers", "architecture.hidden", "training.batch_size")  # who gives one of these, sizes himself
ABOVE = 1.5  # times the balanced size, to the nearest on the ladder


class Law(NamedTuple):
    """L = floor + a / N**alpha + b / T**beta; N parameters in the blocks, T tokens."""

    floor: float
    a: float
    alpha: float
    b: float
    beta: float

    def balanced(self, tokens: float) -> float:
        """Parameters for which these tokens are neither few nor many: of 6 N T operations the best use."""
        return (self.alpha * self.a / (self.beta * self.b * tokens**-self.beta)) ** (1 / self.alpha)

    def loss(self, parameters: float, tokens: float) -> float:
        """Held-out loss in nats."""
        return self.floor + self.a * parameters**-self.alpha + self.b * tokens**-self.beta


class Size(NamedTuple):
    """Of an encoder, in heads of 64 columns and a gated FFN of four widths."""

    layers: int
    hidden: int

    @property
    def parameters(self) -> int:
        """In the matrices of the blocks."""
        return 10 * self.layers * self.hidden**2

    def __str__(self) -> str:
        return f"{self.layers} layers of {self.hidden}"


LADDER = (Size(2, 128), Size(4, 256), Size(6, 384), Size(8, 512), Size(12, 640), Size(16, 768), Size(24, 1024))


@dataclass(frozen=True)
class Choice:
    """What a budget was found to want."""

    size: Size
    recipe: Recipe
    tokens: int
    loss: float
    allowed: tuple[Size, Size]  # in nine of ten fits that the runs would allow as well: the smallest, the largest
    losses: tuple[float, float]  # of ``size``, by these

    def __str__(self) -> str:
        smallest, largest = self.allowed
        others = (
            "" if smallest == largest == self.size else f" (the runs behind it would allow {smallest} to {largest})"
        )
        return f"{self.recipe.name}: {self.size}, batches of {self.recipe.training.batch_size} rows{others}"

    @property
    def expectation(self) -> str:
        """What the law says of its end."""
        low, high = self.losses
        return (
            f"held-out loss {self.loss:.2f} by the law, {low:.2f} to {high:.2f} by what the runs would allow as well: "
            "an extrapolation from short runs on a CPU (docs/recipe.md)"
        )


@cache
def laws() -> tuple[Law, tuple[Law, ...]]:
    """(the law, an ensemble of what the runs would allow)."""
    content = json.loads(LAW_FILE.read_text(encoding="utf-8"))
    return Law(*content["law"]), tuple(Law(*member) for member in content["ensemble"])


def batch_rows(tokens: float, row_length: int) -> int:
    """The batch for a budget, a power of two: it grows with the budget, but more slowly."""
    rows = BATCH_TOKENS * (tokens / BATCH_BUDGET) ** BATCH_EXPONENT / row_length
    return 2 ** max(round(math.log2(rows)), 2)


def sized(size: Size, tokens: float) -> Recipe:
    """``cram`` of this size for this many tokens."""
    recipe = get_recipe(DEFAULT_RECIPE)
    rows = batch_rows(tokens, recipe.data.row_length)
    architecture = replace(
        recipe.architecture, layers=size.layers, hidden=size.hidden, heads=size.hidden // 64, ffn_hidden=4 * size.hidden
    )
    training = replace(
        recipe.training,
        batch_size=rows,
        micro_batch_size=min(rows, recipe.training.micro_batch_size),
        matrix_interval=2 if rows <= FEW_ROWS else 1,
    )
    return replace(recipe, architecture=architecture, training=training)


def is_sized(name: str, overrides: Sequence[str]) -> bool:
    """Whether a recipe of this name with these settings is to be sized."""
    given = [is_set(overrides, field) for field in CHOSEN]
    given += [is_replaced(overrides, part) for part in ("architecture", "training")]
    return name == DEFAULT_RECIPE and not any(given)


def choose(machine: Machine, hours: float, tokens: int | None = None) -> Choice:
    """The size for a budget of time on a machine; for one of tokens what would be best for as many operations.

    What is lowest is the mean of the losses that the ensemble expects: what is not known for sure counts both ways.

    Raises:
        UsageError: not even the smallest fits the machine's memory.
    """
    law, others = laws()
    within = _tokens_within(machine, hours)
    if not within:
        raise UsageError(f"{machine.name}: its memory does not hold the smallest model of {DEFAULT_RECIPE!r}")
    if tokens is not None:
        most = max(law.balanced(tokens) * ABOVE, LADDER[0].parameters)
        within = {size: min(count, tokens) for size, count in within.items() if size.parameters <= most}
    expected = {size: [one.loss(size.parameters, count) for one in others] for size, count in within.items()}
    size = min(within, key=lambda size: sum(expected[size]))
    preferred = [min(within, key=lambda size, i=i: expected[size][i]) for i in range(len(others))]
    return Choice(
        size=size,
        recipe=sized(size, within[size]),
        tokens=within[size],
        loss=law.loss(size.parameters, within[size]),
        allowed=_nine_tenths(preferred),
        losses=_nine_tenths(expected[size]),
    )


def _tokens_within(machine: Machine, hours: float) -> dict[Size, int]:
    """What a machine is predicted to train each size on that fits its memory."""
    within = {}
    tokens = max(predict(sized(LADDER[0], 1e9), machine, hours).tokens, 1)  # about: batches follow the tokens
    for size in LADDER:
        prediction = predict(sized(size, tokens), machine, hours)
        if not prediction.fits:
            break
        tokens = within[size] = max(prediction.tokens, 1)
    return within


def _nine_tenths(values: Sequence) -> tuple:
    """Smallest and largest without a twentieth at either end."""
    ordered, left_out = sorted(values), len(values) // 20
    return ordered[left_out], ordered[-1 - left_out]
