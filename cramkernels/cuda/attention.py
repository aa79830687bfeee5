"""Attention and rotary embedding in CUDA C++: outputs are allocated here, kernels are in csrc/.

:func:`path` and :func:`backward_path` say which kernels serve what; the rest goes to the reference.
"""

from __future__ import annotations

import torch

from cramkernels import library
from cramkernels.configurations import CUDA_SHORT_FORWARD, tiling_for
from cramkernels.cuda.arguments import ATTENTION, DTYPES, ROTARY, capability, pointer
from cramkernels.reference import attention as reference
from cramkernels.reference.philox import keep_threshold

HEAD_DIMS = (32, 64, 128)
SHORT_TOKENS, MID_TOKENS = 128, 512


def path(qkv: torch.Tensor, max_seqlen: int) -> str | None:
    """The forward's kernels for these tensors: "short", "long", "fp32", or None.

    The short ones hold whole sequences, of at most 128 tokens; on sm_75, with its 64 KB of shared memory, of head dims
    up to 64. sm_75 does not multiply bf16.
    """
    head_dim = qkv.shape[3]
    if head_dim not in HEAD_DIMS or qkv.dtype not in DTYPES:
        return None
    if qkv.dtype == torch.float32:
        return "fp32"
    small = capability(qkv.device) < (8, 0)
    if small and qkv.dtype == torch.bfloat16:
        return None
    return "short" if max_seqlen <= SHORT_TOKENS and not (small and head_dim > 64) else "long"


def backward_path(qkv: torch.Tensor, max_seqlen: int) -> str | None:
    """Those of the backward: as of the forward, and "mid".

    The mid ones hold half of a sequence of at most 512 tokens, of head dims up to 64. sm_75 has neither the shared
    memory nor the asynchronous copies that they need.
    """
    served_by = path(qkv, max_seqlen)
    mid = max_seqlen <= MID_TOKENS and qkv.shape[3] <= 64 and capability(qkv.device) >= (8, 0)
    return "mid" if served_by == "long" and mid else served_by


def attention_forward(
    qkv, cu_seqlens, max_seqlen: int, cos, sin, key_mask, window, scale: float, dropout_p: float, seed
):
    """qkv [T, 3, H, D] -> (out [T, H, D], lse [H, T])."""
    served_by = path(qkv, max_seqlen)
    if served_by is None:
        return reference.attention_forward(
            qkv, cu_seqlens, max_seqlen, cos, sin, key_mask, window, scale, dropout_p, seed
        )
    tokens, _, heads, head_dim = qkv.shape
    out = torch.empty(tokens, heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=qkv.device)
    warps = tiling_for(CUDA_SHORT_FORWARD, qkv, max_seqlen).warps if served_by == "short" else 0
    _call(f"ck_attention_{served_by}_forward", qkv, cu_seqlens, cos, sin, key_mask, window, scale, dropout_p, seed,
          out=out, lse=lse, warps=warps)  # fmt: skip
    return out, lse


def attention_backward(
    grad, qkv, out, lse, cu_seqlens, max_seqlen: int, cos, sin, key_mask, window, scale, dropout_p, seed
):
    """dqkv [T, 3, H, D]."""
    served_by = backward_path(qkv, max_seqlen)
    if served_by is None:
        return reference.attention_backward(
            grad, qkv, out, lse, cu_seqlens, max_seqlen, cos, sin, key_mask, window, scale, dropout_p, seed
        )
    dqkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    delta = torch.empty_like(lse) if served_by in ("long", "fp32") else None
    _call(f"ck_attention_{served_by}_backward", qkv, cu_seqlens, cos, sin, key_mask, window, scale, dropout_p, seed,
          grad=grad, out=out, lse=lse, delta=delta, dqkv=dqkv)  # fmt: skip
    return dqkv


def _call(
    name: str, qkv, cu_seqlens, cos, sin, key_mask, window, scale, dropout_p, seed, *, out, lse, grad=None, delta=None,
    dqkv=None, warps=0,
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
        pointer(seed), out.data_ptr(), pointer(dqkv), lse.data_ptr(), pointer(delta),
        tokens, cu_seqlens.shape[0] - 1, heads, head_dim, DTYPES[qkv.dtype],
        -1 if window is None else min(window, tokens), warps,
        scale, 1.0 / (1.0 - dropout_p), keep_threshold(dropout_p), 0,
    )  # fmt: skip
    library.call(name, arguments, qkv.device)


def rotary_forward(qkv, cos, sin, cu_seqlens):
    """qkv [T, 3, H, D] with queries and keys rotated."""
    return _rotary(qkv, cos, sin, cu_seqlens, inverse=False)


def rotary_backward(grad, cos, sin, cu_seqlens):
    """The inverse rotation of grad [T, 3, H, D]."""
    return _rotary(grad, cos, sin, cu_seqlens, inverse=True)


def _rotary(x, cos, sin, cu_seqlens, *, inverse: bool):
    tokens, _, heads, head_dim = x.shape
    if x.dtype not in DTYPES or head_dim % (8 if x.dtype == torch.float32 else 16):  # no 16-byte pieces
        return (reference.rotary_backward if inverse else reference.rotary_forward)(x, cos, sin, cu_seqlens)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel() == 0:
        return y
    x, cu_seqlens, cos, sin = _aligned(x), cu_seqlens.contiguous(), _aligned(cos.float()), _aligned(sin.float())
    arguments = ROTARY.pack(
        x.data_ptr(), cos.data_ptr(), sin.data_ptr(), cu_seqlens.data_ptr(), y.data_ptr(),
        tokens, cu_seqlens.shape[0] - 1, heads, head_dim, DTYPES[x.dtype], inverse, 0,
    )  # fmt: skip
    library.call("ck_rotary", arguments, x.device)
    return y


def _aligned(x: torch.Tensor) -> torch.Tensor:
    """Contiguous, from an address that 16-byte accesses may start at."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()
