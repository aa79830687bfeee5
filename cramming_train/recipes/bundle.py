"""Bundles: the whole recipe of a run under one name, and its JSON form."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

from cramming_train.errors import UsageError
from cramming_train.recipes.architecture import ARCHITECTURES, Architecture
from cramming_train.recipes.data import DATASETS, Data
from cramming_train.recipes.evaluation import EVALUATIONS, Evaluation
from cramming_train.recipes.training import TRAININGS, Training

PARTS: dict[str, tuple[type, dict[str, Any]]] = {
    "architecture": (Architecture, ARCHITECTURES),
    "training": (Training, TRAININGS),
    "data": (Data, DATASETS),
    "evaluation": (Evaluation, EVALUATIONS),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a run does, except the text and the budget."""

    name: str
    architecture: Architecture
    training: Training
    data: Data
    evaluation: Evaluation

    def __post_init__(self) -> None:
        if self.data.row_length > self.architecture.max_length:
            raise ValueError(
                f"data.row_length: {self.data.row_length} is more than architecture.max_length = "
                f"{self.architecture.max_length}; raise that as well"
            )
        if self.training.unigram_bias and not self.architecture.decoder_bias:
            raise ValueError("training.unigram_bias: the architecture has no decoder_bias to start there")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Recipe:
        """The inverse of :meth:`to_dict`. KeyError, TypeError or ValueError where it is not one of ours."""
        parts = {}
        for part, (kind, _) in PARTS.items():
            fields = dict(content[part])
            if "betas" in fields:
                fields["betas"] = tuple(fields["betas"])
            parts[part] = kind(**fields)
        return cls(content["name"], **parts)


def _bundle(name: str, architecture: str, training: str, data: str = "crammed") -> Recipe:
    return Recipe(name, ARCHITECTURES[architecture], TRAININGS[training], DATASETS[data], EVALUATIONS["glue-sane"])


BUNDLES = {
    r.name: r
    for r in (
        _bundle("cram", "cram", "cram", "cram"),
        _bundle("crammed-bert", "crammed-bert", "bert-o4"),
        _bundle("crammed-bert-mini", "crammed-bert-mini", "bert-o4-mini"),
        _bundle("cram-mini", "cram-mini", "cram-mini", "cram"),
        _bundle("crammed-bert-simple", "crammed-bert-simple", "bert-o4"),
        _bundle("bert-base", "bert-base", "bert-original"),
        _bundle("bert-tiny", "bert-tiny", "bert-o4-mini"),
        _bundle("bert-large-izsak", "bert-large-izsak", "bert-izsak"),
    )
}


DEFAULT_RECIPE = "cram"  # pretrain sizes it by the budget: cramming_train/scaling.py


def get_recipe(name: str) -> Recipe:
    """A bundle by name; UsageError that lists the known ones."""
    return lookup("recipe", name, BUNDLES)


def lookup(what: str, name: str, table: dict[str, Any]) -> Any:
    """A table's entry by name; UsageError with the closest name and all names."""
    if name in table:
        return table[name]
    raise UsageError(f"unknown {what} {name!r}{did_you_mean(name, table)}; known: {', '.join(table)}")


def did_you_mean(name: str, known: Any) -> str:
    """' (did you mean ...?)', or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
