"""LayerNorm and its fusions in Triton. A program walks over rows, each held whole in registers.

The backward takes rows in tiles [CHUNKS, ROWS, CHUNK], a row being CHUNKS x CHUNK columns: where a chunk is what a warp
loads at a time, Triton gives each warp rows of its own, and sums over a row stay within it.

As in csrc/norm: one read of each input and one write of each output, parameters loaded once a program, two floats saved
a row, GELU computed again in the backward, parameter gradients as one partial row a program, summed in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.random import philox_impl

from cramkernels.reference import normalization as reference
from cramkernels.reference.philox import keep_threshold
from cramkernels.triton.gelu import gelu
from cramkernels.triton.launch import OPTIONS, PARTIAL_BYTES, multiprocessors, on_device

MAX_WIDTH = 8192  # longer rows go to the reference
PROGRAMS_PER_MULTIPROCESSOR = 4
LAYER_NORM, ADD_LAYER_NORM, LAYER_NORM_GELU, GELU_LAYER_NORM = (tl.constexpr(n) for n in range(4))


@triton.jit
def _keep_factors(seed, row, fours, threshold, keep_scale):
    """keep_scale or 0 for columns [4 * fours, + 4): Philox words as in cramkernels/reference/philox.py, stream 1."""
    row = tl.cast(row, tl.uint32)
    zeros = (fours.to(tl.uint32) + row) * 0
    key = seed.to(tl.uint64)
    w0, w1, w2, w3 = philox_impl(
        zeros + fours.to(tl.uint32), zeros + row, zeros, zeros + 1,
        (key & 0xFFFFFFFF).to(tl.uint32), (key >> 32).to(tl.uint32), 10,
    )  # fmt: skip
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    return tl.where(words >= threshold.to(tl.uint32), keep_scale, 0.0)


@triton.jit(do_not_specialize=["rows"])
def _forward_kernel(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, linear_bias_ptr, seed_ptr, y_ptr, new_residual_ptr, mean_ptr, rstd_ptr,
    rows, width, eps, threshold, keep_scale,
    OP: tl.constexpr, BIAS: tl.constexpr, LINEAR_BIAS: tl.constexpr, TANH: tl.constexpr, DROPOUT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    weight = tl.load(weight_ptr + columns, inside, 0.0).to(tl.float32)
    if BIAS:
        bias = tl.load(bias_ptr + columns, inside, 0.0).to(tl.float32)
    if LINEAR_BIAS:
        linear_bias = tl.load(linear_bias_ptr + columns, inside, 0.0).to(tl.float32)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        offsets = tl.cast(row, tl.int64) * width + columns
        x = tl.load(x_ptr + offsets, inside, 0.0).to(tl.float32)
        if OP == ADD_LAYER_NORM:
            if DROPOUT:
                x *= _keep_factors(tl.load(seed_ptr), row, tl.arange(0, BLOCK // 4), threshold, keep_scale)
            stored = (x + tl.load(residual_ptr + offsets, inside, 0.0).to(tl.float32)).to(
                new_residual_ptr.dtype.element_ty
            )
            tl.store(new_residual_ptr + offsets, stored, inside)
            x = stored.to(tl.float32)
        if OP == GELU_LAYER_NORM:
            if LINEAR_BIAS:
                x += linear_bias
            x, _ = gelu(x, TANH)
        # the first mean carries the rounding of a sum of large numbers; the deviations from it do not
        rough_mean = tl.sum(x, 0) / width
        centred = tl.where(inside, x - rough_mean, 0.0)
        deviation = tl.sum(centred, 0) / width
        rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / width - deviation * deviation + eps)
        mean = rough_mean + deviation
        y = (centred - deviation) * rstd * weight
        if BIAS:
            y += bias
        if OP == LAYER_NORM_GELU:
            y, _ = gelu(y, TANH)
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), inside)
        tl.store(mean_ptr + row, mean)
        tl.store(rstd_ptr + row, rstd)


@triton.jit(do_not_specialize=["rows"])
def _backward_kernel(
    grad_ptr, grad_residual_ptr, x_ptr, weight_ptr, bias_ptr, linear_bias_ptr, seed_ptr, mean_ptr, rstd_ptr,
    dx_ptr, dresidual_ptr, partials_ptr, rows, width, threshold, keep_scale,
    OP: tl.constexpr, BIAS: tl.constexpr, LINEAR_BIAS: tl.constexpr, TANH: tl.constexpr, DROPOUT: tl.constexpr,
    GRAD_RESIDUAL: tl.constexpr, DRESIDUAL: tl.constexpr, CHUNKS: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    chunks = tl.arange(0, CHUNKS)[:, None] * CHUNK
    columns_of_sums = chunks + tl.arange(0, CHUNK)[None, :]
    columns = columns_of_sums[:, None, :]
    fours = (chunks // 4 + tl.arange(0, CHUNK // 4)[None, :])[:, None, :]
    own = columns < width
    weight = tl.load(weight_ptr + columns, own, 0.0).to(tl.float32)
    if LINEAR_BIAS:
        linear_bias = tl.load(linear_bias_ptr + columns, own, 0.0).to(tl.float32)
    if BIAS and OP == LAYER_NORM_GELU:
        bias = tl.load(bias_ptr + columns, own, 0.0).to(tl.float32)
    dweight = tl.zeros([CHUNKS, ROWS, CHUNK], tl.float32)
    dbias = tl.zeros([CHUNKS, ROWS, CHUNK], tl.float32)
    dlinear_bias = tl.zeros([CHUNKS, ROWS, CHUNK], tl.float32)
    # rows are dealt out to the programs one by one, so that each has as many as the others
    for first in range(tl.program_id(0), rows, tl.num_programs(0) * ROWS):
        row = (first + tl.arange(0, ROWS) * tl.num_programs(0))[None, :, None]
        inside = own & (row < rows)
        offsets = tl.cast(row, tl.int64) * width + columns
        grad = tl.load(grad_ptr + offsets, inside, 0.0).to(tl.float32)
        x = tl.load(x_ptr + offsets, inside, 0.0).to(tl.float32)
        mean = tl.load(mean_ptr + row, row < rows, 0.0)
        rstd = tl.load(rstd_ptr + row, row < rows, 0.0)
        if OP == GELU_LAYER_NORM:
            if LINEAR_BIAS:
                x += linear_bias
            x, slope = gelu(x, TANH)
        normal = (x - mean) * rstd
        if OP == LAYER_NORM_GELU:
            scaled = normal * weight
            if BIAS:
                scaled += bias
            _, last_slope = gelu(scaled, TANH)
            grad *= last_slope
        dweight += grad * normal
        dbias += grad
        gw = grad * weight
        scale, shift = _row_sums(gw * normal) * (-rstd / width), _row_sums(gw) * (-rstd / width)
        dx = gw * rstd + (normal * scale + shift)  # two multiply-adds
        if OP == GELU_LAYER_NORM:
            dx *= slope
            dlinear_bias += tl.where(inside, dx, 0.0)
        if OP == ADD_LAYER_NORM:
            if GRAD_RESIDUAL:
                dx += tl.load(grad_residual_ptr + offsets, inside, 0.0).to(tl.float32)
            if DRESIDUAL:
                tl.store(dresidual_ptr + offsets, dx.to(dresidual_ptr.dtype.element_ty), inside)
            if DROPOUT:
                dx *= _keep_factors(tl.load(seed_ptr), row, fours, threshold, keep_scale)
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), inside)
    plane = tl.num_programs(0).to(tl.int64) * width
    out = partials_ptr + tl.program_id(0).to(tl.int64) * width + columns_of_sums
    tl.store(out, tl.sum(dweight, 1), columns_of_sums < width)
    if BIAS:
        out += plane
        tl.store(out, tl.sum(dbias, 1), columns_of_sums < width)
    if LINEAR_BIAS:
        tl.store(out + plane, tl.sum(dlinear_bias, 1), columns_of_sums < width)


@triton.jit
def _row_sums(x):
    """[CHUNKS, ROWS, CHUNK] -> [1, ROWS, 1]: the chunks first, which lie in one thread."""
    return tl.sum(tl.sum(x, 0, keep_dims=True), 2, keep_dims=True)


@triton.jit(do_not_specialize=["programs"])
def _reduce_kernel(partials_ptr, out_ptr, programs, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Sums [P, programs, width] over the programs, ROWS at a time, in their order."""
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    partials_ptr += tl.cast(tl.program_id(1), tl.int64) * programs * width
    out_ptr += tl.program_id(1) * width
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, programs, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < programs)[:, None] & (columns < width)[None, :]
        total += tl.sum(tl.load(partials_ptr + row[:, None] * width + columns[None, :], inside, 0.0), 0)
    tl.store(out_ptr + columns, total.to(out_ptr.dtype.element_ty), columns < width)


def layer_norm_forward(x, weight, bias, eps: float):
    """x [.., N] -> y, mean, rstd."""
    if x.shape[-1] > MAX_WIDTH:
        return reference.layer_norm_forward(x, weight, bias, eps)
    return _forward(LAYER_NORM, x, weight, bias, eps=eps)


def layer_norm_backward(grad, x, weight, bias, mean, rstd):
    """Gradients of x, weight, bias."""
    if x.shape[-1] > MAX_WIDTH:
        return reference.layer_norm_backward(grad, x, weight, bias, mean, rstd)
    return _backward(LAYER_NORM, grad, x, weight, bias, mean, rstd)[:3]


def add_layer_norm_forward(x, residual, weight, bias, eps: float, dropout_p: float, seed):
    """(y, new residual, mean, rstd)."""
    if x.shape[-1] > MAX_WIDTH:
        return reference.add_layer_norm_forward(x, residual, weight, bias, eps, dropout_p, seed)
    new_residual = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype), device=x.device)
    y, mean, rstd = _forward(
        ADD_LAYER_NORM, x, weight, bias, eps=eps, residual=residual.contiguous(), new_residual=new_residual,
        dropout_p=dropout_p, seed=seed,
    )  # fmt: skip
    return y, new_residual, mean, rstd


def add_layer_norm_backward(
    grad_y, grad_residual, new_residual, weight, bias, mean, rstd, x_dtype, residual_dtype, dropout_p: float, seed
):
    """Gradients of x, residual, weight, bias; without dropout those of x and residual may be one tensor."""
    if grad_y is None or new_residual.shape[-1] > MAX_WIDTH:
        return reference.add_layer_norm_backward(
            grad_y, grad_residual, new_residual, weight, bias, mean, rstd, x_dtype, residual_dtype, dropout_p, seed
        )
    one = dropout_p == 0.0 and x_dtype == residual_dtype
    dresidual = None if one else torch.empty(new_residual.shape, dtype=residual_dtype, device=new_residual.device)
    dx, dweight, dbias, _ = _backward(
        ADD_LAYER_NORM, grad_y.to(x_dtype), new_residual, weight, bias, mean, rstd,
        grad_residual=None if grad_residual is None else grad_residual.contiguous(), dresidual=dresidual,
        dropout_p=dropout_p, seed=seed,
    )  # fmt: skip
    return dx, dx if one else dresidual, dweight, dbias


def layer_norm_gelu_forward(x, weight, bias, eps: float, approximate: str):
    """GELU(LN(x)), mean, rstd."""
    if x.shape[-1] > MAX_WIDTH:
        return reference.layer_norm_gelu_forward(x, weight, bias, eps, approximate)
    return _forward(LAYER_NORM_GELU, x, weight, bias, eps=eps, approximate=approximate)


def layer_norm_gelu_backward(grad, x, weight, bias, mean, rstd, eps: float, approximate: str):
    """Gradients of x, weight, bias."""
    if x.shape[-1] > MAX_WIDTH:
        return reference.layer_norm_gelu_backward(grad, x, weight, bias, mean, rstd, eps, approximate)
    return _backward(LAYER_NORM_GELU, grad, x, weight, bias, mean, rstd, approximate=approximate)[:3]


def gelu_layer_norm_forward(x, weight, bias, linear_bias, eps: float, approximate: str):
    """LN(GELU(x + linear_bias)), mean, rstd."""
    if x.shape[-1] > MAX_WIDTH:
        return reference.gelu_layer_norm_forward(x, weight, bias, linear_bias, eps, approximate)
    return _forward(GELU_LAYER_NORM, x, weight, bias, linear_bias, eps=eps, approximate=approximate)


def gelu_layer_norm_backward(grad, x, weight, bias, linear_bias, mean, rstd, approximate: str):
    """Gradients of x, weight, bias, linear_bias."""
    if x.shape[-1] > MAX_WIDTH:
        return reference.gelu_layer_norm_backward(grad, x, weight, bias, linear_bias, mean, rstd, approximate)
    return _backward(GELU_LAYER_NORM, grad, x, weight, bias, mean, rstd, linear_bias, approximate=approximate)


def _forward(
    op, x, weight, bias, linear_bias=None, *, eps, residual=None, new_residual=None, approximate="none",
    dropout_p=0.0, seed=None,
):  # fmt: skip
    x = x.contiguous()
    width, rows = x.shape[-1], x.numel() // x.shape[-1]
    y = torch.empty_like(x)
    mean, rstd = torch.empty(2, rows, dtype=torch.float32, device=x.device)
    if rows:
        block = _block(width)
        with on_device(x):
            _forward_kernel[(min(rows, PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(x.device)),)](
                x, residual, weight, bias, linear_bias, seed, y, new_residual, mean, rstd,
                rows, width, eps, keep_threshold(dropout_p), 1.0 / (1.0 - dropout_p),
                OP=op, BIAS=bias is not None, LINEAR_BIAS=linear_bias is not None, TANH=approximate == "tanh",
                DROPOUT=dropout_p > 0.0, BLOCK=block, num_warps=_warps(block), **OPTIONS,
            )  # fmt: skip
    return y, mean, rstd


def _backward(
    op, grad, x, weight, bias, mean, rstd, linear_bias=None, *, grad_residual=None, dresidual=None,
    approximate="none", dropout_p=0.0, seed=None,
):  # fmt: skip
    """Gradients of x (of grad's dtype), weight, bias, linear_bias; empty where there is no parameter."""
    grad, x = grad.contiguous(), x.contiguous()
    width, rows = x.shape[-1], x.numel() // x.shape[-1]
    dx = torch.empty_like(grad)
    parameters = (weight, bias, linear_bias)
    present = [p for p in parameters if p is not None]
    if rows == 0:
        return dx, *(torch.empty(0) if p is None else torch.zeros_like(p) for p in parameters)
    room = PARTIAL_BYTES // (4 * width * len(present))
    chunks, rows_at_once, chunk, warps, resident = _tile(op, width, x.element_size())
    few = -(-rows // min(rows_at_once, 4))  # a partial row for fewer rows would cost as much as the rows
    programs = max(1, min(few, resident * multiprocessors(x.device), room))
    partials = torch.empty(len(present), programs, width, dtype=torch.float32, device=x.device)
    with on_device(x):
        _backward_kernel[(programs,)](
            grad, grad_residual, x, weight, bias, linear_bias, seed, mean, rstd, dx, dresidual, partials,
            rows, width, keep_threshold(dropout_p), 1.0 / (1.0 - dropout_p),
            OP=op, BIAS=bias is not None, LINEAR_BIAS=linear_bias is not None, TANH=approximate == "tanh",
            DROPOUT=dropout_p > 0.0, GRAD_RESIDUAL=grad_residual is not None, DRESIDUAL=dresidual is not None,
            CHUNKS=chunks, ROWS=rows_at_once, CHUNK=chunk, num_warps=warps, **OPTIONS,
        )  # fmt: skip
        gradients = iter(reduce_partials(partials, torch.float32))
    return dx, *(torch.empty(0) if p is None else next(gradients).to(p.dtype) for p in parameters)


def reduce_partials(partials: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[P, programs, N] -> [P, N]."""
    count, programs, width = partials.shape
    out = torch.empty(count, width, dtype=dtype, device=partials.device)
    _reduce_kernel[(triton.cdiv(width, 32), count)](
        partials, out, programs, width, ROWS=32, BLOCK=32, num_warps=4, **OPTIONS
    )
    return out


def _block(width: int) -> int:
    return max(32, triton.next_power_of_2(width))


def _warps(block: int) -> int:
    """Sixteen elements a thread, at most 16 warps: fewer would spend as much on sums over threads as on arithmetic."""
    return min(16, max(1, block // 512))


def _tile(op: int, width: int, itemsize: int) -> tuple[int, int, int, int, int]:
    """Of a backward: chunks, rows, columns of a chunk, warps, programs of a multiprocessor.

    One program fills a multiprocessor, so that there are as few partial rows as there can be. With a GELU there is more
    to hold: two warps share a row, else registers would spill.
    """
    block = _block(width)
    if block > 1024:
        return 1, 1, block, _warps(block), PROGRAMS_PER_MULTIPROCESSOR
    chunk = min(block, 32 * 16 // itemsize)  # 16 bytes a lane
    return block // chunk, 4 if op in (LAYER_NORM_GELU, GELU_LAYER_NORM) else 8, chunk, 8, 1
