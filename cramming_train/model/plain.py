"""The loss of a masked LM once more in plain PyTorch: what a run's kernels are proven against and timed against.

Rows stand padded as [B, S, N], nothing is fused, and every operation is torch's own: ``layer_norm``, ``gelu``,
``scaled_dot_product_attention``, ``cross_entropy`` on the masked rows. No dropout.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cramkernels import token_positions
from cramming_train.model.masked_lm import MaskedLM


def plain_loss(
    model: MaskedLM,
    ids_T: Tensor,
    labels_M: Tensor,
    positions_M: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    window: int | None = None,
) -> Tensor:
    """Mean cross-entropy at the masked positions, a scalar that gradients flow from.

    Args:
        model: gives architecture and weights. The other arguments are those of its forward, of full rows: T is a
            multiple of ``max_seqlen``, and sequences do not cross rows.
    """
    return _Plain(model, cu_seqlens, ids_T.shape[0], max_seqlen, window).loss(ids_T, labels_M, positions_M)


class _Plain:
    """One batch's forward."""

    def __init__(self, model: MaskedLM, cu_seqlens: Tensor, tokens: int, row_length: int, window: int | None):
        if tokens % row_length:
            raise ValueError(f"ids_T: got {tokens} tokens, want full rows of max_seqlen = {row_length}")
        self.model, self.a = model, model.architecture
        sequence_T, position_T, _ = token_positions(cu_seqlens, tokens)
        self.position_BS = position_T.view(-1, row_length)
        self.window, self.sequence_BS = window, sequence_T.view(-1, row_length)

    def _visible(self, block) -> Tensor | None:
        """Which key each query sees, [B, 1, S, S] or [S, S]; None where all see all."""
        visible, sequence_BS = None, self.sequence_BS
        if self.a.document_attention:
            visible = (sequence_BS.unsqueeze(2) == sequence_BS.unsqueeze(1)).unsqueeze(1)
        for window in (self.window, block.window):
            if window is None:
                continue
            index = torch.arange(sequence_BS.shape[1], device=sequence_BS.device)
            near = (index[:, None] - index[None, :]).abs() <= window
            visible = near if visible is None else visible & near
        return visible

    def loss(self, ids_T: Tensor, labels_M: Tensor, positions_M: Tensor) -> Tensor:
        x_BSN = self._embed(ids_T.view_as(self.position_BS))
        for block in self.model.encoder.blocks:
            if self.a.norm == "pre":
                x_BSN = x_BSN + self._attend(block, _norm(block.norm1, x_BSN))
                x_BSN = x_BSN + self._feed_forward(block, _norm(block.norm2, x_BSN))
            else:
                x_BSN = _norm(block.norm1, x_BSN + self._attend(block, x_BSN))
                x_BSN = _norm(block.norm2, x_BSN + self._feed_forward(block, x_BSN))
        z_MN = x_BSN.flatten(0, 1)[positions_M]
        if self.model.encoder.final_norm is not None:
            z_MN = _norm(self.model.encoder.final_norm, z_MN)
        if self.model.transform is not None:
            z_MN = _norm(self.model.transform.norm, F.gelu(self.model.transform.dense(z_MN)))
        decoder = self.model.encoder.embedding.tokens.weight
        return F.cross_entropy(F.linear(z_MN, decoder, self.model.decoder_bias), labels_M)

    def _embed(self, ids_BS: Tensor) -> Tensor:
        embedding = self.model.encoder.embedding
        x_BSN = embedding.tokens(ids_BS)
        if self.a.positions == "learned":
            x_BSN = x_BSN + embedding.positions(self.position_BS)
        elif self.a.positions == "scaled-sinusoidal":
            x_BSN = x_BSN + embedding.position_scale * embedding.sinusoids[self.position_BS]
        return _norm(embedding.norm, x_BSN)

    def _attend(self, block, y_BSN: Tensor) -> Tensor:
        rows, length, _ = y_BSN.shape
        qkv = block.qkv(y_BSN).view(rows, length, 3, self.a.heads, self.a.head_dim)
        q, k, v = (part.squeeze(2).transpose(1, 2) for part in qkv.split(1, dim=2))
        if self.a.positions == "rope":
            q, k = self._rotated(q), self._rotated(k)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self._visible(block))
        return block.attention_out(mixed.transpose(1, 2).reshape(rows, length, -1))

    def _rotated(self, x_BHSD: Tensor) -> Tensor:
        """Pairs (i, i + D / 2), each turned by its angle."""
        encoder = self.model.encoder
        cos, sin = (table[self.position_BS].unsqueeze(1) for table in (encoder.rope_cos, encoder.rope_sin))
        low, high = x_BHSD.chunk(2, dim=-1)
        return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1).to(x_BHSD.dtype)

    def _feed_forward(self, block, y_BSN: Tensor) -> Tensor:
        inner = block.ffn_in(y_BSN)
        if self.a.ffn == "geglu":
            first, second = inner.chunk(2, dim=-1)
            inner = first * F.gelu(second) if self.a.gate == "second" else F.gelu(first) * second
        else:
            inner = F.gelu(inner)
        return block.ffn_out(inner)


def _norm(norm, x: Tensor) -> Tensor:
    if norm is None:
        return x
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
