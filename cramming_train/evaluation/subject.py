"""What is judged: a run's trained weights, or, as the floor, an architecture without pretraining."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
import torch

from cramming_train.data.cleaning import cleaner
from cramming_train.data.special_tokens import SPECIAL_TOKENS
from cramming_train.errors import RunError, UsageError
from cramming_train.model import MaskedLM, build_model
from cramming_train.recipes import Architecture, Evaluation
from cramming_train.runs import Run
from cramming_train.seeds import derive_seed


@dataclass(frozen=True)
class TextPipeline:
    """How text becomes ids: the cleaning by name, and the tokenizer."""

    clean_name: str
    tokenizer: tokenizers.Tokenizer

    def __post_init__(self) -> None:
        for number, token in enumerate(SPECIAL_TOKENS):
            if self.tokenizer.token_to_id(token) != number:
                raise RunError(f"the tokenizer has not the id {number} for {token}; it was not made by prepare")

    @property
    def clean(self) -> Callable[[str], str]:
        """The cleaning that the pretraining text went through."""
        return cleaner(self.clean_name)

    @property
    def identity(self) -> dict[str, str]:
        """Tells this pipeline from others."""
        return {"clean": self.clean_name, "tokenizer": _digest(self.tokenizer.to_str().encode())}


@dataclass(frozen=True)
class Subject:
    """What is judged.

    Attributes:
        name: of the run, or "none".
        model: seed -> the model to fine-tune, on the CPU; the same for every seed where it is pretrained.
        identity: plain JSON values that tell its weights and text pipeline from others.
    """

    name: str
    model: Callable[[int], MaskedLM]
    identity: dict[str, Any]
    text: TextPipeline


def pretrained_subject(run: Run, settings: Evaluation) -> Subject:
    """The weights of a run's newest checkpoint, with the dropout rates of the evaluation recipe."""
    text = TextPipeline(run.recipe.data.clean, run.tokenizer())
    trained = run.load_model("cpu")
    architecture = fine_tuning_architecture(trained.architecture, settings)
    model = build_model(architecture, trained.vocab_size, seed=0)
    model.load_state_dict(trained.state_dict())
    identity = {
        "weights": _weights_digest(trained.state_dict()),
        "architecture": dataclasses.asdict(architecture),
        **text.identity,
    }
    return Subject(run.name, lambda seed: model, identity, text)


def random_subject(architecture: Architecture, text: TextPipeline, settings: Evaluation) -> Subject:
    """No pretraining: every seed starts from its own random weights."""
    architecture = fine_tuning_architecture(architecture, settings)
    vocab_size = text.tokenizer.get_vocab_size()

    def draw(seed: int) -> MaskedLM:
        return build_model(architecture, vocab_size, seed=derive_seed(seed, "no pretraining"))

    identity = {"weights": "none", "architecture": dataclasses.asdict(architecture), **text.identity}
    return Subject("none", draw, identity, text)


def fine_tuning_architecture(architecture: Architecture, settings: Evaluation) -> Architecture:
    """The same encoder with the recipe's dropout; UsageError where it has too few positions."""
    if settings.max_length > architecture.max_length:
        raise UsageError(
            f"evaluation.max_length: {settings.max_length} is more than the model's positions; "
            f"give --set evaluation.max_length={architecture.max_length}"
        )
    rate = settings.dropout
    return dataclasses.replace(architecture, dropout=rate, attention_dropout=rate, embedding_dropout=rate)


def _weights_digest(weights: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
