"""Starting a run or finding it again: settings from the command line, the run's folder, its data."""

from __future__ import annotations

import argparse
import math
import re
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cramming_train.checkpoint import write_json_atomically
from cramming_train.data import PreparedData, prepare_data
from cramming_train.data.prepare import AUTO
from cramming_train.distributed import World
from cramming_train.errors import RunError, UsageError
from cramming_train.initial_weights import check_vocabulary, initial_checkpoint, run_of
from cramming_train.plan import this_machine
from cramming_train.recipes import DEFAULT_RECIPE, Recipe, apply_overrides, get_recipe, is_set
from cramming_train.runs import RECIPE_FILE, TOKENIZER_FILE, Run, find_run, latest_run
from cramming_train.scaling import choose, is_sized

DEFAULT_HOURS = 24.0


@dataclass(frozen=True)
class Settings:
    """What decides a run, beside the machine."""

    recipe: Recipe
    seed: int
    hours: float
    tokens: int | None
    sources: tuple[str, ...]
    text_column: str
    micro_batch_given: bool = False  # by the command line: then it is not for the machine to choose
    init_from: Path | None = None  # the checkpoint whose weights come instead of random ones
    sizing: str | None = None  # what the budget was found to want, in words


def new_settings(arguments: argparse.Namespace, device: torch.device) -> Settings:
    """Settings from the command line; a recipe that is sized by its budget is sized. UsageError: a bad value."""
    hours = DEFAULT_HOURS if arguments.hours is None else arguments.hours
    if not (hours > 0 and math.isfinite(hours)):
        raise UsageError(f"--hours {hours}: want a positive number")
    if arguments.tokens is not None and arguments.tokens <= 0:
        raise UsageError(f"--tokens {arguments.tokens}: want a positive number")
    name = arguments.recipe or DEFAULT_RECIPE
    bundle = get_recipe(name)
    apply_overrides(bundle, arguments.overrides)  # refuses what cannot be before seconds go into measuring
    sizing = None
    if is_sized(name, arguments.overrides):
        choice = choose(this_machine(device), hours, arguments.tokens)
        bundle, sizing = choice.recipe, str(choice)
        if arguments.init_from and (theirs := find_run(arguments.init_from, arguments.out).recipe).name == name:
            bundle, sizing = replace(bundle, architecture=theirs.architecture), None  # weights have their size already
    recipe = apply_overrides(bundle, arguments.overrides)
    seed = 0 if arguments.seed is None else arguments.seed
    return Settings(
        recipe,
        seed,
        hours,
        arguments.tokens,
        tuple(arguments.data or [AUTO]),
        arguments.text_column or "text",
        is_set(arguments.overrides, "training.micro_batch_size"),
        arguments.init_from and initial_checkpoint(arguments.init_from, arguments.out, recipe.architecture),
        sizing,
    )


def open_run(arguments: argparse.Namespace, device: torch.device, world: World) -> tuple[Run, Settings, PreparedData]:
    """The run to train: a new folder, or with --resume an existing one. The data is ready when this returns."""
    if arguments.resume:
        run = find_run(arguments.name, arguments.out) if arguments.name else latest_run(arguments.out)
        settings = _resumed_settings(run, arguments)
        if run.summary is not None:
            raise UsageError(f"{run.name}: this run has used up its budget; start another with another --name")
        return run, settings, prepare_for(run, settings)
    if world.is_leader:
        settings = new_settings(arguments, device)
        run = Run((arguments.out / (arguments.name or _default_name(settings.recipe, world))).resolve())
        _check_free(run, arguments.name)
        prepared = _prepare(settings, device.type)
        if settings.init_from is not None:
            check_vocabulary(settings.init_from, prepared)
        _create(run, settings, prepared, device.type)
    world.barrier()
    if not world.is_leader:  # what the leader chose, which measured its own device
        run = find_run(arguments.name, arguments.out)
        given = is_set(arguments.overrides, "training.micro_batch_size")
        settings = replace(_stored_settings(run), micro_batch_given=given)
    return run, settings, prepare_for(run, settings)


def prepare_for(run: Run, settings: Settings) -> PreparedData:
    """The very data that the run was started with, prepared again where its folder is gone."""
    stored = run.settings["data"]
    path = Path(stored["path"])
    prepared = run.prepared() if path.is_dir() else _prepare(settings, stored["device_type"])
    if prepared.metadata["fingerprint"] != stored["fingerprint"]:
        raise RunError(f"{run.name}: the data has changed since the run was started ({' '.join(settings.sources)})")
    return prepared


def _default_name(recipe: Recipe, world: World) -> str:
    if world.size > 1:
        raise UsageError("--name: several processes need one name; give it")
    return f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def check_name(option: str, name: str) -> None:
    """UsageError where the name cannot be that of a run's folder."""
    if not re.fullmatch(r"[\w.\-]+", name):
        raise UsageError(f"{option} {name}: want letters, digits, '.', '_' and '-'")


def _check_free(run: Run, name: str | None) -> None:
    if name is not None:
        check_name("--name", name)
    if run.path.exists():
        raise UsageError(f"{run.path}: exists already; continue it with --resume, or choose another --name")
    folder = run.path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"--out {folder}: cannot be written to ({error.strerror}); choose another") from None


def _prepare(settings: Settings, device_type: str) -> PreparedData:
    return prepare_data(
        settings.sources, settings.recipe.data, device_type=device_type, text_column=settings.text_column
    )


def _create(run: Run, settings: Settings, prepared: PreparedData, device_type: str) -> None:
    """The folder, with all that a resume needs."""
    run.path.mkdir()
    tokenizer = (prepared.path / TOKENIZER_FILE).read_bytes()
    (run.path / TOKENIZER_FILE).write_bytes(tokenizer)
    write_json_atomically(run.path / RECIPE_FILE, stored_settings(run, settings, prepared, device_type))


def stored_settings(run: Run, settings: Settings, prepared: PreparedData, device_type: str) -> dict[str, Any]:
    """The content of recipe.json."""
    return {
        "name": run.name,
        "recipe": settings.recipe.to_dict(),
        "seed": settings.seed,
        "hours": settings.hours,
        "tokens": settings.tokens,
        "text_column": settings.text_column,
        "init_from": settings.init_from and str(settings.init_from),
        "data": {
            "sources": list(settings.sources),
            "path": str(prepared.path),
            "fingerprint": prepared.metadata["fingerprint"],
            "device_type": device_type,
        },
    }


def _stored_settings(run: Run) -> Settings:
    """What recipe.json of a run says."""
    stored = run.settings
    try:
        return Settings(
            run.recipe, stored["seed"], stored["hours"], stored["tokens"],
            tuple(stored["data"]["sources"]), stored["text_column"],
            init_from=Path(stored["init_from"]) if stored.get("init_from") else None,
        )  # fmt: skip
    except (KeyError, TypeError):
        raise RunError(f"{run.path / RECIPE_FILE}: not a run of this version") from None


def _resumed_settings(run: Run, arguments: argparse.Namespace) -> Settings:
    """The run's own settings. What the command line names as well has to agree: a budget is not changed on the way."""
    settings = _stored_settings(run)
    started_from = settings.init_from and run_of(settings.init_from).path
    asked = {
        "--init-from": (arguments.init_from and find_run(arguments.init_from, arguments.out).path, started_from),
        "--hours": (arguments.hours, settings.hours),
        "--tokens": (arguments.tokens, settings.tokens),
        "--seed": (arguments.seed, settings.seed),
        "--data": (None if arguments.data is None else tuple(arguments.data), settings.sources),
        "--text-column": (arguments.text_column, settings.text_column),
    }
    for option, (given, own) in asked.items():
        if given is not None and given != own:
            raise UsageError(f"{option}: the run {run.name} was started with {own}; a resumed run keeps its settings")
    if arguments.recipe or arguments.overrides:
        bundle = get_recipe(arguments.recipe or settings.recipe.name)
        if bundle.name == settings.recipe.name == DEFAULT_RECIPE:
            bundle = settings.recipe  # sized by the budget, on the machine where the run was started
        recipe = apply_overrides(bundle, arguments.overrides)
        if recipe != settings.recipe:
            raise UsageError(f"--recipe, --set: the run {run.name} has another recipe; a resumed run keeps its own")
    return settings
