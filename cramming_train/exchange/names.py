"""Names of parameters, translated by a table of modules; ``{}`` stands for the number of a layer."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from cramming_train.errors import UsageError

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def renamed(weights: Mapping[str, Tensor], table: Mapping[str, str], origin: str) -> dict[str, Tensor]:
    """The same tensors under the names that ``table`` has for theirs.

    Args:
        table: module -> module, or name of a parameter -> name of a parameter.

    Raises:
        UsageError: a name that the table does not know; ``origin`` is where it came from.
    """
    result = {}
    for name, tensor in weights.items():
        found = _renamed(name, table)
        if found is None:
            raise UsageError(f"{origin}: the tensor {name} has no place in the architectures here")
        result[found] = tensor
    return result


def _renamed(name: str, table: Mapping[str, str]) -> str | None:
    number = _NUMBER.search(name)
    pattern = _NUMBER.sub("{}", name, count=1)
    module, _, kind = pattern.rpartition(".")
    found = table.get(pattern) or (f"{table[module]}.{kind}" if module in table else None)
    return found.format(number.group()) if found and number else found


def reversed_table(table: Mapping[str, str]) -> dict[str, str]:
    """The table for the way back."""
    return {theirs: ours for ours, theirs in table.items()}


def without_tied(weights: dict[str, Tensor], copy: str, original: str, origin: str) -> None:
    """Drop the tensor ``copy``, which has to be ``original`` once more; where only the copy is there, it becomes that.

    Raises:
        UsageError: the two differ.
    """
    tied = weights.pop(copy, None)
    if tied is None:
        return
    if not tied.equal(weights.setdefault(original, tied)):
        raise UsageError(f"{origin}: {copy} is not {original}; only models with a tied decoder are known here")
