"""``--set key=value``: replace whole parts of a recipe, or single fields of them."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterable
from typing import Any

from cramming_train.errors import UsageError
from cramming_train.recipes.bundle import PARTS, Recipe, did_you_mean, lookup


def apply_overrides(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """A recipe with changes.

    ``training=bert-izsak`` takes a whole part by name; ``training.batch_size=64`` sets a field. A field's name
    alone will do where only one part has it. Parts are replaced first, whatever the order of the settings.

    Raises:
        UsageError: unknown part, name or field, a value of the wrong type or out of range.
    """
    pairs = [_split(setting) for setting in settings]
    parts = {part: getattr(recipe, part) for part in PARTS}
    for key, value in pairs:
        if key in PARTS:
            parts[key] = lookup(f"{key} recipe", value, PARTS[key][1])
    changes: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
    for key, value in pairs:
        if key not in PARTS:
            part, field = _resolve(key)
            changes[part][field.name] = _parse(f"{part}.{field.name}", value, _field_type(PARTS[part][0], field.name))
    try:
        parts = {part: dataclasses.replace(parts[part], **changes[part]) for part in PARTS}
        return Recipe(recipe.name, **parts)
    except ValueError as error:
        raise UsageError(f"--set {error}") from None


def is_set(settings: Iterable[str], key: str) -> bool:
    """Whether the settings give the field ``part.name`` a value, by its full name or the short one."""
    fields = (_split(setting)[0] for setting in settings)
    return any(
        ".".join((part, field.name)) == key for part, field in map(_resolve, (f for f in fields if f not in PARTS))
    )


def is_replaced(settings: Iterable[str], part: str) -> bool:
    """Whether the settings give the whole part by name."""
    return any(_split(setting)[0] == part for setting in settings)


def _split(setting: str) -> tuple[str, str]:
    key, equals, value = setting.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {setting!r}: want key=value, such as training.batch_size=64")
    return key.strip(), value.strip()


def _resolve(key: str) -> tuple[str, dataclasses.Field]:
    fields = {
        f"{part}.{field.name}": (part, field)
        for part, (kind, _) in PARTS.items()
        for field in dataclasses.fields(kind)
        if field.name != "name"
    }
    if key in fields:
        return fields[key]
    matches = [full for full in fields if full.split(".")[1] == key]
    if len(matches) == 1:
        return fields[matches[0]]
    if matches:
        raise UsageError(f"--set {key}: could be {' or '.join(matches)}; say which")
    candidates = list(fields) + [full.split(".")[1] for full in fields] + list(PARTS)
    raise UsageError(f"--set {key}: no such key{did_you_mean(key, candidates)}")


def _field_type(kind: type, name: str) -> Any:
    return typing.get_type_hints(kind)[name]


def _parse(key: str, text: str, kind: Any) -> Any:
    """A value of the field's type from its text."""
    if isinstance(kind, types.UnionType):
        if text.lower() in ("none", "null"):
            return None
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is int:
            return int(text.replace("_", ""))
        if kind is float:
            return float(text)
        if typing.get_origin(kind) is tuple:
            values = json.loads(text if text.startswith("[") else f"[{text}]")
            return tuple(float(value) for value in values)
        return text
    except (ValueError, KeyError, TypeError):
        wanted = "two numbers, such as 0.9,0.98" if typing.get_origin(kind) is tuple else kind.__name__
        raise UsageError(f"--set {key}: got {text!r}, want {wanted}") from None
