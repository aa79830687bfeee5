"""Attention over sequences that fit in one tile: keys and values of a whole tile on chip, softmax without a running
maximum, every tensor read once and written once.

Tiles are runs of at most TILE packed tokens, made of whole sequences. A program (window of TILE tokens, head) takes the
sequences that begin in its window, as many at a time as a tile holds. The backward keeps dK and dV of the tile in
registers, streams slices of queries and output gradients, and writes dQ slice by slice: scores are computed transposed,
keys by queries, so that probabilities are operands of the tensor cores where they are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cramkernels.reference.philox import keep_threshold
from cramkernels.triton.launch import OPTIONS, on_device
from cramkernels.triton.packed_tiles import (
    kept,
    load_rotated,
    load_tile,
    row_bounds,
    segments,
    store_tile,
    store_unrotated,
)  # fmt: skip

LONGEST = 128  # sequence that a tile holds
SMALL_TILE, TILE = 64, 128
NO_WINDOW = 1 << 30
LOG2_E = 1.4426950408889634


@triton.jit
def _next_start(cu_ptr, token, tokens, sequences):
    """Where the first segment begins that begins at ``token`` or later."""
    start, end, _ = segments(cu_ptr, token, 0, sequences + 1, sequences)
    return tl.minimum(tl.where(start == token, start, end), tokens)


@triton.jit
def _last_start(cu_ptr, token, stop, sequences):
    """Where the segment that holds ``token`` begins, or ``stop`` if that comes first."""
    start = stop
    if token < stop:
        start, _, _ = segments(cu_ptr, token, 0, sequences + 1, sequences)
    return start


@triton.jit
def _run(cu_ptr, begin, stop, sequences, TILE: tl.constexpr):
    """(origin, end): TILE rows from ``origin`` hold the whole segments in [begin, end), as many as fit.

    The origin is a multiple of four, which dropout likes, unless then not even one segment would fit.
    """
    origin = begin // 4 * 4
    end = _last_start(cu_ptr, origin + TILE, stop, sequences)
    if end <= begin:
        origin = begin
        end = _last_start(cu_ptr, origin + TILE, stop, sequences)
        end = tl.where(end <= begin, begin + TILE, end)  # only if max_seqlen was wrong: go on all the same
    return origin, end


@triton.jit(do_not_specialize=["tokens", "sequences", "window", "threshold"])
def _forward_kernel(
    qkv_ptr, cu_ptr, cos_ptr, sin_ptr, key_mask_ptr, seed_ptr, out_ptr, lse_ptr,
    tokens, sequences, heads, window, scale_log2, threshold, keep_scale,
    D: tl.constexpr, TILE: tl.constexpr, ROPE: tl.constexpr, KEY_MASK: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % heads
    first = tl.program_id(0) // heads * TILE
    begin = _next_start(cu_ptr, first, tokens, sequences)
    stop = _next_start(cu_ptr, first + TILE, tokens, sequences)
    stride = 3 * heads * D
    local = tl.arange(0, TILE)
    while begin < stop:
        origin, end = _run(cu_ptr, begin, stop, sequences, TILE)
        row = origin + local
        real = (row >= begin) & (row < end)
        position, low, high = row_bounds(cu_ptr, row, real, origin, TILE, sequences, window)
        q_ptr = qkv_ptr + tl.cast(origin, tl.int64) * stride + head * D
        q = load_rotated(q_ptr, local, real, stride, cos_ptr, sin_ptr, position, D, ROPE)
        k = load_rotated(q_ptr + heads * D, local, real, stride, cos_ptr, sin_ptr, position, D, ROPE)
        v = load_tile(q_ptr + 2 * heads * D, local, real, stride, D)
        visible = (row[None, :] >= low[:, None]) & (row[None, :] < high[:, None])
        if KEY_MASK:
            visible &= (tl.load(key_mask_ptr + row, real, 0) != 0)[None, :]
        scores = tl.where(visible, tl.dot(q, tl.trans(k)) * scale_log2, float("-inf"))
        highest = tl.max(scores, 1)
        highest = tl.where(highest == float("-inf"), 0.0, highest)  # sees no key
        p = tl.exp2(scores - highest[:, None])
        total = tl.sum(p, 1)
        some = total > 0.0
        factor = tl.where(some, 1.0 / total, 0.0)
        if DROPOUT:
            p = tl.where(kept(seed_ptr, head, row, origin, threshold, TILE), p, 0.0)
            factor *= keep_scale
        out = tl.dot(p.to(v.dtype), v) * factor[:, None]
        out_at = out_ptr + tl.cast(origin, tl.int64) * heads * D + head * D
        store_tile(out_at, local, real, heads * D, out, D)
        lse = tl.where(some, (highest + tl.log2(total)) * 0.6931471805599453, 0.0)
        tl.store(lse_ptr + tl.cast(head, tl.int64) * tokens + row, lse, real)
        begin = end


@triton.jit(do_not_specialize=["tokens", "sequences", "window", "threshold"])
def _backward_kernel(
    grad_ptr, qkv_ptr, lse_ptr, cu_ptr, cos_ptr, sin_ptr, key_mask_ptr, seed_ptr, dqkv_ptr,
    tokens, sequences, heads, window, scale, scale_log2, threshold, keep_scale,
    D: tl.constexpr, TILE: tl.constexpr, SLICE: tl.constexpr,
    ROPE: tl.constexpr, KEY_MASK: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % heads
    first = tl.program_id(0) // heads * TILE
    begin = _next_start(cu_ptr, first, tokens, sequences)
    stop = _next_start(cu_ptr, first + TILE, tokens, sequences)
    stride = 3 * heads * D
    local = tl.arange(0, TILE)
    while begin < stop:
        origin, end = _run(cu_ptr, begin, stop, sequences, TILE)
        row = origin + local
        real = (row >= begin) & (row < end)
        position, low, high = row_bounds(cu_ptr, row, real, origin, TILE, sequences, window)
        if KEY_MASK:
            high = tl.where(tl.load(key_mask_ptr + row, real, 0) != 0, high, 0)
        corner = tl.cast(origin, tl.int64) * stride + head * D
        q_ptr = qkv_ptr + corner
        k = load_rotated(q_ptr + heads * D, local, real, stride, cos_ptr, sin_ptr, position, D, ROPE)
        v = load_tile(q_ptr + 2 * heads * D, local, real, stride, D)
        grad_at = grad_ptr + tl.cast(origin, tl.int64) * heads * D + head * D
        dk = tl.zeros([TILE, D], tl.float32)
        dv = tl.zeros([TILE, D], tl.float32)
        for slice_start in range(0, end - origin, SLICE):
            place = slice_start + tl.arange(0, SLICE)
            query = origin + place
            asked = (query >= begin) & (query < end)
            query_position = tl.zeros([SLICE], tl.int32)
            if ROPE:
                query_position, _, _ = row_bounds(cu_ptr, query, asked, origin, TILE, sequences, window)
            q = load_rotated(q_ptr, place, asked, stride, cos_ptr, sin_ptr, query_position, D, ROPE)
            do = load_tile(grad_at, place, asked, heads * D, D)
            lse = tl.load(lse_ptr + tl.cast(head, tl.int64) * tokens + query, asked, 0.0) * 1.4426950408889634
            visible = (query[None, :] >= low[:, None]) & (query[None, :] < high[:, None])
            scores = tl.dot(k, tl.trans(q)) * scale_log2 - lse[None, :]
            p = tl.exp2(tl.where(visible, scores, float("-inf")))
            dp = tl.dot(v, tl.trans(do))
            dropped = p
            if DROPOUT:
                keep = tl.trans(kept(seed_ptr, head, query, origin, threshold, TILE))
                dropped = tl.where(keep, p, 0.0)
                dp = tl.where(keep, dp * keep_scale, 0.0)
            dv += tl.dot(dropped.to(do.dtype), do)
            ds = (p * (dp - tl.sum(p * dp, 0)[None, :])).to(q.dtype)
            dk += tl.dot(ds, q)
            dq = tl.dot(tl.trans(ds), k) * scale
            store_unrotated(dqkv_ptr + corner, place, asked, stride, dq, cos_ptr, sin_ptr, query_position, D, ROPE)
        if DROPOUT:
            dv *= keep_scale
        store_unrotated(
            dqkv_ptr + corner + heads * D, local, real, stride, dk * scale, cos_ptr, sin_ptr, position, D, ROPE
        )
        store_tile(dqkv_ptr + corner + 2 * heads * D, local, real, stride, dv, D)
        begin = end


def serves(qkv: torch.Tensor, max_seqlen: int) -> bool:
    """16-bit tensors of sequences that fit in a tile."""
    return max_seqlen <= LONGEST and qkv.dtype != torch.float32


def forward(qkv, cu_seqlens, max_seqlen, cos, sin, key_mask, window, scale, dropout_p, seed):
    """(out, lse) of contiguous qkv."""
    tokens, _, heads, head_dim = qkv.shape
    out = qkv.new_empty(tokens, heads, head_dim)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=qkv.device)
    tile = _tile(max_seqlen)
    with on_device(qkv):
        _forward_kernel[(triton.cdiv(tokens, tile) * heads,)](
            qkv, cu_seqlens, cos, sin, key_mask, seed, out, lse,
            tokens, cu_seqlens.shape[0] - 1, heads, NO_WINDOW if window is None else window, scale * LOG2_E,
            keep_threshold(dropout_p), 1.0 / (1.0 - dropout_p), D=head_dim, TILE=tile,
            ROPE=cos is not None, KEY_MASK=key_mask is not None, DROPOUT=dropout_p > 0.0,
            num_warps=tile // 16, **OPTIONS,
        )  # fmt: skip
    return out, lse


def backward(grad, qkv, lse, cu_seqlens, max_seqlen, cos, sin, key_mask, window, scale, dropout_p, seed):
    """dqkv."""
    tokens, _, heads, head_dim = qkv.shape
    dqkv = torch.empty_like(qkv)
    tile = _tile(max_seqlen)
    with on_device(qkv):
        _backward_kernel[(triton.cdiv(tokens, tile) * heads,)](
            grad, qkv, lse, cu_seqlens, cos, sin, key_mask, seed, dqkv,
            tokens, cu_seqlens.shape[0] - 1, heads, NO_WINDOW if window is None else window, scale, scale * LOG2_E,
            keep_threshold(dropout_p), 1.0 / (1.0 - dropout_p), D=head_dim, TILE=tile, SLICE=32,
            ROPE=cos is not None, KEY_MASK=key_mask is not None, DROPOUT=dropout_p > 0.0,
            num_warps=tile // 16, **OPTIONS,
        )  # fmt: skip
    return dqkv


def _tile(max_seqlen: int) -> int:
    return SMALL_TILE if max_seqlen <= SMALL_TILE else TILE
