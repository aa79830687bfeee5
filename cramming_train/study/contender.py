"""A contender of a study: a recipe with changes, and perhaps a budget of its own, written as one line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cramming_train.errors import UsageError
from cramming_train.recipes import Recipe, apply_overrides, get_recipe

BUDGETS: dict[str, Callable[[str], float]] = {"tokens": int, "hours": float}


@dataclass(frozen=True)
class Contender:
    """What ``[LABEL:] RECIPE [KEY=VALUE ...] [tokens=N | hours=H]`` says.

    Attributes:
        recipe: with the overrides applied; ``name`` and ``overrides`` are what the command line of pretrain takes.
        tokens, hours: the budget; one of them is None.
    """

    label: str
    name: str
    overrides: tuple[str, ...]
    recipe: Recipe
    tokens: int | None
    hours: float | None

    @property
    def budget(self) -> str:
        """In words."""
        return f"{self.tokens:,} tokens" if self.tokens is not None else f"{self.hours:g} hours"

    @property
    def mark(self) -> str:
        """Tells this recipe and budget from others."""
        content = json.dumps([self.recipe.to_dict(), self.tokens, self.hours], sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=6).hexdigest()


def parse_contender(line: str, tokens: int | None, hours: float | None) -> Contender:
    """Read a line; ``tokens`` or ``hours`` is the budget where the line gives none.

    Raises:
        UsageError: no recipe, an unknown one, an unknown key or value, a budget that is not a positive number.
    """
    label, colon, rest = line.partition(":")
    words = (rest if colon else line).split()
    if not words:
        raise UsageError(f"--recipes {line!r}: names no recipe; want '[LABEL:] RECIPE [KEY=VALUE ...]'")
    name, *settings = words
    own = {key: value for key, _, value in (word.partition("=") for word in settings) if key in BUDGETS}
    if len(own) > 1:
        raise UsageError(f"--recipes {line!r}: give tokens= or hours=, not both")
    overrides = tuple(word for word in settings if word.partition("=")[0] not in BUDGETS)
    budget: dict[str, Any] = {"tokens": tokens, "hours": hours}
    for key, value in own.items():
        budget = dict.fromkeys(BUDGETS) | {key: _positive(line, key, value)}
    recipe = apply_overrides(get_recipe(name), overrides)
    return Contender((label if colon else line).strip(), name, overrides, recipe, **budget)


def parse_contenders(lines: Sequence[str], tokens: int | None, hours: float | None) -> list[Contender]:
    """All lines; UsageError where two of them have one label."""
    contenders = [parse_contender(line, tokens, hours) for line in lines]
    labels = [contender.label for contender in contenders]
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"--recipes: two are called {label!r}; give each a label of its own ('LABEL: RECIPE ...')")
    return contenders


def _positive(line: str, key: str, value: str) -> float | int:
    try:
        number = BUDGETS[key](value)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise UsageError(f"--recipes {line!r}: {key}={value}: want a positive number")
    return number
