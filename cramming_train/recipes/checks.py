"""Range checks shared by the recipe dataclasses. Messages name part.field, what was given and what is accepted."""

from __future__ import annotations

import math
from typing import Any


def _label(recipe: Any, field: str) -> str:
    return f"{type(recipe).__name__.lower()}.{field}"


def check_positive(recipe: Any, *fields: str) -> None:
    """Every field > 0 and finite."""
    for field in fields:
        if not 0 < getattr(recipe, field) < math.inf:
            raise ValueError(f"{_label(recipe, field)}: got {getattr(recipe, field)}, want a positive number")


def check_positive_or_none(recipe: Any, *fields: str) -> None:
    """Every field None, or > 0 and finite."""
    for field in fields:
        value = getattr(recipe, field)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{_label(recipe, field)}: got {value}, want a positive number or null")


def check_not_negative(recipe: Any, *fields: str) -> None:
    """Every field >= 0 and finite."""
    for field in fields:
        if not 0 <= getattr(recipe, field) < math.inf:
            raise ValueError(f"{_label(recipe, field)}: got {getattr(recipe, field)}, want a number >= 0")


def check_share(recipe: Any, *fields: str) -> None:
    """Every field in [0, 1)."""
    for field in fields:
        if not 0 <= getattr(recipe, field) < 1:
            raise ValueError(f"{_label(recipe, field)}: got {getattr(recipe, field)}, want a number in [0, 1)")


def check_choice(recipe: Any, **choices: tuple) -> None:
    """Every field among its choices."""
    for field, accepted in choices.items():
        if getattr(recipe, field) not in accepted:
            known = ", ".join(str(choice) for choice in accepted)
            raise ValueError(f"{_label(recipe, field)}: got {getattr(recipe, field)!r}, want one of: {known}")


def check_betas(recipe: Any) -> None:
    """Two momentum coefficients in [0, 1)."""
    betas = recipe.betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"{_label(recipe, 'betas')}: got {betas}, want two numbers in [0, 1)")
