"""Small models and batches of odd sizes; every weight random, biases and norms included."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch

from cramming_train.model import MaskedLM, build_model, sequence_boundaries
from cramming_train.recipes import ARCHITECTURES, Architecture
from tests.model.plain import SEP

VOCAB = 67
ROWS, LENGTH = 3, 13


def small(name: str, **changes) -> Architecture:
    """A recipe's architecture at 3 layers of 3 heads of 8; only sizes differ."""
    sizes = {"layers": 3, "hidden": 24, "heads": 3, "ffn_hidden": 34, "max_length": 16}
    return dataclasses.replace(ARCHITECTURES[name], **{**sizes, **changes})


def random_model(architecture: Architecture, *, dtype=torch.float64, seed: int = 0, vocab: int = VOCAB) -> MaskedLM:
    """Weights large enough that attention is far from uniform and every bias matters."""
    model = build_model(architecture, vocab, seed=0).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
            is_unit = "norm" in name and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if is_unit else 0.3 * noise)
    return model


class Batch(NamedTuple):
    """Rows and masked positions; ``arguments`` is what the model takes."""

    ids_BS: torch.Tensor
    labels_M: torch.Tensor
    positions_M: torch.Tensor
    arguments: tuple


def random_batch(
    architecture: Architecture, *, rows: int = ROWS, length: int = LENGTH, seed: int = 1, vocab: int = VOCAB
) -> Batch:
    """Random ids with a document's end here and there, and about a third of the positions masked."""
    generator = torch.Generator().manual_seed(seed)
    ids_BS = torch.randint(7, vocab, (rows, length), generator=generator)
    ids_BS[torch.rand(rows, length, generator=generator) < 0.25] = SEP
    ids_BS[0, 0] = ids_BS[0, -1] = ids_BS[-1, 4] = ids_BS[-1, 5] = SEP  # a document of one token, an empty remainder
    positions_M = torch.randperm(rows * length, generator=generator)[: rows * length // 3].sort().values
    labels_M = torch.randint(0, vocab, positions_M.shape, generator=generator)
    cu_seqlens, max_seqlen = sequence_boundaries(ids_BS, document_attention=architecture.document_attention)
    arguments = (ids_BS.reshape(-1), labels_M, positions_M, cu_seqlens, max_seqlen)
    return Batch(ids_BS, labels_M, positions_M, arguments)


def gradients(model: MaskedLM, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradient of every parameter, which each must have."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], **tolerance) -> None:
    """Equal name by name, and nowhere all zeros: a comparison of zeros would show nothing."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert value.abs().max() > 1e-6, name
        torch.testing.assert_close(actual[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")
