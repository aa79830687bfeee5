"""The forward of attention: scores of a tile of queries with chunks of keys, softmax with a running maximum.

Where sequences are short, tiles are runs of whole sequences: a program (window of TILE tokens, head) takes the
sequences that begin in its window, as many at a time as a tile holds, and so reads and writes everything once. Longer
sequences are cut into tiles of queries, and each tile reads again the keys and values that it sees.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cramkernels.configurations import Tiling
from cramkernels.reference.philox import keep_threshold
from cramkernels.triton.attention_tiles import (
    kept,
    likely_count,
    load_rotated,
    load_tile,
    own_segments,
    positions,
    precision,
    row_ranges,
    run_of_segments,
    seen_range,
    store_tile,
)  # fmt: skip
from cramkernels.triton.launch import on_device

# The maximum is taken of rounded products. A fused multiply-add would subtract it from unrounded ones, and what is left
# of huge scores then overflows; it would save nothing, as the product is needed rounded anyway.
UNFUSED = {"enable_fp_fusion": False}
LOG2_E = 1.4426950408889634
UNROLL = tl.constexpr(2)  # chunks without masks for which queries are read from shared memory once ...
UNROLLED = tl.constexpr(32 * 64)  # ... if they are this small: numbers of a chunk
PARTS = tl.constexpr(8)  # of a row's sum of probabilities: as many columns as a tile of the tensor cores has


@triton.jit
def _attend(
    out, highest, total, q, q_second, chunks_start, chunks_end, row, low, high, first, last, at_least, at_most,
    k_ptr, v_ptr, cu_ptr, cos_ptr, sin_ptr, key_mask_ptr, seed_ptr, head, sequences, stride, scale_log2, threshold,
    MASKED: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
    ROPE: tl.constexpr, KEY_MASK: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """(out, highest, total) after the keys of these chunks, too. If not MASKED all queries see all of them."""
    small: tl.constexpr = CHUNK * D <= UNROLLED and PRECISION == "tf32"  # there are registers for more
    unroll: tl.constexpr = UNROLL if small and not MASKED else 1
    for chunk in tl.range(chunks_start, chunks_end, CHUNK, num_stages=STAGES, loop_unroll_factor=unroll):
        key = chunk + tl.arange(0, CHUNK)
        present = key < last
        if DROPOUT:
            present &= key >= first
        key_position = positions(cu_ptr, key, present, at_least, at_most, sequences, ROPE)
        k, k_second = load_rotated(k_ptr, chunk, present, stride, cos_ptr, sin_ptr, key_position, D, ROPE)
        if PRECISION == "tf32":
            v = load_tile(v_ptr, chunk, present, stride, D)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if ROPE:
            scores = tl.dot(q_second, tl.trans(k_second), scores, input_precision=PRECISION)
        scores *= scale_log2
        if MASKED:
            visible = (key[None, :] >= low[:, None]) & (key[None, :] < high[:, None])
            if KEY_MASK:
                visible &= (tl.load(key_mask_ptr + key, present, 0) != 0)[None, :]
            scores = tl.where(visible, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # saw no key yet
        p = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(highest - base)
        highest = higher
        total = total * shrink[:, None] + tl.sum(tl.reshape(p, [p.shape[0], CHUNK // PARTS, PARTS]), 1)
        if DROPOUT:
            p = tl.where(kept(seed_ptr, head, row, chunk, threshold, CHUNK), p, 0.0)
        if PRECISION != "tf32":  # fp32 has no registers for values before their turn
            v = load_tile(v_ptr, chunk, present, stride, D)
        out = tl.dot(p.to(v.dtype), v, out * shrink[:, None], input_precision=PRECISION)
    return out, highest, total


@triton.jit(do_not_specialize=["tokens", "sequences", "window", "threshold"])
def _attention_forward_kernel(
    qkv_ptr, cu_ptr, cos_ptr, sin_ptr, key_mask_ptr, seed_ptr, out_ptr, lse_ptr,
    tokens, sequences, heads, window, scale_log2, threshold, keep_scale,
    D: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr, WHOLE: tl.constexpr,
    PRECISION: tl.constexpr, ROPE: tl.constexpr, KEY_MASK: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % heads
    begin = tl.program_id(0) // heads * TILE
    stop = tl.minimum(begin + TILE, tokens)
    known = 0
    if WHOLE:
        begin, stop, known = own_segments(cu_ptr, begin, TILE, tokens, sequences)
    else:
        known = likely_count(begin, tokens, sequences)
    stride = 3 * heads * D
    q_ptr = qkv_ptr + head * D
    k_ptr = q_ptr + heads * D
    v_ptr = k_ptr + heads * D
    while begin < stop:
        if WHOLE:
            origin, end = run_of_segments(cu_ptr, begin, stop, known, sequences, TILE)
        else:
            origin, end = begin, stop
        row = origin + tl.arange(0, TILE)
        real = (row >= begin) & (row < end)
        first, last, at_least, at_most, first_start, first_stop, shared = seen_range(
            cu_ptr, begin, end, known, sequences, window
        )
        position, low, high = row, row, row
        if ROPE:
            position, low, high = row_ranges(
                cu_ptr, row, begin, end, at_least, at_most, first_start, first_stop, sequences, window
            )
        # rows that see nothing may hold anything: it stays in these, which are masked
        q, q_second = load_rotated(q_ptr, origin, real, stride, cos_ptr, sin_ptr, position, D, ROPE)
        highest = tl.full([TILE], float("-inf"), tl.float32)
        total = tl.zeros([TILE, PARTS], tl.float32)
        out = tl.zeros([TILE, D], tl.float32)
        masked_chunks = first
        if DROPOUT:
            masked_chunks = first // 4 * 4  # keys that begin within a draw of four take two
        elif not KEY_MASK:  # of what these cost a loop without masks would save little, and registers do not suffice
            if shared:
                masked_chunks = first + (last - first) // CHUNK * CHUNK
            out, highest, total = _attend(
                out, highest, total, q, q_second, first, masked_chunks, row, low, high, first, last, at_least, at_most,
                k_ptr, v_ptr, cu_ptr, cos_ptr, sin_ptr, key_mask_ptr, seed_ptr, head, sequences, stride, scale_log2,
                threshold, False, D, CHUNK, STAGES, PRECISION, ROPE, False, False,
            )  # fmt: skip
        if masked_chunks < last:
            if not ROPE:  # no earlier: the loop above has no registers to keep them
                _, low, high = row_ranges(
                    cu_ptr, row, begin, end, at_least, at_most, first_start, first_stop, sequences, window
                )
            out, highest, total = _attend(
                out, highest, total, q, q_second, masked_chunks, last, row, low, high, first, last, at_least, at_most,
                k_ptr, v_ptr, cu_ptr, cos_ptr, sin_ptr, key_mask_ptr, seed_ptr, head, sequences, stride, scale_log2,
                threshold, True, D, CHUNK, STAGES, PRECISION, ROPE, KEY_MASK, DROPOUT,
            )  # fmt: skip
        total = tl.sum(total, 1)
        some = total > 0.0
        factor = tl.where(some, 1.0 / total, 0.0)
        if DROPOUT:
            factor *= keep_scale
        origin = tl.where(last >= 0, origin, 0)  # always; else addresses are kept in registers from the queries on
        row = origin + tl.arange(0, TILE)
        real = (row >= begin) & (row < end)
        store_tile(out_ptr + head * D, origin, real, heads * D, out * factor[:, None], D)
        lse = tl.where(some, (highest + tl.log2(total)) * 0.6931471805599453, 0.0)
        tl.store(lse_ptr + tl.cast(head, tl.int64) * tokens + row, lse, real)
        begin = end


def attention_forward(qkv, cu_seqlens, tiling: Tiling, cos, sin, key_mask, window, scale, dropout_p, seed):
    """(out, lse) of contiguous qkv; the window is a number. ``tiling``: how to launch."""
    tokens, _, heads, head_dim = qkv.shape
    out = qkv.new_empty(tokens, heads, head_dim)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=qkv.device)
    with on_device(qkv):
        _attention_forward_kernel[(triton.cdiv(tokens, tiling.tile) * heads,)](
            qkv, cu_seqlens, cos, sin, key_mask, seed, out, lse,
            tokens, cu_seqlens.shape[0] - 1, heads, window, scale * LOG2_E,
            keep_threshold(dropout_p), 1.0 / (1.0 - dropout_p), D=head_dim, TILE=tiling.tile, CHUNK=tiling.chunk,
            STAGES=tiling.stages, WHOLE=tiling.whole, PRECISION=precision(qkv.dtype), ROPE=cos is not None,
            KEY_MASK=key_mask is not None, DROPOUT=dropout_p > 0.0, num_warps=tiling.warps, **UNFUSED,
        )  # fmt: skip
    return out, lse
