"""Starting a run from another run's weights, of the same architecture and vocabulary. Outside the rules."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cramming_train.checkpoint import latest_checkpoint, load_model_tensors, load_weights
from cramming_train.data import PreparedData
from cramming_train.errors import UsageError
from cramming_train.model import MaskedLM
from cramming_train.recipes import Architecture
from cramming_train.runs import Run, find_run

# what says how weights begin or are trained, and not what they compute
FREE = {"name", "init_std", "output_init", "dropout", "attention_dropout", "embedding_dropout"}


def initial_checkpoint(spec: str, runs_dir: Path, architecture: Architecture) -> Path:
    """The newest checkpoint of the run ``spec``; UsageError where there is none such, or of another architecture."""
    run = find_run(spec, runs_dir)
    theirs = run.recipe.architecture
    for field in dataclasses.fields(Architecture):
        own, other = getattr(architecture, field.name), getattr(theirs, field.name)
        if field.name not in FREE and own != other:
            raise UsageError(
                f"--init-from {spec}: its architecture.{field.name} is {other}, this run's {own}; "
                f"give --set architecture.{field.name}={other}, or its recipe"
            )
    return latest_checkpoint(run.checkpoints)


def run_of(checkpoint: Path) -> Run:
    """The run that a checkpoint lies in."""
    return Run(checkpoint.parents[1])


def check_vocabulary(checkpoint: Path, prepared: PreparedData) -> None:
    """UsageError where the rows were made with another vocabulary than the weights."""
    run = run_of(checkpoint)
    if run.tokenizer().get_vocab() != prepared.tokenizer.get_vocab():
        raise UsageError(
            f"--init-from {run.name}: its vocabulary is not that of this run's data; "
            "give the same data, or rows made with its tokenizer"
        )


def load_initial_weights(model: MaskedLM, checkpoint: Path) -> None:
    """Copy the weights into the model; RunError where they are damaged or gone."""
    load_weights(model, load_model_tensors(checkpoint), checkpoint)
