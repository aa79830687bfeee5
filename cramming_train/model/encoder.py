"""The encoder: embedding, blocks, final norm. Residual additions are fused with the norm that follows them."""

from __future__ import annotations

import torch
from torch import nn

from cramkernels import add_layer_norm, layer_norm
from cramming_train.model.block import Block
from cramming_train.model.dropout import DropoutSeeds, dropout_add
from cramming_train.model.embedding import Embedding, rope_tables
from cramming_train.model.norm import LayerNorm
from cramming_train.recipes import Architecture


class Encoder(nn.Module):
    """Packed token ids to hidden states."""

    def __init__(self, architecture: Architecture, vocab_size: int):
        super().__init__()
        a = self.architecture = architecture
        self.embedding = Embedding(a, vocab_size)
        self.blocks = nn.ModuleList(Block(a, layer) for layer in range(a.layers))
        self.final_norm = LayerNorm(a.hidden, a.norm_eps) if a.final_norm else None
        if a.positions == "rope":
            cos, sin = rope_tables(a.max_length, a.head_dim, a.rope_base)
            self.register_buffer("rope_cos", cos, persistent=False)
            self.register_buffer("rope_sin", sin, persistent=False)

    def forward(
        self,
        ids_T: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        *,
        positions_M: torch.Tensor | None = None,
        dropout_seed: int | torch.Tensor | None = None,
        window: int | None = None,
    ) -> torch.Tensor:
        """Hidden states after the last norm.

        Args:
            ids_T: int64 [T], packed.
            cu_seqlens, max_seqlen: as in :func:`cramkernels.attention`; max_seqlen <= architecture.max_length.
            positions_M: rows wanted. The last block's output projection, norms and FFN then run on these alone, which
                gives the same hidden states (with dropout: the same distribution) for less work.
            dropout_seed: turns dropout on; every site takes the next of seed, seed + 1, ...
            window: keeps |i - j| <= window in attention, beside the architecture's own.

        Returns:
            [T, N], or [M, N] with positions.

        Raises:
            ValueError: sequences longer than the architecture's positions.
        """
        if max_seqlen > self.architecture.max_length:
            raise ValueError(f"max_seqlen: got {max_seqlen}, want at most max_length = {self.architecture.max_length}")
        seeds = DropoutSeeds(dropout_seed)
        rope = (self.rope_cos, self.rope_sin) if self.architecture.positions == "rope" else None
        x_TN = self.embedding(ids_T, cu_seqlens, seeds)
        run = self._pre_norm if self.architecture.norm == "pre" else self._post_norm
        return run(x_TN, (cu_seqlens, max_seqlen, rope, window), positions_M, seeds)

    def _pre_norm(self, residual, sequences, positions_M, seeds: DropoutSeeds) -> torch.Tensor:
        """h = h + Drop(A(LN1 h)); h = h + Drop(F(LN2 h)): y is the normalised h, residual is h itself."""
        first = self.blocks[0].norm1
        y = residual if first is None else layer_norm(residual, first.weight, first.bias, eps=first.eps)
        for block, next_norm in zip(self.blocks, self._norms_after(), strict=True):
            attended = block.attend(y, *sequences, seeds)
            if block is self.blocks[-1] and positions_M is not None:
                attended, residual = (
                    attended.index_select(0, positions_M),
                    residual.index_select(0, positions_M),
                )
            y, residual = self._add_norm(block.attention_out(attended), residual, block.norm2, seeds)
            branch = block.feed_forward(y)
            if next_norm is None:
                return self._add(branch, residual, seeds)
            y, residual = self._add_norm(branch, residual, next_norm, seeds)
        return y

    def _post_norm(self, y, sequences, positions_M, seeds: DropoutSeeds) -> torch.Tensor:
        """h = LN1(h + Drop(A h)); h = LN2(h + Drop(F h))."""
        for block in self.blocks:
            attended = block.attend(y, *sequences, seeds)
            if block is self.blocks[-1] and positions_M is not None:
                attended, y = attended.index_select(0, positions_M), y.index_select(0, positions_M)
            y, _ = self._add_norm(block.attention_out(attended), y, block.norm1, seeds)
            y, _ = self._add_norm(block.feed_forward(y), y, block.norm2, seeds)
        if self.final_norm is not None:
            y = layer_norm(y, self.final_norm.weight, self.final_norm.bias, eps=self.final_norm.eps)
        return y

    def _norms_after(self) -> list[LayerNorm | None]:
        """The norm that follows each block: the next one's first, at the end the final one (or none)."""
        return [block.norm1 for block in list(self.blocks)[1:]] + [self.final_norm]

    def _add_norm(self, branch, residual, norm: LayerNorm, seeds: DropoutSeeds):
        dropout = seeds.options(self.architecture.dropout)
        return add_layer_norm(branch, residual, norm.weight, norm.bias, eps=norm.eps, **dropout)

    def _add(self, branch, residual, seeds: DropoutSeeds) -> torch.Tensor:
        if seeds.off or self.architecture.dropout == 0.0:
            return residual + branch
        return dropout_add(branch, residual, self.architecture.dropout, seeds.next())
