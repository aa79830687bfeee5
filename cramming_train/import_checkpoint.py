"""``python -m cramming_train.import_checkpoint --from PATH --to NAME``: weights trained elsewhere become a run.

PATH is the folder of a model: one of the original crammed-bert project, or of ``BertForMaskedLM`` or
``ModernBertForMaskedLM`` where the architecture is one of those here, or an export of this program.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cramming_train.certificate import rules
from cramming_train.checkpoint import save_checkpoint, write_json_atomically
from cramming_train.errors import UsageError, command
from cramming_train.exchange import bert, crammed_bert, custom, modernbert
from cramming_train.exchange.files import read_config, read_weights
from cramming_train.exchange.vocabulary import read_tokenizer
from cramming_train.model import MaskedLM, parameter_count
from cramming_train.recipes import EVALUATIONS, TRAININGS, Architecture, Data, Recipe
from cramming_train.runs import DEFAULT_RUNS_DIR, RECIPE_FILE, TOKENIZER_FILE, Run
from cramming_train.starting import check_name
from cramming_train.summary import write_summary

FORMATS = {kind.MODEL_TYPE: kind for kind in (bert, modernbert, custom)}
ROW_LENGTH = 128
NEVER = -1e4  # decoder bias of a token that the weights do not know: its probability is 0, in fp16 too
NAME = "imported"
NOT_KNOWN = (  # of summary.json
    "device", "seed", "budget_seconds", "train_seconds", "tokens", "optimizer_steps", "tokens_per_second",
    "model_flops_utilization", "train_loss", "validation_loss", "validation_accuracy",
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m cramming_train.import_checkpoint", description=__doc__.partition(": ")[2]
    )
    parser.add_argument("--from", type=Path, required=True, metavar="PATH", dest="source", help="a model's folder")
    parser.add_argument("--to", required=True, metavar="NAME", help="the name of the new run")
    parser.add_argument("--out", type=Path, default=DEFAULT_RUNS_DIR, help="folder of runs (default ./runs)")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    arguments = build_parser().parse_args(argv)
    check_name("--to", arguments.to)
    run = import_checkpoint(arguments.source, arguments.out / arguments.to)
    print(f"{run.path}: {run.summary['parameters']:,} parameters of {arguments.source}")
    print(f"judge it with python -m cramming_train.evaluate --out {arguments.out} --run {run.name}")
    return 0


def import_checkpoint(source: Path, target: Path) -> Run:
    """Read the model's folder ``source`` and write the run's folder ``target``.

    Token ids change where special tokens are not at ids 0 to 6: rows of the embedding move with them. Text is not
    cleaned (``data.clean`` is "none"): the tokenizer's own normaliser is all that it was trained with.

    Raises:
        UsageError: not a model of an architecture here, or the run exists. RunError: a damaged file.
    """
    if not source.is_dir():
        raise UsageError(f"--from {source}: no such folder")
    if target.exists():
        raise UsageError(f"{target}: exists already; choose another name with --to")
    config, config_path = read_config(source)
    architecture, weights = _read(config, config_path, source)
    tokenizer, renumbering = read_tokenizer(source)
    model = fitted(architecture, renumber(weights, renumbering, source), len(renumbering), source)
    try:
        recipe = _recipe(architecture, model.vocab_size)
    except ValueError as error:
        raise UsageError(f"{config_path}: {error}") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=target.parent) as temporary:
        run = Run(Path(temporary) / target.name)
        run.path.mkdir()
        (run.path / TOKENIZER_FILE).write_text(tokenizer.to_str(), encoding="utf-8")
        no_optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # has no state to store
        save_checkpoint(run.checkpoints, 0, model, no_optimizer, {"vocab_size": model.vocab_size})
        write_json_atomically(run.path / RECIPE_FILE, _settings(run, recipe))
        write_summary(run, _summary(run, model, source))
        run.path.rename(target)
    return Run(target.resolve())


def _read(config: dict[str, Any], path: Path, folder: Path) -> tuple[Architecture, dict[str, torch.Tensor]]:
    """The architecture, and the weights under our names, ids still theirs."""
    arch = config.get("arch", config)
    kind = crammed_bert if "num_transformer_layers" in arch else FORMATS.get(config.get("model_type"))
    if kind is None:
        found, known = config.get("model_type"), ", ".join(FORMATS)
        raise UsageError(f"{path}: the model type is {found}; want {known}, or an original crammed-bert")
    try:
        architecture = kind.architecture_of(arch, str(path))
    except KeyError as error:
        raise UsageError(f"{path}: has no {error}") from None
    except (AttributeError, TypeError, ValueError) as error:  # a value of another type than it has to be
        raise UsageError(f"{path}: {error}") from None
    weights, file = read_weights(folder)
    return architecture, kind.imported(architecture, weights, str(file))


def renumber(weights: dict[str, torch.Tensor], renumbering: np.ndarray, source: Path) -> dict[str, torch.Tensor]:
    """Weights whose token ``renumbering[i]`` is token i of ``weights``.

    The map may have entries more than there are tokens: tokens that the weights do not know. Their embeddings are
    zeros, and they are never predicted.
    """
    embedding = "encoder.embedding.tokens.weight"
    if embedding not in weights:
        raise UsageError(f"{source}: the weights have no token embedding")
    unknown = len(renumbering) - len(weights[embedding])
    if unknown and (unknown < 0 or unknown > 2 or "decoder_bias" not in weights):
        raise UsageError(
            f"{source}: the embedding has {len(weights[embedding])} rows, the tokenizer {len(renumbering)} tokens "
            "(<s> and </s> included); want the tokenizer that the weights were trained with"
        )
    order = torch.from_numpy(np.argsort(renumbering))
    result = dict(weights)
    for name, filler in ((embedding, 0.0), ("decoder_bias", NEVER)):
        if name in weights:
            rows = weights[name]
            extended = torch.cat([rows, rows.new_full((unknown, *rows.shape[1:]), filler)])
            result[name] = extended[order]
    return result


def fitted(architecture: Architecture, weights: dict[str, torch.Tensor], vocab_size: int, source: Path) -> MaskedLM:
    """The model with these weights; UsageError where a tensor is missing, left over, or of another shape."""
    model = MaskedLM(architecture, vocab_size).eval()
    own = model.state_dict()
    for name in sorted({*own, *weights}):
        if name not in weights or name not in own:
            state = "missing" if name not in weights else "more than its configuration says"
            raise UsageError(f"{source}: the tensor of {name} is {state}")
        if own[name].shape != weights[name].shape:
            found, wanted = list(weights[name].shape), list(own[name].shape)
            raise UsageError(f"{source}: {name} has shape {found}, its configuration says {wanted}")
    model.load_state_dict(weights)
    return model


def _recipe(architecture: Architecture, vocab_size: int) -> Recipe:
    """How the weights were trained is not known; the training recipe is a default."""
    row_length = min(ROW_LENGTH, architecture.max_length)
    data = Data(NAME, clean="none", vocab_size=vocab_size, row_length=row_length)
    training = dataclasses.replace(TRAININGS["bert-o4"], name=NAME)
    evaluation = EVALUATIONS["glue-sane"]
    evaluation = dataclasses.replace(evaluation, max_length=min(evaluation.max_length, architecture.max_length))
    return Recipe(NAME, architecture, training, data, evaluation)


def _settings(run: Run, recipe: Recipe) -> dict[str, Any]:
    """The content of recipe.json."""
    return {
        "name": run.name,
        "recipe": recipe.to_dict(),
        "seed": 0,
        "hours": 0.0,
        "tokens": None,
        "text_column": "text",
        "data": {"sources": [], "path": None, "fingerprint": None, "device_type": "cpu"},
    }


def _summary(run: Run, model: MaskedLM, source: Path) -> dict[str, Any]:
    """The content of summary.json: what is not known is null."""
    notice = f"imported weights ({source.resolve()}): how they were trained is not known here"
    data = {"source": "not known", "source_kind": NAME, "fingerprint": None, "rows": 0, "notices": [notice]}
    summary = {
        **dict.fromkeys(NOT_KNOWN),
        "name": run.name,
        "recipe": NAME,
        "imported": str(source.resolve()),
        "parameters": parameter_count(model),
        "data": {**data, "unigram_loss": None},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    return {**summary, "rules": rules(summary)}


if __name__ == "__main__":
    sys.exit(main())
