"""A run is one folder. Here it is found again, by name, by path or as the latest, and opened."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
import torch

from cramming_train.checkpoint import (
    latest_checkpoint,
    list_checkpoints,
    load_model_tensors,
    load_state,
    load_weights,
)
from cramming_train.data import PreparedData, open_prepared
from cramming_train.data.tokenizer import load_tokenizer
from cramming_train.errors import RunError, UsageError
from cramming_train.model import MaskedLM, build_model
from cramming_train.recipes import Recipe

DEFAULT_RUNS_DIR = Path("runs")
RECIPE_FILE, LOG_FILE, SUMMARY_FILE, TOKENIZER_FILE = (
    "recipe.json",
    "log.jsonl",
    "summary.json",
    "tokenizer.json",
)


@dataclass(frozen=True)
class Run:
    """The folder of one run and what lies in it."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name: that of its folder."""
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        """The JSON-lines log."""
        return self.path / LOG_FILE

    @cached_property
    def settings(self) -> dict[str, Any]:
        """recipe.json: the whole recipe, and the seed, budget and data that the run was started with."""
        return read_json(self.path / RECIPE_FILE)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe that the run was started with."""
        try:
            return Recipe.from_dict(self.settings["recipe"])
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{self.path / RECIPE_FILE}: not a recipe of this version ({error})") from None

    @property
    def summary(self) -> dict[str, Any] | None:
        """summary.json, or None where the run has not ended."""
        path = self.path / SUMMARY_FILE
        return read_json(path) if path.exists() else None

    def tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer that the run's rows were made with."""
        path = self.path / TOKENIZER_FILE
        if not path.exists():
            raise RunError(f"{path}: the run's tokenizer is missing")
        return load_tokenizer(path)

    def prepared(self) -> PreparedData:
        """The prepared data of the run."""
        try:
            path = Path(self.settings["data"]["path"])
        except (KeyError, TypeError):
            raise RunError(f"{self.path / RECIPE_FILE}: does not say where the prepared data is") from None
        return open_prepared(path)

    def load_model(self, device: torch.device | str = "cpu") -> MaskedLM:
        """The model with the weights of the newest checkpoint, in evaluation mode."""
        checkpoint = latest_checkpoint(self.checkpoints)
        weights = load_model_tensors(checkpoint)
        model = build_model(self.recipe.architecture, load_state(checkpoint)["vocab_size"], seed=0)
        load_weights(model, weights, checkpoint)
        return model.to(device).eval()


def find_run(spec: str, runs_dir: Path = DEFAULT_RUNS_DIR) -> Run:
    """Find a run.

    Args:
        spec: ``latest``, the name of a run in ``runs_dir``, or the path of a run's folder.

    Raises:
        UsageError: no such run; the message lists those that are there.
    """
    if spec == "latest":
        return latest_run(runs_dir)
    for path in (runs_dir / spec, Path(spec)):
        if (path / RECIPE_FILE).is_file():
            return Run(path.resolve())
    known = ", ".join(run.name for run in list_runs(runs_dir)[:8]) or "none"
    raise UsageError(f"no run named {spec!r} in {runs_dir} (there: {known}), and no run's folder of that path")


def latest_run(runs_dir: Path = DEFAULT_RUNS_DIR) -> Run:
    """The run whose log was written last; UsageError where there is none."""
    runs = list_runs(runs_dir)
    if not runs:
        raise UsageError(f"no run in {runs_dir}: start one with python -m cramming_train.pretrain, or give --out")
    return runs[0]


def list_runs(runs_dir: Path = DEFAULT_RUNS_DIR) -> list[Run]:
    """All runs of a folder, the most recently written first."""
    if not runs_dir.is_dir():
        return []
    runs = [Run(path.resolve()) for path in runs_dir.iterdir() if (path / RECIPE_FILE).is_file()]
    return sorted(runs, key=_last_written, reverse=True)


def _last_written(run: Run) -> float:
    newest = [run.path / RECIPE_FILE, run.log, *list_checkpoints(run.checkpoints)]
    return max(path.stat().st_mtime for path in newest if path.exists())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a run; RunError where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: the file is missing; is this the folder of a run?") from None
    except ValueError:
        raise RunError(f"{path}: not valid JSON; the file is damaged") from None
