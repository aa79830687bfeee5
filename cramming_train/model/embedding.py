"""Token embeddings with their positions, and the tables of rotary embedding."""

from __future__ import annotations

import torch
from torch import nn

from cramkernels import layer_norm, token_positions
from cramming_train.model.dropout import DropoutSeeds, dropout_add
from cramming_train.model.norm import LayerNorm
from cramming_train.recipes import Architecture


class Embedding(nn.Module):
    """Dropout(LN(E[x] + positions)); positions are learned, scaled sinusoids, or none (with RoPE)."""

    def __init__(self, architecture: Architecture, vocab_size: int):
        super().__init__()
        self.architecture = architecture
        self.tokens = _table(vocab_size, architecture.hidden)
        if architecture.positions == "learned":
            self.positions = _table(architecture.max_length, architecture.hidden)
        elif architecture.positions == "scaled-sinusoidal":
            table = sinusoids(architecture.max_length, architecture.hidden)
            self.register_buffer("sinusoids", table, persistent=False)
            # a scalar, as a vector of one element so that every optimizer takes it
            self.position_scale = nn.Parameter(torch.full((1,), architecture.hidden**-0.5))
        self.norm = LayerNorm(architecture.hidden, architecture.norm_eps)

    def forward(self, ids_T: torch.Tensor, cu_seqlens: torch.Tensor, seeds: DropoutSeeds) -> torch.Tensor:
        """[T] -> [T, N]; positions restart in each sequence."""
        x_TN = self.tokens(ids_T)
        kind = self.architecture.positions
        if kind != "rope":
            position_T = token_positions(cu_seqlens, ids_T.shape[0])[1]
            if kind == "learned":
                x_TN = x_TN + self.positions(position_T)
            else:
                x_TN = torch.addcmul(x_TN, self.sinusoids[position_T], self.position_scale)
        x_TN = layer_norm(x_TN, self.norm.weight, self.norm.bias, eps=self.norm.eps)
        rate = self.architecture.embedding_dropout
        return x_TN if seeds.off or rate == 0 else dropout_add(x_TN, torch.zeros_like(x_TN), rate, seeds.next())


def _table(rows: int, width: int) -> nn.Embedding:
    """Not initialised, which is build_model's: PyTorch's own takes seconds for a model without memory."""
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


def sinusoids(length: int, width: int) -> torch.Tensor:
    """Fixed sinusoids [length, width]: sin on even dimensions, cos on odd, base 10000 (Vaswani et al. 2017)."""
    position = torch.arange(length, dtype=torch.float64).unsqueeze(1)
    frequency = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    table = torch.empty(length, width, dtype=torch.float64)
    table[:, 0::2] = torch.sin(position * frequency)
    table[:, 1::2] = torch.cos(position * frequency)
    return table.float()


def rope_tables(length: int, head_dim: int, base: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin), fp32 [length, head_dim / 2], of angles position * base^(-2i / head_dim) (Su et al. 2021)."""
    frequency = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(length, dtype=torch.float64).unsqueeze(1) * frequency
    return angle.cos().float(), angle.sin().float()
