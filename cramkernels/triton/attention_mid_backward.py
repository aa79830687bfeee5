"""The backward of sequences that a few tiles of keys hold: five products, in one kernel, nothing added by atomics.

A program has the sequences that begin in its window of TILE tokens. It goes from tile to tile of their keys, and each
streams the queries that see it, as where one tile holds all; so dQ has a term of every tile. A term waits for the next
where dQ will be, in 16 bits: a rounding more, of a part of the sum, and a half of the traffic that fp32 would be.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cramkernels.configurations import Tiling
from cramkernels.reference.philox import keep_threshold
from cramkernels.triton.attention_backward import key_gradients, store_delta
from cramkernels.triton.attention_forward import LOG2_E
from cramkernels.triton.attention_tiles import own_segments, precision
from cramkernels.triton.launch import OPTIONS, on_device

LONGEST = 512  # sequence: four tiles of 128 keys, five of those that are cut anywhere


@triton.jit(do_not_specialize=["tokens", "sequences", "window", "threshold"])
def _attention_backward_mid_kernel(
    grad_ptr, qkv_ptr, out_ptr, lse_ptr, delta_ptr, cu_ptr, cos_ptr, sin_ptr, key_mask_ptr, seed_ptr, dqkv_ptr,
    tokens, sequences, heads, window, scale, scale_log2, threshold, keep_scale,
    D: tl.constexpr, TILE: tl.constexpr, SLICE: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
    ROPE: tl.constexpr, KEY_MASK: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % heads
    begin, stop, known = own_segments(cu_ptr, tl.program_id(0) // heads * TILE, TILE, tokens, sequences)
    for row in tl.range(begin, stop, TILE):
        store_delta(grad_ptr, out_ptr, delta_ptr, row, stop, head, tokens, heads, D, TILE)
    written = begin
    origin = tl.where(begin < stop, begin // 4 * 4, stop)  # a multiple of four, which dropout likes
    while origin < stop:
        tl.debug_barrier()  # delta, and terms of dQ of the tile before, are in memory
        written = key_gradients(
            grad_ptr, qkv_ptr, lse_ptr, delta_ptr, cu_ptr, cos_ptr, sin_ptr, key_mask_ptr, seed_ptr, dqkv_ptr,
            origin, tl.maximum(begin, origin), tl.minimum(stop, origin + TILE), written, known, head, tokens, sequences,
            heads, window, scale, scale_log2, threshold, keep_scale, D, TILE, SLICE, STAGES, "added", PRECISION, ROPE,
            KEY_MASK, DROPOUT,
        )  # fmt: skip
        origin += TILE


def attention_mid_backward(
    grad, qkv, out, lse, cu_seqlens, tiling: Tiling, cos, sin, key_mask, window, scale, dropout_p, seed
):
    """dqkv of contiguous tensors; the window is a number. ``tiling``: how to launch."""
    tokens, _, heads, head_dim = qkv.shape
    dqkv = torch.empty_like(qkv)
    with on_device(qkv):
        _attention_backward_mid_kernel[(triton.cdiv(tokens, tiling.tile) * heads,)](
            grad, qkv, out, lse, torch.empty_like(lse), cu_seqlens, cos, sin, key_mask, seed, dqkv,
            tokens, cu_seqlens.shape[0] - 1, heads, window, scale, scale * LOG2_E,
            keep_threshold(dropout_p), 1.0 / (1.0 - dropout_p), D=head_dim, TILE=tiling.tile, SLICE=tiling.slice,
            STAGES=tiling.stages, PRECISION=precision(qkv.dtype), ROPE=cos is not None,
            KEY_MASK=key_mask is not None, DROPOUT=dropout_p > 0.0, num_warps=tiling.warps, **OPTIONS,
        )  # fmt: skip
    return dqkv
