"""Attention and rotary embedding in Triton: which kernels serve what."""

from __future__ import annotations

from cramkernels.reference import attention as reference
from cramkernels.triton import attention_short

HEAD_DIMS = (32, 64, 128)  # others go to the reference


def attention_forward(
    qkv, cu_seqlens, max_seqlen: int, cos, sin, key_mask, window, scale: float, dropout_p: float, seed
):
    """qkv [T, 3, H, D] -> (out [T, H, D], lse [H, T])."""
    options = (max_seqlen, cos, sin, key_mask, window, scale, dropout_p, seed)
    if qkv.shape[-1] not in HEAD_DIMS or qkv.numel() == 0 or not attention_short.serves(qkv, max_seqlen):
        return reference.attention_forward(qkv, cu_seqlens, *options)
    return attention_short.forward(qkv.contiguous(), cu_seqlens, *options)


def attention_backward(
    grad, qkv, out, lse, cu_seqlens, max_seqlen: int, cos, sin, key_mask, window, scale, dropout_p, seed
):
    """dqkv [T, 3, H, D]."""
    options = (max_seqlen, cos, sin, key_mask, window, scale, dropout_p, seed)
    if qkv.shape[-1] not in HEAD_DIMS or qkv.numel() == 0 or not attention_short.serves(qkv, max_seqlen):
        return reference.attention_backward(grad, qkv, out, lse, cu_seqlens, *options)
    return attention_short.backward(grad.contiguous(), qkv.contiguous(), lse, cu_seqlens, *options)
