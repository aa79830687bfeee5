"""LayerNorm and its fusions in Triton. A program walks over rows, each held whole in registers.

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
def _keep_factors(seed, row, threshold, keep_scale, BLOCK: tl.constexpr):
    """keep_scale or 0 for each column of a row: Philox words as in cramkernels/reference/philox.py, stream 1."""
    counter = tl.arange(0, BLOCK // 4).to(tl.uint32)
    zeros = counter * 0
    key = seed.to(tl.uint64)
    w0, w1, w2, w3 = philox_impl(
        counter, zeros + tl.cast(row, tl.uint32), zeros, zeros + 1,
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
                x *= _keep_factors(tl.load(seed_ptr), row, threshold, keep_scale, BLOCK)
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
    GRAD_RESIDUAL: tl.constexpr, DRESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    weight = tl.load(weight_ptr + columns, inside, 0.0).to(tl.float32)
    if LINEAR_BIAS:
        linear_bias = tl.load(linear_bias_ptr + columns, inside, 0.0).to(tl.float32)
    if BIAS and OP == LAYER_NORM_GELU:
        bias = tl.load(bias_ptr + columns, inside, 0.0).to(tl.float32)
    dweight = tl.zeros([BLOCK], tl.float32)
    dbias = tl.zeros([BLOCK], tl.float32)
    dlinear_bias = tl.zeros([BLOCK], tl.float32)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        offsets = tl.cast(row, tl.int64) * width + columns
        grad = tl.load(grad_ptr + offsets, inside, 0.0).to(tl.float32)
        x = tl.load(x_ptr + offsets, inside, 0.0).to(tl.float32)
        if OP == GELU_LAYER_NORM:
            if LINEAR_BIAS:
                x += linear_bias
            x, slope = gelu(x, TANH)
        normal = (x - tl.load(mean_ptr + row)) * tl.load(rstd_ptr + row)
        if OP == LAYER_NORM_GELU:
            scaled = normal * weight
            if BIAS:
                scaled += bias
            _, last_slope = gelu(scaled, TANH)
            grad *= last_slope
        dweight += grad * normal
        dbias += grad
        gw = grad * weight
        dx = tl.load(rstd_ptr + row) * (gw - tl.sum(gw, 0) / width - normal * (tl.sum(gw * normal, 0) / width))
        if OP == GELU_LAYER_NORM:
            dx *= slope
            dlinear_bias += tl.where(inside, dx, 0.0)
        if OP == ADD_LAYER_NORM:
            if GRAD_RESIDUAL:
                dx += tl.load(grad_residual_ptr + offsets, inside, 0.0).to(tl.float32)
            if DRESIDUAL:
                tl.store(dresidual_ptr + offsets, dx.to(dresidual_ptr.dtype.element_ty), inside)
            if DROPOUT:
                dx *= _keep_factors(tl.load(seed_ptr), row, threshold, keep_scale, BLOCK)
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), inside)
    plane = tl.num_programs(0).to(tl.int64) * width
    out = partials_ptr + tl.program_id(0).to(tl.int64) * width + columns
    tl.store(out, dweight, inside)
    if BIAS:
        out += plane
        tl.store(out, dbias, inside)
    if LINEAR_BIAS:
        tl.store(out + plane, dlinear_bias, inside)


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
    programs = max(1, min(rows, PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(x.device), room))
    partials = torch.empty(len(present), programs, width, dtype=torch.float32, device=x.device)
    block = _block(width)
    with on_device(x):
        _backward_kernel[(programs,)](
            grad, grad_residual, x, weight, bias, linear_bias, seed, mean, rstd, dx, dresidual, partials,
            rows, width, keep_threshold(dropout_p), 1.0 / (1.0 - dropout_p),
            OP=op, BIAS=bias is not None, LINEAR_BIAS=linear_bias is not None, TANH=approximate == "tanh",
            DROPOUT=dropout_p > 0.0, GRAD_RESIDUAL=grad_residual is not None, DRESIDUAL=dresidual is not None,
            BLOCK=block, num_warps=_warps(block), **OPTIONS,
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
