"""Attention in CUDA C++: outputs are allocated here, kernels are in csrc/attention.

The kernels hold a whole sequence at once and serve what :func:`is_short` says; the rest goes to the reference.
"""

from __future__ import annotations

import torch

from cramkernels import library
from cramkernels.cuda.arguments import ATTENTION, DTYPES, capability, pointer
from cramkernels.reference import attention as reference
from cramkernels.reference.philox import keep_threshold

HEAD_DIMS = (32, 64, 128)
SHORT_TOKENS = 128
FORWARD_WARPS = 8  # of a CTA; fewer would take more turns


def is_short(qkv: torch.Tensor, max_seqlen: int) -> bool:
    """The kernels serve this: 16-bit types, sequences of at most 128 tokens, and on sm_75 head dims up to 64."""
    head_dim = qkv.shape[3]
    if max_seqlen > SHORT_TOKENS or head_dim not in HEAD_DIMS or qkv.dtype == torch.float32:
        return False
    return head_dim <= 64 or capability(qkv.device) >= (8, 0)  # its shared memory is 64 KB


def attention_forward(
    qkv, cu_seqlens, max_seqlen: int, cos, sin, key_mask, window, scale: float, dropout_p: float, seed
):
    """qkv [T, 3, H, D] -> (out [T, H, D], lse [H, T])."""
    if not is_short(qkv, max_seqlen):
        return reference.attention_forward(
            qkv, cu_seqlens, max_seqlen, cos, sin, key_mask, window, scale, dropout_p, seed
        )
    tokens, _, heads, head_dim = qkv.shape
    out = torch.empty(tokens, heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=qkv.device)
    _call("ck_attention_short_forward", qkv, cu_seqlens, cos, sin, key_mask, window, scale, dropout_p, seed,
          out=out, lse=lse)  # fmt: skip
    return out, lse


def attention_backward(
    grad, qkv, out, lse, cu_seqlens, max_seqlen: int, cos, sin, key_mask, window, scale, dropout_p, seed
):
    """dqkv [T, 3, H, D]."""
    if not is_short(qkv, max_seqlen):
        return reference.attention_backward(
            grad, qkv, out, lse, cu_seqlens, max_seqlen, cos, sin, key_mask, window, scale, dropout_p, seed
        )
    dqkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    _call("ck_attention_short_backward", qkv, cu_seqlens, cos, sin, key_mask, window, scale, dropout_p, seed,
          grad=grad, lse=lse, dqkv=dqkv)  # fmt: skip
    return dqkv


def _call(
    name: str, qkv, cu_seqlens, cos, sin, key_mask, window, scale, dropout_p, seed, *, grad=None, out=None, lse=None,
    dqkv=None,
):  # fmt: skip
    tokens, _, heads, head_dim = qkv.shape
    if qkv.numel() == 0:
        return
    qkv, cu_seqlens = _aligned(qkv), cu_seqlens.contiguous()
    grad = None if grad is None else _aligned(grad.to(qkv.dtype))
    cos, sin = (None if table is None else _aligned(table.float()) for table in (cos, sin))
    key_mask = None if key_mask is None else key_mask.contiguous()
    arguments = ATTENTION.pack(
        qkv.data_ptr(), pointer(grad), pointer(cos), pointer(sin), cu_seqlens.data_ptr(), pointer(key_mask),
        pointer(seed), pointer(out), pointer(dqkv), pointer(lse),
        tokens, cu_seqlens.shape[0] - 1, heads, head_dim, DTYPES[qkv.dtype], -1 if window is None else window,
        FORWARD_WARPS,
        scale, 1.0 / (1.0 - dropout_p), keep_threshold(dropout_p), 0,
    )  # fmt: skip
    library.call(name, arguments, qkv.device)


def _aligned(x: torch.Tensor) -> torch.Tensor:
    """Contiguous, from an address that 16-byte accesses may start at."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()
