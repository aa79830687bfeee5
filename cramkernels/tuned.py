"""What ``python -m cramkernels.tune`` chose for this card: a JSON file in the user's cache folder, read once.

A file that cannot be read, or that another card or another version of this library wrote, is passed over with a warning
of one line; launches then take the configurations of cramkernels/configurations.py.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from cramkernels.configurations import FIELDS, Key, Tiling, known

FORMAT = 1
REMEDY = "run python -m cramkernels.tune again, or delete it"


class Stale(ValueError):
    """A good file for something else."""


class Card(NamedTuple):
    """What a choice holds for."""

    device: str  # its name
    capability: int  # 86 for sm_86
    library: str  # version of this package

    @property
    def path(self) -> Path:
        """The file with the choices."""
        name = re.sub(r"[^a-z0-9]+", "-", self.device.lower()).strip("-")
        return cache_folder() / "tuned" / f"{name}-sm_{self.capability}.json"


def library_version() -> str:
    """Of the installed package; of a bare checkout there is none."""
    try:
        return version("cramkernels")
    except PackageNotFoundError:
        return "unknown"


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/cramkernels, or ~/.cache/cramkernels; a relative $XDG_CACHE_HOME counts as none."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "cramkernels"


def store(card: Card, choices: Mapping[Key, Tiling]) -> Path:
    """Write the file, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    rows = [dict(zip(FIELDS, (*key, *tiling), strict=True)) for key, tiling in choices.items()]
    content = {"format": FORMAT, **card._asdict(), "tilings": rows}
    path = card.path
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(json.dumps(content, indent=1) + "\n")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return path


def load(card: Card) -> dict[Key, Tiling]:
    """The choices for this card; none where there is no good file."""
    try:
        text = card.path.read_text()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        return _passed_over(card, f"cannot be read ({type(error).__name__})")
    try:
        return _parsed(card, json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return _passed_over(
            card, f"is damaged ({type(error).__name__})" if not isinstance(error, Stale) else str(error)
        )


def _parsed(card: Card, content: dict) -> dict[Key, Tiling]:
    if content["format"] != FORMAT:
        raise Stale(f"has format {content['format']}, not {FORMAT}")
    for name, want in card._asdict().items():
        if content[name] != want:
            raise Stale(f"is for {name} {content[name]}, not {want}")
    choices = {}
    for row in content["tilings"]:
        values = [row[name] for name in FIELDS]
        key, tiling = Key(*values[: len(Key._fields)]), Tiling(*values[len(Key._fields) :])
        if (found := known(key, tiling)) is None:
            raise Stale(f"has a configuration that this version does not know, of {key.kernel}")
        choices[found[0]] = found[1]
    return choices


def _passed_over(card: Card, why: str) -> dict[Key, Tiling]:
    warnings.warn(f"{card.path} {why} and is ignored: {REMEDY}", RuntimeWarning, stacklevel=4)
    return {}
