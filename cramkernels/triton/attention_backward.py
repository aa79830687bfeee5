"""The backward of attention: probabilities are recomputed from the log-sum-exp.

A program that owns a tile of keys keeps their dK and dV in registers and streams slices of queries and of output
gradients. Scores are computed transposed, keys by queries, so that probabilities are operands of the tensor cores where
they are. Where tiles are runs of whole sequences that program sees all there is of them: it sums dS = P * (dP - delta)
up to delta itself and writes dQ too, so that everything moves once. Where sequences are cut, delta = rowsum(dO * O) is
computed before, and one half of the programs own keys, the other half queries, for dQ. Between
the two, where a program goes over the tiles of its sequences, is attention_mid_backward.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cramkernels.configurations import Tiling
from cramkernels.reference.philox import keep_threshold
from cramkernels.triton.attention_forward import LOG2_E
from cramkernels.triton.attention_tiles import (
    add_row_products,
    add_unrotated,
    kept,
    likely_count,
    load_rotated,
    load_tile,
    own_segments,
    positions,
    precision,
    recomputed,
    row_ranges,
    run_of_segments,
    seen_range,
    settled_16_bit,
    store_tile,
)  # fmt: skip
from cramkernels.triton.launch import OPTIONS, on_device

DELTA_ROWS = 32


@triton.jit
def key_gradients(
    grad_ptr, qkv_ptr, lse_ptr, delta_ptr, cu_ptr, cos_ptr, sin_ptr, key_mask_ptr, seed_ptr, dqkv_ptr,
    origin, begin, end, written, known, head, tokens, sequences, heads, window, scale, scale_log2, threshold,
    keep_scale, D: tl.constexpr, TILE: tl.constexpr, SLICE: tl.constexpr, STAGES: tl.constexpr, DQ: tl.constexpr,
    PRECISION: tl.constexpr, ROPE: tl.constexpr, KEY_MASK: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """dK and dV of the keys [begin, end), which TILE rows from ``origin`` hold, and what their queries' dQ has of them.

    DQ: "left", to others. "whole": this tile sees all there is of its sequences, and sums delta, which elsewhere is in
    memory. "added": to the terms that other tiles have written, of the queries before ``written``. Returns the end of
    the queries whose dQ this tile wrote.
    """
    stride = 3 * heads * D
    q_ptr = qkv_ptr + head * D
    dq_ptr = dqkv_ptr + head * D
    row = origin + tl.arange(0, TILE)
    real = (row >= begin) & (row < end)
    first, last, at_least, at_most, first_start, first_stop, shared = seen_range(
        cu_ptr, begin, end, known, sequences, window
    )
    position, low, high = row_ranges(
        cu_ptr, row, begin, end, at_least, at_most, first_start, first_stop, sequences, window
    )
    slices_start, slices_end = first, last
    if DQ != "left":  # tokens outside every sequence have a gradient to be written: zeros
        slices_start, slices_end = tl.minimum(first, begin), tl.maximum(last, end)
    if KEY_MASK:
        high = tl.where(tl.load(key_mask_ptr + row, real, 0) != 0, high, 0)
        shared = False
    seen = low < high  # what no query sees may hold NaN, which not even a probability of zero would stop
    k, k_second = load_rotated(q_ptr + heads * D, origin, seen, stride, cos_ptr, sin_ptr, position, D, ROPE)
    v = load_tile(q_ptr + 2 * heads * D, origin, seen, stride, D)
    dk = tl.zeros([TILE, D // 2 if ROPE else D], tl.float32)
    dk_second = dk
    dv = tl.zeros([TILE, D], tl.float32)
    # draws of dropout have parts that no step changes: kept through the loop, they would be too many for the registers
    for query_start in tl.range(slices_start, slices_end, SLICE, num_stages=STAGES, disable_licm=DROPOUT):
        query = query_start + tl.arange(0, SLICE)
        asked = (query >= first) & (query < last)
        query_position = positions(cu_ptr, query, asked, at_least, at_most, sequences, ROPE)
        q, q_second = load_rotated(q_ptr, query_start, asked, stride, cos_ptr, sin_ptr, query_position, D, ROPE)
        do = load_tile(grad_ptr + head * D, query_start, asked, heads * D, D)
        if ROPE:  # else nothing comes between loads and products, which read what the pipeline has copied
            do = settled_16_bit(do)
        statistic = tl.cast(head, tl.int64) * tokens + query
        lse = tl.load(lse_ptr + statistic, asked, 0.0) * 1.4426950408889634
        zeros = tl.zeros([TILE, SLICE], tl.float32)
        scores = add_row_products(zeros, k, q, query_start, D, PRECISION)
        if ROPE:
            scores = add_row_products(scores, k_second, q_second, query_start, D, PRECISION)
        exponent = scores * scale_log2 - lse[None, :]
        if not shared:  # else what is not asked, or not real, is zero here and in dO or dQ
            visible = (query[None, :] >= low[:, None]) & (query[None, :] < high[:, None])
            exponent = tl.where(visible, exponent, float("-inf"))
        p = recomputed(exponent)
        dropped = p
        if DROPOUT:
            keep = tl.trans(kept(seed_ptr, head, query, origin, threshold, TILE))
            dropped = tl.where(keep, p, 0.0)
        dv = tl.dot(dropped.to(do.dtype), do, dv, input_precision=PRECISION)  # before dP: fewer numbers are alive
        dp = add_row_products(zeros, v, do, query_start, D, PRECISION)
        if DROPOUT:
            dp = tl.where(keep, dp * keep_scale, 0.0)
        if DQ == "whole":
            delta = tl.sum(p * dp, 0)
        else:
            delta = tl.load(delta_ptr + statistic, asked, 0.0)
        ds = (p * (dp - delta[None, :])).to(do.dtype)
        dk = tl.dot(ds, q, dk, input_precision=PRECISION)
        if ROPE:
            dk_second = tl.dot(ds, q_second, dk_second, input_precision=PRECISION)
        if DQ != "left":
            if query_start < slices_end:  # always; but only in a block of its own are warps laid out for this product
                dq = tl.dot(tl.trans(ds), k, input_precision=PRECISION) * scale
                dq_second = dq
                if ROPE:
                    dq_second = tl.dot(tl.trans(ds), k_second, input_precision=PRECISION) * scale
                add_unrotated(
                    dq_ptr, query_start, query < slices_end, written, DQ == "added", stride, dq, dq_second,
                    cos_ptr, sin_ptr, query_position, D, ROPE,
                )  # fmt: skip
    if DROPOUT:
        dv *= keep_scale
    origin = tl.where(slices_end >= 0, origin, 0)  # always; else addresses are kept in registers from the keys on
    row = origin + tl.arange(0, TILE)
    real = (row >= begin) & (row < end)
    store_tile(dq_ptr + 2 * heads * D, origin, real, stride, dv, D)
    if D > 32:  # again: else addresses of the angles would stay in registers past the loop, which has none left
        position = positions(cu_ptr, row, real, at_least, at_most, sequences, ROPE)
    add_unrotated(
        dq_ptr + heads * D, origin, real, 0, False, stride, dk * scale, dk_second * scale, cos_ptr, sin_ptr,
        position, D, ROPE,
    )  # fmt: skip
    return slices_end


@triton.jit
def _query_gradients(
    grad_ptr, qkv_ptr, lse_ptr, delta_ptr, cu_ptr, cos_ptr, sin_ptr, key_mask_ptr, seed_ptr, dqkv_ptr,
    begin, end, known, head, tokens, sequences, heads, window, scale, scale_log2, threshold, keep_scale,
    D: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
    ROPE: tl.constexpr, KEY_MASK: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """dQ of the queries [begin, end), at most TILE."""
    stride = 3 * heads * D
    q_ptr = qkv_ptr + head * D
    k_ptr = q_ptr + heads * D
    row = begin + tl.arange(0, TILE)
    real = row < end
    first, last, at_least, at_most, first_start, first_stop, shared = seen_range(
        cu_ptr, begin, end, known, sequences, window
    )
    position, low, high = row_ranges(
        cu_ptr, row, begin, end, at_least, at_most, first_start, first_stop, sequences, window
    )
    if KEY_MASK:
        shared = False
    seeing = low < high
    q, q_second = load_rotated(q_ptr, begin, seeing, stride, cos_ptr, sin_ptr, position, D, ROPE)
    do = load_tile(grad_ptr + head * D, begin, seeing, heads * D, D)
    statistic = tl.cast(head, tl.int64) * tokens + row
    lse = tl.load(lse_ptr + statistic, seeing, 0.0) * 1.4426950408889634
    delta = tl.load(delta_ptr + statistic, seeing, 0.0)
    dq = tl.zeros([TILE, D // 2 if ROPE else D], tl.float32)
    dq_second = dq
    for chunk in tl.range(first // 4 * 4, last, CHUNK, num_stages=STAGES, disable_licm=DROPOUT):
        key = chunk + tl.arange(0, CHUNK)
        present = (key >= first) & (key < last)
        key_position = positions(cu_ptr, key, present, at_least, at_most, sequences, ROPE)
        k, k_second = load_rotated(k_ptr, chunk, present, stride, cos_ptr, sin_ptr, key_position, D, ROPE)
        if not ROPE:
            k = settled_16_bit(k)
        v = settled_16_bit(load_tile(k_ptr + heads * D, chunk, present, stride, D))
        zeros = tl.zeros([TILE, CHUNK], tl.float32)
        scores = add_row_products(zeros, q, k, chunk, D, PRECISION)
        if ROPE:
            scores = add_row_products(scores, q_second, k_second, chunk, D, PRECISION)
        exponent = scores * scale_log2 - lse[:, None]
        if not shared:  # else keys that are not present are zero, and so is what they add to dQ
            visible = (key[None, :] >= low[:, None]) & (key[None, :] < high[:, None])
            if KEY_MASK:
                visible &= (tl.load(key_mask_ptr + key, present, 0) != 0)[None, :]
            exponent = tl.where(visible, exponent, float("-inf"))
        p = recomputed(exponent)
        dp = add_row_products(zeros, do, v, chunk, D, PRECISION)
        if DROPOUT:
            dp = tl.where(kept(seed_ptr, head, row, chunk, threshold, CHUNK), dp * keep_scale, 0.0)
        ds = (p * (dp - delta[:, None])).to(k.dtype)
        dq = tl.dot(ds, k, dq, input_precision=PRECISION)
        if ROPE:
            dq_second = tl.dot(ds, k_second, dq_second, input_precision=PRECISION)
    begin = tl.where(last >= 0, begin, 0)  # always; else addresses are kept in registers from the queries on
    row = begin + tl.arange(0, TILE)
    real = row < end
    if D > 32:  # as of keys
        position = positions(cu_ptr, row, real, at_least, at_most, sequences, ROPE)
    add_unrotated(
        dqkv_ptr + head * D, begin, real, 0, False, stride, dq * scale, dq_second * scale, cos_ptr, sin_ptr,
        position, D, ROPE,
    )  # fmt: skip


@triton.jit(do_not_specialize=["tokens", "sequences", "window", "threshold"])
def _attention_backward_kernel(
    grad_ptr, qkv_ptr, lse_ptr, delta_ptr, cu_ptr, cos_ptr, sin_ptr, key_mask_ptr, seed_ptr, dqkv_ptr,
    tokens, sequences, heads, window, scale, scale_log2, threshold, keep_scale,
    D: tl.constexpr, TILE: tl.constexpr, SLICE: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr, ROPE: tl.constexpr, KEY_MASK: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % heads
    begin = tl.program_id(0) // heads * TILE
    if WHOLE:
        begin, stop, known = own_segments(cu_ptr, begin, TILE, tokens, sequences)
        while begin < stop:
            origin, end = run_of_segments(cu_ptr, begin, stop, known, sequences, TILE)
            key_gradients(
                grad_ptr, qkv_ptr, lse_ptr, delta_ptr, cu_ptr, cos_ptr, sin_ptr, key_mask_ptr, seed_ptr,
                dqkv_ptr, origin, begin, end, begin, known, head, tokens, sequences, heads, window, scale, scale_log2,
                threshold, keep_scale, D, TILE, SLICE, STAGES, "whole", PRECISION, ROPE, KEY_MASK, DROPOUT,
            )  # fmt: skip
            begin = end
    else:
        stop = tl.minimum(begin + TILE, tokens)
        known = likely_count(begin, tokens, sequences)
        if tl.program_id(1) == 0:
            key_gradients(
                grad_ptr, qkv_ptr, lse_ptr, delta_ptr, cu_ptr, cos_ptr, sin_ptr, key_mask_ptr, seed_ptr,
                dqkv_ptr, begin, begin, stop, begin, known, head, tokens, sequences, heads, window, scale, scale_log2,
                threshold, keep_scale, D, TILE, SLICE, STAGES, "left", PRECISION, ROPE, KEY_MASK, DROPOUT,
            )  # fmt: skip
        else:
            _query_gradients(
                grad_ptr, qkv_ptr, lse_ptr, delta_ptr, cu_ptr, cos_ptr, sin_ptr, key_mask_ptr, seed_ptr, dqkv_ptr,
                begin, stop, known, head, tokens, sequences, heads, window, scale, scale_log2, threshold, keep_scale,
                D, TILE, CHUNK, STAGES, PRECISION, ROPE, KEY_MASK, DROPOUT,
            )  # fmt: skip


@triton.jit
def store_delta(
    grad_ptr, out_ptr, delta_ptr, begin, end, head, tokens, heads, D: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """rowsum(dO * O) of the tokens [begin, end), ROWS at most."""
    row = begin + tl.arange(0, ROWS)
    real = row < end
    do = load_tile(grad_ptr + head * D, begin, real, heads * D, D).to(tl.float32)
    out = load_tile(out_ptr + head * D, begin, real, heads * D, D).to(tl.float32)
    tl.store(delta_ptr + tl.cast(head, tl.int64) * tokens + row, tl.sum(do * out, 1), real)


@triton.jit(do_not_specialize=["tokens"])
def _attention_delta_kernel(grad_ptr, out_ptr, delta_ptr, tokens, heads, D: tl.constexpr, ROWS: tl.constexpr):
    begin = tl.program_id(0) // heads * ROWS
    store_delta(grad_ptr, out_ptr, delta_ptr, begin, tokens, tl.program_id(0) % heads, tokens, heads, D, ROWS)


def attention_backward(
    grad, qkv, out, lse, cu_seqlens, tiling: Tiling, cos, sin, key_mask, window, scale, dropout_p, seed
):
    """dqkv of contiguous tensors; ``out`` is read only where sequences are cut; the window is a number.

    ``tiling``: how to launch.
    """
    tokens, _, heads, head_dim = qkv.shape
    dqkv = torch.empty_like(qkv)
    delta = None if tiling.whole else torch.empty_like(lse)
    with on_device(qkv):
        if not tiling.whole:
            _attention_delta_kernel[(triton.cdiv(tokens, DELTA_ROWS) * heads,)](
                grad, out, delta, tokens, heads, D=head_dim, ROWS=DELTA_ROWS, num_warps=1, **OPTIONS
            )
        _attention_backward_kernel[(triton.cdiv(tokens, tiling.tile) * heads, 1 if tiling.whole else 2)](
            grad, qkv, lse, delta, cu_seqlens, cos, sin, key_mask, seed, dqkv,
            tokens, cu_seqlens.shape[0] - 1, heads, window, scale, scale * LOG2_E,
            keep_threshold(dropout_p), 1.0 / (1.0 - dropout_p), D=head_dim, TILE=tiling.tile, SLICE=tiling.slice,
            CHUNK=tiling.chunk, STAGES=tiling.stages, WHOLE=tiling.whole, PRECISION=precision(qkv.dtype),
            ROPE=cos is not None, KEY_MASK=key_mask is not None, DROPOUT=dropout_p > 0.0,
            num_warps=tiling.warps, **OPTIONS,
        )  # fmt: skip
    return dqkv
