"""A training step of cramming_train, and what makes the same step one of plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from cramkernels import MLMLoss
from cramming_train.distributed import World
from cramming_train.engine import Trainer
from cramming_train.loader import RowStream
from cramming_train.model import MaskedLM, build_model, flops_per_token
from cramming_train.model.plain import plain_loss
from cramming_train.precision import Precision
from cramming_train.recipes import Recipe


class RandomRows:
    """Rows of random ids, where a prepared corpus would be."""

    def __init__(self, count: int, row_length: int, vocab_size: int):
        self.row_length = row_length
        generator = np.random.Generator(np.random.Philox(0))
        self.ids = generator.integers(5, vocab_size, (count, row_length), dtype=np.int32)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows in order."""
        return self.ids[start:stop]

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Rows by number."""
        return self.ids[indices]


def trainer(recipe: Recipe, device: torch.device, micro_batches: int = 1) -> tuple[Trainer, Callable[[], object]]:
    """A trainer of its own weights, and a call that takes one step of so many micro-batches."""
    recipe = replace(recipe, training=replace(recipe.training, dropout=False))
    vocabulary, length = recipe.data.vocab_size, recipe.data.row_length
    rows = RandomRows(4 * recipe.training.micro_batch_size, length, vocabulary)
    made = Trainer(
        build_model(recipe.architecture, vocabulary, seed=0).to(device), RowStream(rows, 0), recipe.training,
        seed=0, device=device, precision=Precision(recipe.training.precision, device), world=World(),
    )  # fmt: skip
    plan = replace(made.plan(0.5), micro_batches=micro_batches)
    return made, lambda: made.train_step(plan, lambda: None)


def tokens_a_step(recipe: Recipe, micro_batches: int = 1) -> int:
    """Of one call."""
    return min(recipe.training.micro_batch_size, recipe.training.batch_size) * recipe.data.row_length * micro_batches


def flops_a_token(recipe: Recipe) -> float:
    """Nominal, as cramming_train counts them."""
    t = recipe.training
    rate = (t.masking_rate + t.masking_rate_final) / 2
    return flops_per_token(recipe.architecture, recipe.data.vocab_size, recipe.data.row_length, rate)


def plain_forward(model: MaskedLM) -> Callable[..., MLMLoss]:
    """The model's loss in plain PyTorch, for a trainer's ``forward``; hits are not counted."""

    def forward(*arguments, dropout_seed=None, grad_scale=None) -> MLMLoss:
        loss = plain_loss(model, *arguments)
        nothing = torch.zeros((), dtype=torch.int64, device=loss.device)
        return MLMLoss(loss, loss.detach() * 0, nothing, nothing)

    return forward
