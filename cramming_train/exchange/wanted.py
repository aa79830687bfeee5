"""Fields that must have certain values: of architectures to be exported, of configurations to be imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cramming_train.errors import UsageError
from cramming_train.recipes import Architecture


def require_fields(architecture: Architecture, **wanted: Any) -> str | None:
    """The first field of the architecture that is not as wanted, in words; None where all are."""
    for field, value in wanted.items():
        own = getattr(architecture, field)
        if own != value:
            return f"architecture.{field} is {own}, want {value}"
    return None


def require(config: Mapping[str, Any], origin: str, **wanted: Any) -> None:
    """UsageError for the first key of the configuration that is there and is not as wanted (a tuple: one of these)."""
    for key, value in wanted.items():
        allowed = value if isinstance(value, tuple) else (value,)
        if config.get(key, allowed[0]) not in allowed:
            listed = " or ".join(map(str, allowed))
            raise UsageError(f"{origin}: {key} is {config[key]}; the architectures here have {listed}")
