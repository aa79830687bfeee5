"""One transformer block: attention and FFN, each from a normalised input to a branch output without its residual."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import gelu, linear

from cramkernels import attention, geglu
from cramming_train.model.dropout import DropoutSeeds
from cramming_train.model.norm import LayerNorm
from cramming_train.recipes import Architecture

Rope = tuple[torch.Tensor, torch.Tensor] | None


class Block(nn.Module):
    """Parameters of one block. ``norm1`` is before attention (pre-norm) or after it (post-norm), ``norm2`` by the FFN.

    The rows of ``qkv.weight`` are ordered [3, H, D]. ``layer`` counts from 0: the first block stands behind the
    embedding, whose norm is then the only one before attention where the architecture has ``first_attention_norm`` off.
    """

    def __init__(self, architecture: Architecture, layer: int):
        super().__init__()
        a = self.architecture = architecture
        self.window = a.window_of(layer)
        self.norm1 = None if layer == 0 and not a.first_attention_norm else LayerNorm(a.hidden, a.norm_eps)
        self.qkv = nn.Linear(a.hidden, 3 * a.hidden, bias=a.linear_bias)
        self.attention_out = nn.Linear(a.hidden, a.hidden, bias=a.linear_bias)
        self.norm2 = LayerNorm(a.hidden, a.norm_eps)
        self.ffn_in = nn.Linear(a.hidden, a.ffn_hidden, bias=a.linear_bias)
        self.ffn_out = nn.Linear(a.ffn_inner, a.hidden, bias=a.linear_bias)

    def attend(
        self,
        y_TN: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        rope: Rope,
        window: int | None,
        seeds: DropoutSeeds,
    ) -> torch.Tensor:
        """Attention before its output projection, [T, N]; of ``window`` and the block's own the narrower counts."""
        a = self.architecture
        qkv_T3HD = linear(y_TN, self.qkv.weight, self.qkv.bias).view(-1, 3, a.heads, a.head_dim)
        if window is None or self.window is not None and self.window < window:
            window = self.window
        dropout = seeds.options(a.attention_dropout)
        return attention(qkv_T3HD, cu_seqlens, max_seqlen, rope=rope, window=window, **dropout).flatten(1)

    def feed_forward(self, y_TN: torch.Tensor) -> torch.Tensor:
        """W_2 of the (gated) GELU of W_1 y."""
        inner = self.ffn_in(y_TN)
        if self.architecture.ffn == "geglu":
            return self.ffn_out(geglu(inner, gate=self.architecture.gate))
        return self.ffn_out(gelu(inner))
