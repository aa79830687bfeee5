"""Rotary embedding of packed queries and keys; values pass. Everything is read once and written once.

A program has a tile of tokens and some of the heads: it looks up positions and angles once, then goes from head to
head. The backward is the rotation by the negative angle.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cramkernels.triton.attention_tiles import load_tile, segments, store_tile
from cramkernels.triton.launch import OPTIONS, on_device

TILE_PAIRS = 1024  # of one head: at 128 threads eight a thread, 16 bytes of each half in 16-bit types
PROGRAMS_OF_A_TILE = 4  # share its heads


@triton.jit(do_not_specialize=["tokens", "sequences", "table_rows"])
def _rotary_kernel(
    x_ptr, cos_ptr, sin_ptr, cu_ptr, y_ptr, tokens, sequences, table_rows, heads,
    HALF: tl.constexpr, ROWS: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    begin = tl.program_id(0) * ROWS
    row = begin + tl.arange(0, ROWS)
    real = row < tokens
    start, _, inside = segments(cu_ptr, row, 0, sequences + 1, sequences)
    position = row - start
    # an angle that the tables do not have is not looked up: it is NaN, and so is what it would turn
    at = position.to(tl.int64)[:, None] * HALF + tl.arange(0, HALF)[None, :]
    known = (inside & real & (position < table_rows))[:, None]
    cos = tl.load(cos_ptr + at, known, float("nan"))
    sin = tl.load(sin_ptr + at, known, float("nan"))
    if INVERSE:
        sin = -sin
    stride = 3 * heads * 2 * HALF
    for head in range(tl.program_id(1), 2 * heads, tl.num_programs(1)):  # queries, then keys
        offset = head * 2 * HALF
        first = load_tile(x_ptr + offset, begin, real, stride, HALF)
        second = load_tile(x_ptr + offset + HALF, begin, real, stride, HALF)
        x, y = first.to(tl.float32), second.to(tl.float32)
        turned_first = (x * cos - y * sin).to(first.dtype)
        turned_second = (y * cos + x * sin).to(first.dtype)
        store_tile(y_ptr + offset, begin, real, stride, tl.where(inside[:, None], turned_first, first), HALF)
        store_tile(y_ptr + offset + HALF, begin, real, stride, tl.where(inside[:, None], turned_second, second), HALF)
    for head in range(2 * heads + tl.program_id(1), 3 * heads, tl.num_programs(1)):
        offset = head * 2 * HALF
        value = load_tile(x_ptr + offset, begin, real, stride, 2 * HALF)
        store_tile(y_ptr + offset, begin, real, stride, value, 2 * HALF)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cu_seqlens: torch.Tensor, *, inverse: bool):
    """Contiguous [T, 3, H, D] -> the same with queries and keys rotated; D / 2 is a power of two from 16 on.

    cos, sin: contiguous fp32 [S, D / 2].
    """
    tokens, _, heads, head_dim = x.shape
    y = torch.empty_like(x)
    rows = 2 * TILE_PAIRS // head_dim
    with on_device(x):
        _rotary_kernel[(triton.cdiv(tokens, rows), PROGRAMS_OF_A_TILE)](
            x, cos, sin, cu_seqlens, y, tokens, cu_seqlens.shape[0] - 1, cos.shape[0], heads,
            HALF=head_dim // 2, ROWS=rows, INVERSE=inverse, num_warps=4, **OPTIONS,
        )  # fmt: skip
    return y
