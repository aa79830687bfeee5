"""Attention and rotary embedding in Triton: which kernels serve what."""

from __future__ import annotations

import torch

from cramkernels.reference import attention as reference
from cramkernels.triton import attention_backward as backward
from cramkernels.triton import attention_forward as forward

HEAD_DIMS = (32, 64, 128)  # others go to the reference
SMALL_TILE, TILE = 64, 128  # rows


def attention_forward(
    qkv, cu_seqlens, max_seqlen: int, cos, sin, key_mask, window, scale: float, dropout_p: float, seed
):
    """qkv [T, 3, H, D] -> (out [T, H, D], lse [H, T])."""
    options = (cos, sin, key_mask, window, scale, dropout_p, seed)
    if not _serves(qkv):
        return reference.attention_forward(qkv, cu_seqlens, max_seqlen, *options)
    whole = max_seqlen <= TILE and qkv.dtype != torch.float32
    return forward.attention_forward(qkv.contiguous(), cu_seqlens, whole, _tile(qkv, max_seqlen, whole), *options)


def attention_backward(
    grad, qkv, out, lse, cu_seqlens, max_seqlen: int, cos, sin, key_mask, window, scale, dropout_p, seed
):
    """dqkv [T, 3, H, D]."""
    options = (cos, sin, key_mask, window, scale, dropout_p, seed)
    if not _serves(qkv):
        return reference.attention_backward(grad, qkv, out, lse, cu_seqlens, max_seqlen, *options)
    # with 128 columns dK, dV and dQ of a tile are more than registers hold
    whole = max_seqlen <= TILE and qkv.dtype != torch.float32 and qkv.shape[-1] < 128
    tensors = (grad.contiguous(), qkv.contiguous(), out.contiguous(), lse, cu_seqlens)
    return backward.attention_backward(*tensors, whole, _tile(qkv, max_seqlen, whole), *options)


def _serves(qkv) -> bool:
    return qkv.shape[-1] in HEAD_DIMS and qkv.numel() > 0


def _tile(qkv, max_seqlen: int, whole: bool) -> int:
    small = max_seqlen <= SMALL_TILE if whole else qkv.dtype == torch.float32
    return SMALL_TILE if small else TILE
