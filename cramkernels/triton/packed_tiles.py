"""What attention kernels share: who sees whom in a tile of packed tokens, its loads and stores, rotation, dropout.

A tile is a run of packed tokens, whatever the sequences in it. Its rows know the range of packed tokens that they see,
[low, high), their sequence cut to the window, and that is all that masking needs. The relation is symmetric, so the
same range says which queries see a key.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.random import philox_impl


@triton.jit
def count_up_to(cu_ptr, x, first, last):
    """How many of the ascending cu[:last] are <= x, of which the first ``first`` surely are. x: scalar or tensor."""
    found = x * 0 + first
    left = last - first
    while left > 0:
        step = (left + 1) // 2
        found = tl.where(tl.load(cu_ptr + found + step - 1) <= x, found + step, found)
        left //= 2
    return found


@triton.jit
def segments(cu_ptr, x, first, last, sequences):
    """(start, end, inside) of the sequences of tokens x; one that is outside of all is a segment of its own.

    ``first``, ``last``: bounds on how many of cu are <= x.
    """
    count = count_up_to(cu_ptr, x, first, last)
    inside = (count >= 1) & (count <= sequences)
    at = tl.where(inside, count, 1)
    start = tl.where(inside, tl.load(cu_ptr + at - 1, inside, 0), x)
    end = tl.where(inside, tl.load(cu_ptr + at, inside, 0), x + 1)
    return start, end, inside


@triton.jit
def row_bounds(cu_ptr, row, real, origin, size, sequences, window):
    """(position, low, high) of the packed rows [origin, origin + size), empty ranges where not ``real`` or outside.

    position: within the sequence, 0 where there is none.
    """
    first = count_up_to(cu_ptr, origin, 0, sequences + 1)
    last = count_up_to(cu_ptr, origin + size - 1, first, sequences + 1)
    start, end, inside = segments(cu_ptr, row, first, last, sequences)
    seeing = real & inside
    low = tl.where(seeing, tl.maximum(start, row - window), 0)
    high = tl.where(seeing, tl.minimum(end, row + window + 1), 0)
    return tl.where(seeing, row - start, 0), low, high


@triton.jit
def join_halves(first, second):
    """Two [R, D / 2] -> [R, D]."""
    R: tl.constexpr = first.shape[0]
    D: tl.constexpr = 2 * first.shape[1]
    return tl.reshape(tl.permute(tl.join(first, second), (0, 2, 1)), (R, D))


@triton.jit
def split_halves(x):
    """[R, D] -> two [R, D / 2]."""
    R: tl.constexpr = x.shape[0]
    D: tl.constexpr = x.shape[1]
    return tl.split(tl.permute(tl.reshape(x, (R, 2, D // 2)), (0, 2, 1)))


@triton.jit
def load_tile(base_ptr, row, real, stride, D: tl.constexpr):
    """Rows of one head [R, D]; zeros where not ``real``, whatever memory holds there."""
    column = tl.arange(0, D)
    return tl.load(base_ptr + row[:, None] * stride + column[None, :], real[:, None], 0.0)


@triton.jit
def store_tile(base_ptr, row, real, stride, x, D: tl.constexpr):
    """The counterpart of :func:`load_tile`."""
    column = tl.arange(0, D)
    tl.store(base_ptr + row[:, None] * stride + column[None, :], x.to(base_ptr.dtype.element_ty), real[:, None])


@triton.jit
def load_angles(cos_ptr, sin_ptr, position, HALF: tl.constexpr):
    """(cos, sin) [R, D / 2] of the positions."""
    at = position[:, None] * HALF + tl.arange(0, HALF)[None, :]
    return tl.load(cos_ptr + at), tl.load(sin_ptr + at)


@triton.jit
def load_rotated(base_ptr, row, real, stride, cos_ptr, sin_ptr, position, D: tl.constexpr, ROPE: tl.constexpr):
    """As :func:`load_tile`, rotated, where there is a rotation, in fp32 and rounded to the type of the tile."""
    if ROPE:
        HALF: tl.constexpr = D // 2
        cos, sin = load_angles(cos_ptr, sin_ptr, position, HALF)
        first = load_tile(base_ptr, row, real, stride, HALF).to(tl.float32)
        second = load_tile(base_ptr + HALF, row, real, stride, HALF).to(tl.float32)
        rotated = join_halves(first * cos - second * sin, second * cos + first * sin)
        x = rotated.to(base_ptr.dtype.element_ty)
    else:
        x = load_tile(base_ptr, row, real, stride, D)
    return x


@triton.jit
def store_unrotated(base_ptr, row, real, stride, x, cos_ptr, sin_ptr, position, D: tl.constexpr, ROPE: tl.constexpr):
    """Store the gradient of what :func:`load_rotated` gave as the gradient of what it loaded."""
    if ROPE:
        HALF: tl.constexpr = D // 2
        cos, sin = load_angles(cos_ptr, sin_ptr, position, HALF)
        first, second = split_halves(x)
        store_tile(base_ptr, row, real, stride, first * cos + second * sin, HALF)
        store_tile(base_ptr + HALF, row, real, stride, second * cos - first * sin, HALF)
    else:
        store_tile(base_ptr, row, real, stride, x, D)


@triton.jit
def _philox(seed, head, query, block):
    """The four words of cramkernels/reference/philox.py, stream 0; query and block are of one shape."""
    key = seed.to(tl.uint64)
    zeros = block * 0
    return philox_impl(
        block, query, zeros + tl.cast(head, tl.uint32), zeros,
        (key & 0xFFFFFFFF).to(tl.uint32), (key >> 32).to(tl.uint32), 10,
    )  # fmt: skip


@triton.jit
def _kept_by_blocks(seed, head, rows, key_origin, limit, KEYS: tl.constexpr):
    """Where the keys begin with a block: one draw for four."""
    block = (key_origin // 4 + tl.arange(0, KEYS // 4)).to(tl.uint32)[None, :]
    w0, w1, w2, w3 = _philox(seed, head, rows + block * 0, block + rows * 0)
    return tl.interleave(
        tl.interleave((w0 >= limit).to(tl.int8), (w2 >= limit).to(tl.int8)),
        tl.interleave((w1 >= limit).to(tl.int8), (w3 >= limit).to(tl.int8)),
    )


@triton.jit
def _kept_by_keys(seed, head, rows, key_origin, limit, KEYS: tl.constexpr):
    """Anywhere: each key draws its block itself."""
    key = (key_origin + tl.arange(0, KEYS)).to(tl.uint32)[None, :] + rows * 0
    w0, w1, w2, w3 = _philox(seed, head, rows + key * 0, key // 4)
    place = key % 4
    word = tl.where(place < 2, tl.where(place == 0, w0, w1), tl.where(place == 2, w2, w3))
    return (word >= limit).to(tl.int8)


@triton.jit
def kept(seed_ptr, head, query, key_origin, threshold, KEYS: tl.constexpr):
    """Dropout mask [R, KEYS] of these packed query rows and the KEYS packed key rows from ``key_origin`` on."""
    seed = tl.load(seed_ptr)
    limit = tl.cast(threshold, tl.uint32)
    rows = query.to(tl.uint32)[:, None]
    if key_origin % 4 == 0:
        keep = _kept_by_blocks(seed, head, rows, key_origin, limit, KEYS)
    else:
        keep = _kept_by_keys(seed, head, rows, key_origin, limit, KEYS)
    return keep != 0
