"""A training step of cramming_train, and the same step with plain PyTorch in the place of every operation of ours.

Both are the same trainer on the same model: masking, blocks, optimizer and clipping are the same code.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import numpy as np
import torch
from torch.nn import functional as F

from cramkernels import MLMLoss
from cramming_train.distributed import World
from cramming_train.engine import Trainer
from cramming_train.loader import RowStream
from cramming_train.model import build_model, flops_per_token
from cramming_train.precision import Precision
from cramming_train.recipes import Recipe

MODEL_MODULES = ("block", "embedding", "encoder", "masked_lm")


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


@contextmanager
def plain_pytorch() -> Iterator[None]:
    """Within this context the model calls torch's own functions instead of ours."""
    instead = {
        "layer_norm": _layer_norm, "add_layer_norm": _add_layer_norm, "attention": _attention, "geglu": _geglu,
        "mlm_loss": _mlm_loss,
    }  # fmt: skip
    patched = []
    try:
        for name in MODEL_MODULES:
            module = importlib.import_module(f"cramming_train.model.{name}")
            for operation, function in instead.items():
                if hasattr(module, operation):
                    patched.append(mock.patch.object(module, operation, function))
                    patched[-1].start()
        yield
    finally:
        for patch in patched:
            patch.stop()


def _layer_norm(x, weight, bias=None, *, eps):
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _add_layer_norm(x, residual, weight, bias=None, *, eps):
    total = x + residual
    return F.layer_norm(total, total.shape[-1:], weight, bias, eps), total


def _attention(qkv, cu_seqlens, max_seqlen, *, rope=None, window=None):
    """Of rows that are all full, without rotary embedding and window: crammed-bert's."""
    assert rope is None and window is None and qkv.shape[0] == (cu_seqlens.shape[0] - 1) * max_seqlen
    _, _, heads, width = qkv.shape
    q, k, v = qkv.view(-1, max_seqlen, 3, heads, width).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, heads, width)


def _geglu(x, *, gate="second"):
    first, second = x.chunk(2, dim=-1)
    return first * F.gelu(second) if gate == "second" else F.gelu(first) * second


def _mlm_loss(hidden, weight, labels, *, bias=None, grad_scale=None):
    logits = F.linear(hidden, weight, bias)
    loss = F.cross_entropy(logits.float(), labels)
    correct = (logits.detach().argmax(dim=1) == labels).sum()
    return MLMLoss(loss, loss.detach().new_zeros(()), torch.tensor(labels.shape[0], device=labels.device), correct)
