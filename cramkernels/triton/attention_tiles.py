"""What attention kernels share: who sees whom in a tile of packed tokens, its loads and stores, rotation, dropout.

A tile is a run of packed tokens, whatever the sequences in it. Its rows know the range of packed tokens that they see,
[low, high), their sequence cut to the window, and that is all that masking needs. The relation is symmetric, so the
same range says which queries see a key.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.random import philox_impl

# Products of fp32: every number as two tf32 terms, 22 of its 24 bits and more by rounding, so that all but the product
# of the small terms is there. Errors stay below those of plain fp32 sums (tests hold them to twice plain PyTorch's).
# bf16x6, in the same time of the tensor cores, has the last two bits too, but takes half as many instructions again to
# split what it multiplies, and reads it with bank conflicts.
FP32_PRECISION = "tf32x3"


def precision(dtype: torch.dtype) -> str:
    """The ``input_precision`` of products of this dtype; of 16-bit tensors there is only one."""
    return FP32_PRECISION if dtype == torch.float32 else "tf32"


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
def count_on_to(cu_ptr, x, first, last):
    """The same for a scalar x that is not far from cu[first]: looks there, and then twice as far each time."""
    found = first
    at = tl.minimum(first + 1, last)
    while found < at:
        passed = tl.load(cu_ptr + at - 1) <= x
        further = tl.minimum(at + 2 * (at - found), last)
        last = tl.where(passed, last, at - 1)
        found = tl.where(passed, at, found)
        at = tl.where(passed, further, found)
    return count_up_to(cu_ptr, x, found, last)


@triton.jit
def _segment(cu_ptr, x, count, sequences):
    inside = (count >= 1) & (count <= sequences)
    at = tl.where(inside, count, 1)
    start = tl.where(inside, tl.load(cu_ptr + at - 1, inside, 0), x)
    end = tl.where(inside, tl.load(cu_ptr + at, inside, 0), x + 1)
    return start, end, inside


@triton.jit
def _locate(cu_ptr, x, likely, sequences):
    """(count, start, end) of a scalar token x: as :func:`segments` has them, and how many of cu are <= x.

    ``likely`` is a guess of that; where it is right these are two loads.
    """
    count = tl.minimum(tl.maximum(likely, 1), sequences)
    start, end, inside = _segment(cu_ptr, x, count, sequences)
    if (not inside) | (x < start) | (x >= end):
        if inside & (x >= start):
            count = count_on_to(cu_ptr, x, count + 1, sequences + 1)
        else:
            count = count_up_to(cu_ptr, x, 0, tl.maximum(count, 1))
        start, end, _ = _segment(cu_ptr, x, count, sequences)
    return count, start, end


@triton.jit
def likely_count(x, tokens, sequences):
    """How many of cu are <= x, if the sequences are of one length."""
    return tl.cast((x + 0.5) * (sequences / tokens), tl.int32) + 1


@triton.jit
def segments(cu_ptr, x, first, last, sequences):
    """(start, end, inside) of the sequences of tokens x; one that is outside of all is a segment of its own.

    ``first``, ``last``: bounds on how many of cu are <= x.
    """
    return _segment(cu_ptr, x, count_up_to(cu_ptr, x, first, last), sequences)


@triton.jit
def own_segments(cu_ptr, begin, size, tokens, sequences):
    """(first, stop, known): segments that begin among the ``size`` tokens from ``begin`` are [first, stop) together;
    ``known``: so many of cu are <= begin."""
    known = count_up_to(cu_ptr, begin, 0, sequences + 1)
    first = _next_start(cu_ptr, begin, known, tokens, sequences)
    count = count_on_to(cu_ptr, begin + size, known, sequences + 1)
    return first, _next_start(cu_ptr, begin + size, count, tokens, sequences), known


@triton.jit
def _next_start(cu_ptr, token, count, tokens, sequences):
    """Where the first segment begins that begins at ``token`` or later; ``count`` of cu are <= token."""
    start, end, _ = _segment(cu_ptr, token, count, sequences)
    return tl.minimum(tl.where(start == token, start, end), tokens)


@triton.jit
def _last_start(cu_ptr, token, stop, known, sequences):
    """Where the segment that holds ``token`` begins, or ``stop`` if that comes first."""
    start = stop
    if token < stop:
        start, _, _ = _segment(cu_ptr, token, count_on_to(cu_ptr, token, known, sequences + 1), sequences)
    return start


@triton.jit
def run_of_segments(cu_ptr, begin, stop, known, sequences, TILE: tl.constexpr):
    """(origin, end): TILE rows from ``origin`` hold the whole segments in [begin, end), as many as fit.

    The origin is a multiple of four, which dropout likes, unless then not even one segment would fit.
    ``known``: so many of cu are <= begin, or more.
    """
    origin = begin // 4 * 4
    end = _last_start(cu_ptr, origin + TILE, stop, known, sequences)
    if end <= begin:
        origin = begin
        end = _last_start(cu_ptr, origin + TILE, stop, known, sequences)
        end = tl.where(end <= begin, begin + TILE, end)  # only if max_seqlen was wrong: go on all the same
    return origin, end


@triton.jit
def seen_range(cu_ptr, begin, end, likely, sequences, window):
    """(first, last, at least, at most, start, stop, shared) of the packed rows [begin, end).

    [first, last): the packed tokens that they see, all of them inside sequences; at least, at most: limits on how many
    of cu are <= one of those; [start, stop): the segment of ``begin``; shared: all see all of it. ``likely``: a guess
    how many of cu are <= begin.
    """
    at_least, first_start, first_stop = _locate(cu_ptr, begin, likely, sequences)
    at_most, last_stop = at_least, first_stop
    if end > first_stop:
        at_most = count_on_to(cu_ptr, end - 1, at_least, sequences + 1)
        _, last_stop, _ = _segment(cu_ptr, end - 1, at_most, sequences)
    # ranges ascend with the rows
    first = tl.maximum(tl.maximum(first_start, begin - window), tl.load(cu_ptr))
    last = tl.minimum(tl.minimum(last_stop, end + window), tl.load(cu_ptr + sequences))
    in_one = (at_least == at_most) & (at_least >= 1) & (at_least <= sequences)
    shared = in_one & (window >= first_stop - first_start)
    return first, last, at_least, at_most, first_start, first_stop, shared


@triton.jit
def row_ranges(cu_ptr, row, begin, end, at_least, at_most, first_start, first_stop, sequences, window):
    """(position, low, high) of packed rows, of which [begin, end) are real: what each sees is [low, high).

    Ranges are empty for rows that are not real, or outside. position: within the sequence, 0 where there is none.
    at_least and so on: as of :func:`seen_range`.
    """
    if at_least == at_most:
        in_one = (at_least >= 1) & (at_least <= sequences)
        start, stop, inside = row * 0 + first_start, row * 0 + first_stop, (row * 0 == 0) & in_one
    else:
        start, stop, inside = segments(cu_ptr, row, at_least, at_most, sequences)
    seeing = (row >= begin) & (row < end) & inside
    low = tl.where(seeing, tl.maximum(start, row - window), 0)
    high = tl.where(seeing, tl.minimum(stop, row + window + 1), 0)
    return tl.where(seeing, row - start, 0), low, high


@triton.jit
def positions(cu_ptr, token, real, at_least, at_most, sequences, ROPE: tl.constexpr):
    """Of tokens in a seen range within their sequences; zeros where not ``real`` or not needed."""
    position = token * 0
    if ROPE:
        start, _, _ = segments(cu_ptr, token, at_least, at_most, sequences)
        position = tl.where(real, token - start, 0)
    return position


@triton.jit
def _tile(base_ptr, first, stride, D: tl.constexpr, ROWS: tl.constexpr):
    """Pointers to packed rows of one head [ROWS, D]; offsets from the first row have 32 bits."""
    at = tl.arange(0, ROWS)[:, None] * stride + tl.arange(0, D)[None, :]
    return base_ptr + tl.cast(first, tl.int64) * stride + at


@triton.jit
def load_tile(base_ptr, first, real, stride, D: tl.constexpr):
    """Packed rows from ``first`` on of one head [R, D]; zeros where not ``real`` [R], whatever memory holds there."""
    return tl.load(_tile(base_ptr, first, stride, D, real.shape[0]), real[:, None], 0.0)


@triton.jit
def store_tile(base_ptr, first, real, stride, x, D: tl.constexpr):
    """The counterpart of :func:`load_tile`."""
    tl.store(_tile(base_ptr, first, stride, D, real.shape[0]), x.to(base_ptr.dtype.element_ty), real[:, None])


@triton.jit
def load_angles(cos_ptr, sin_ptr, position, HALF: tl.constexpr):
    """(cos, sin) [R, D / 2] of the positions."""
    at = position[:, None] * HALF + tl.arange(0, HALF)[None, :]
    return tl.load(cos_ptr + at), tl.load(sin_ptr + at)


@triton.jit
def _either(a, b):
    return a


@triton.jit
def settled(x):
    """``x`` as it is, computed and laid out once, then read by each product from shared memory when its turn comes.

    Without this, changes of layout move up to the loads, past any arithmetic: every warp would rotate the whole tile
    again, and hold it in registers for every product to come. They do not move past a reduction, even of one element.
    """
    return tl.reduce(x[None, :, :], 0, _either)


@triton.jit
def settled_16_bit(x):
    """As :func:`settled`. fp32 stays where it was loaded to: another copy takes much shared memory, and conflicts."""
    if x.dtype != tl.float32:
        x = settled(x)
    return x


@triton.jit
def _halves(x):
    """Of the columns of [R, D]."""
    first, second = tl.split(tl.permute(tl.reshape(x, [x.shape[0], 2, x.shape[1] // 2]), (0, 2, 1)))
    return settled(first), settled(second)


@triton.jit
def add_row_products(sums, x, y, step, D: tl.constexpr, PRECISION: tl.constexpr):
    """sums + x y^T, in a loop with a counter ``step`` of 0 or more; of the D columns of a head all or half are here.

    Registers do not hold the tf32 terms of 128 columns of fp32: they are taken by halves, and as ``x`` seems to depend
    on the counter, it is read from shared memory, and split into terms, in every step, not before the loop.
    """
    if x.dtype == tl.float32 and D == 128:
        x = tl.where(step >= 0, x, 0.0)
        if x.shape[1] == D:
            x_first, x_second = _halves(x)
            y_first, y_second = _halves(y)
            sums = tl.dot(x_first, tl.trans(y_first), sums, input_precision=PRECISION)
            sums = tl.dot(x_second, tl.trans(y_second), sums, input_precision=PRECISION)
        else:
            sums = tl.dot(settled(x), tl.trans(y), sums, input_precision=PRECISION)
    else:
        sums = tl.dot(x, tl.trans(y), sums, input_precision=PRECISION)
    return sums


@triton.jit
def load_rotated(base_ptr, first_row, real, stride, cos_ptr, sin_ptr, position, D: tl.constexpr, ROPE: tl.constexpr):
    """Queries or keys. Without rotation the tile, twice; else its halves [R, D / 2], rotated in fp32 and rounded."""
    if ROPE:
        cos, sin = load_angles(cos_ptr, sin_ptr, position, D // 2)
        x = load_tile(base_ptr, first_row, real, stride, D // 2).to(tl.float32)
        y = load_tile(base_ptr + D // 2, first_row, real, stride, D // 2).to(tl.float32)
        first = settled((x * cos - y * sin).to(base_ptr.dtype.element_ty))
        second = settled((y * cos + x * sin).to(base_ptr.dtype.element_ty))
    else:
        first = load_tile(base_ptr, first_row, real, stride, D)
        second = first
    return first, second


@triton.jit
def _add_tile(base_ptr, first_row, real, written, ADD: tl.constexpr, stride, x, D: tl.constexpr):
    if ADD:
        if first_row < written:
            more = first_row + tl.arange(0, real.shape[0]) < written
            x += load_tile(base_ptr, first_row, more, stride, D).to(tl.float32)
    store_tile(base_ptr, first_row, real, stride, x, D)


@triton.jit
def add_unrotated(
    base_ptr, first_row, real, written, ADD: tl.constexpr, stride, first, second, cos_ptr, sin_ptr, position,
    D: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """The gradient of what :func:`load_rotated` gave, as the gradient of what it loaded; if ADD, added to what is there
    in rows before ``written``."""
    if ROPE:
        cos, sin = load_angles(cos_ptr, sin_ptr, position, D // 2)
        _add_tile(base_ptr, first_row, real, written, ADD, stride, first * cos + second * sin, D // 2)
        _add_tile(base_ptr + D // 2, first_row, real, written, ADD, stride, second * cos - first * sin, D // 2)
    else:
        _add_tile(base_ptr, first_row, real, written, ADD, stride, first, D)


@triton.jit
def recomputed(exponent):
    """Probabilities from base-2 logarithms. At most one: of huge scores the log-sum-exp is not known to one, and what
    is beyond it would overflow. NaN stays NaN."""
    return tl.exp2(tl.minimum(exponent, 0.0, propagate_nan=tl.PropagateNan.ALL))


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
def _draw(seed, head, rows, first_block, limit, BLOCKS: tl.constexpr):
    """Of rows [R, 1] and four keys a block: which are kept, [R, BLOCKS] for each of the four."""
    block = (first_block + tl.arange(0, BLOCKS)).to(tl.uint32)[None, :]
    w0, w1, w2, w3 = _philox(seed, head, rows + block * 0, block + rows * 0)
    return (w0 >= limit).to(tl.int8), (w1 >= limit).to(tl.int8), (w2 >= limit).to(tl.int8), (w3 >= limit).to(tl.int8)


@triton.jit
def kept(seed_ptr, head, query, key_origin, threshold, KEYS: tl.constexpr):
    """Dropout mask [R, KEYS] of these packed query rows and the KEYS packed key rows from ``key_origin`` on."""
    seed = tl.load(seed_ptr)
    limit = tl.cast(threshold, tl.uint32)
    rows = query.to(tl.uint32)[:, None]
    block = key_origin // 4
    k0, k1, k2, k3 = _draw(seed, head, rows, block, limit, KEYS // 4)
    shift = key_origin % 4
    if shift != 0:  # keys do not begin with a block: four of them have the end of one and the beginning of the next
        n0, n1, n2, _ = _draw(seed, head, rows, block + 1, limit, KEYS // 4)
        k0, k1, k2, k3 = (
            tl.where(shift == 1, k1, tl.where(shift == 2, k2, k3)),
            tl.where(shift == 1, k2, tl.where(shift == 2, k3, n0)),
            tl.where(shift == 1, k3, tl.where(shift == 2, n0, n1)),
            tl.where(shift == 1, n0, tl.where(shift == 2, n1, n2)),
        )
    return tl.interleave(tl.interleave(k0, k2), tl.interleave(k1, k3)) != 0
