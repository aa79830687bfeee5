"""Attention and rotary embedding in Triton: which kernels serve what."""

from __future__ import annotations

from cramkernels.configurations import BACKWARD, FORWARD, KEYS, LENGTHS, MASKED, MID_BACKWARD, PLAIN, Key, tiling_for
from cramkernels.reference import attention as reference
from cramkernels.triton import attention_backward as backward
from cramkernels.triton import attention_forward as forward
from cramkernels.triton import attention_mid_backward as mid_backward
from cramkernels.triton.rotary import rotated

HEAD_DIMS = (32, 64, 128)  # others go to the reference
NO_WINDOW = 1 << 30  # further than any two tokens are apart


def attention_forward(
    qkv, cu_seqlens, max_seqlen: int, cos, sin, key_mask, window, scale: float, dropout_p: float, seed
):
    """qkv [T, 3, H, D] -> (out [T, H, D], lse [H, T])."""
    if not _serves(qkv):
        return reference.attention_forward(
            qkv, cu_seqlens, max_seqlen, cos, sin, key_mask, window, scale, dropout_p, seed
        )
    tiling = tiling_for(FORWARD, qkv, max_seqlen, _kind(cos, key_mask, dropout_p))
    return forward.attention_forward(
        *_contiguous(qkv, cu_seqlens), tiling, *_tables(cos, sin), *_contiguous(key_mask), _number(window), scale,
        dropout_p, seed,
    )  # fmt: skip


def attention_backward(
    grad, qkv, out, lse, cu_seqlens, max_seqlen: int, cos, sin, key_mask, window, scale, dropout_p, seed
):
    """dqkv [T, 3, H, D]."""
    if not _serves(qkv):
        return reference.attention_backward(
            grad, qkv, out, lse, cu_seqlens, max_seqlen, cos, sin, key_mask, window, scale, dropout_p, seed
        )
    mid = LENGTHS[-1] < max_seqlen <= mid_backward.LONGEST and _has_mid(qkv)
    launch = mid_backward.attention_mid_backward if mid else backward.attention_backward
    kernel = MID_BACKWARD if mid else BACKWARD
    tiling = tiling_for(kernel, qkv, max_seqlen, _kind(cos, key_mask, dropout_p))
    return launch(
        *_contiguous(grad, qkv, out, lse, cu_seqlens), tiling, *_tables(cos, sin), *_contiguous(key_mask),
        _number(window), scale, dropout_p, seed,
    )  # fmt: skip


def rotary_forward(qkv, cos, sin, cu_seqlens):
    """Rotate q and k of qkv [T, 3, H, D]; v and rows outside every sequence pass unchanged."""
    if not _serves(qkv) or cos.shape[0] == 0:
        return reference.rotary_forward(qkv, cos, sin, cu_seqlens)
    qkv, cu_seqlens = _contiguous(qkv, cu_seqlens)
    return rotated(qkv, *_tables(cos, sin), cu_seqlens, inverse=False)


def rotary_backward(grad, cos, sin, cu_seqlens):
    """The rotation by the negative angle."""
    if not _serves(grad) or cos.shape[0] == 0:
        return reference.rotary_backward(grad, cos, sin, cu_seqlens)
    grad, cu_seqlens = _contiguous(grad, cu_seqlens)
    return rotated(grad, *_tables(cos, sin), cu_seqlens, inverse=True)


def _serves(qkv) -> bool:
    return qkv.shape[-1] in HEAD_DIMS and qkv.numel() > 0


def _kind(cos, key_mask, dropout_p: float) -> str:
    """Of a call, as the table of configurations has it."""
    if key_mask is not None or dropout_p > 0.0:
        return MASKED
    return PLAIN if cos is None else ""


def _has_mid(qkv) -> bool:
    return Key(MID_BACKWARD, qkv.dtype.itemsize * 8, qkv.shape[-1], 0) in KEYS


def _number(window: int | None) -> int:
    return NO_WINDOW if window is None else min(window, NO_WINDOW)


def _contiguous(*tensors) -> list:
    return [None if x is None else x.contiguous() for x in tensors]


def _tables(cos, sin) -> tuple:
    """As kernels read them; tables of no position, which only no token at all can go with, are none."""
    if cos is None or cos.shape[0] == 0:
        return None, None
    return cos.float().contiguous(), sin.float().contiguous()
