"""Gated GELU in Triton: element-wise; with a bias, a program keeps its columns and walks down the rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cramkernels.triton.gelu import gelu
from cramkernels.triton.launch import OPTIONS, PARTIAL_BYTES, multiprocessors, on_device
from cramkernels.triton.normalization import reduce_partials

BLOCK = 256
PROGRAMS_PER_MULTIPROCESSOR = 16


@triton.jit(do_not_specialize=["rows"])
def _forward_kernel(
    x_ptr, bias_ptr, y_ptr, rows, width, BIAS: tl.constexpr, TANH: tl.constexpr, GATE_FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    linear_at = columns + width if GATE_FIRST else columns
    gated_at = columns if GATE_FIRST else columns + width
    if BIAS:
        linear_bias = tl.load(bias_ptr + linear_at, inside, 0.0).to(tl.float32)
        gated_bias = tl.load(bias_ptr + gated_at, inside, 0.0).to(tl.float32)
    for row in range(tl.program_id(1), rows, tl.num_programs(1)):
        x_row = x_ptr + tl.cast(row, tl.int64) * 2 * width
        linear = tl.load(x_row + linear_at, inside, 0.0).to(tl.float32)
        gated = tl.load(x_row + gated_at, inside, 0.0).to(tl.float32)
        if BIAS:
            linear += linear_bias
            gated += gated_bias
        value, _ = gelu(gated, TANH)
        tl.store(y_ptr + tl.cast(row, tl.int64) * width + columns, (linear * value).to(y_ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["rows"])
def _backward_kernel(
    grad_ptr, x_ptr, bias_ptr, dx_ptr, partials_ptr, rows, width, BIAS: tl.constexpr, TANH: tl.constexpr,
    GATE_FIRST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    linear_at = columns + width if GATE_FIRST else columns
    gated_at = columns if GATE_FIRST else columns + width
    if BIAS:
        linear_bias = tl.load(bias_ptr + linear_at, inside, 0.0).to(tl.float32)
        gated_bias = tl.load(bias_ptr + gated_at, inside, 0.0).to(tl.float32)
    dlinear_sum = tl.zeros([BLOCK], tl.float32)
    dgated_sum = tl.zeros([BLOCK], tl.float32)
    for row in range(tl.program_id(1), rows, tl.num_programs(1)):
        start = tl.cast(row, tl.int64) * 2 * width
        linear = tl.load(x_ptr + start + linear_at, inside, 0.0).to(tl.float32)
        gated = tl.load(x_ptr + start + gated_at, inside, 0.0).to(tl.float32)
        grad = tl.load(grad_ptr + tl.cast(row, tl.int64) * width + columns, inside, 0.0).to(tl.float32)
        if BIAS:
            linear += linear_bias
            gated += gated_bias
        value, slope = gelu(gated, TANH)
        dlinear = grad * value
        dgated = grad * linear * slope
        tl.store(dx_ptr + start + linear_at, dlinear.to(dx_ptr.dtype.element_ty), inside)
        tl.store(dx_ptr + start + gated_at, dgated.to(dx_ptr.dtype.element_ty), inside)
        dlinear_sum += dlinear
        dgated_sum += dgated
    if BIAS:
        out = partials_ptr + tl.program_id(1).to(tl.int64) * 2 * width
        tl.store(out + linear_at, dlinear_sum, inside)
        tl.store(out + gated_at, dgated_sum, inside)


def geglu_forward(x, linear_bias, approximate: str, gate: str):
    """x [.., 2F] -> [.., F]."""
    x = x.contiguous()
    width, rows = x.shape[-1] // 2, x.numel() // max(x.shape[-1], 1)
    y = x.new_empty(*x.shape[:-1], width)
    if y.numel():
        with on_device(x):
            _forward_kernel[_grid(rows, width, x.device, 65535)](
                x, linear_bias, y, rows, width, BIAS=linear_bias is not None, TANH=approximate == "tanh",
                GATE_FIRST=gate == "first", BLOCK=BLOCK, num_warps=1, **OPTIONS,
            )  # fmt: skip
    return y


def geglu_backward(grad, x, linear_bias, approximate: str, gate: str):
    """Gradients of x and linear_bias."""
    grad, x = grad.contiguous(), x.contiguous()
    width, rows = x.shape[-1] // 2, x.numel() // max(x.shape[-1], 1)
    dx = torch.empty_like(x)
    if x.numel() == 0:
        return dx, torch.empty(0) if linear_bias is None else torch.zeros_like(linear_bias)
    room = 65535 if linear_bias is None else max(1, PARTIAL_BYTES // (8 * width))
    grid = _grid(rows, width, x.device, room)
    partials = None if linear_bias is None else torch.empty(1, grid[1], 2 * width, device=x.device)
    with on_device(x):
        _backward_kernel[grid](
            grad, x, linear_bias, dx, partials, rows, width, BIAS=linear_bias is not None,
            TANH=approximate == "tanh", GATE_FIRST=gate == "first", BLOCK=BLOCK, num_warps=1, **OPTIONS,
        )  # fmt: skip
        return dx, torch.empty(0) if linear_bias is None else reduce_partials(partials, linear_bias.dtype)[0]


def _grid(rows: int, width: int, device: torch.device, room: int) -> tuple[int, int]:
    across = triton.cdiv(width, BLOCK)
    fill = triton.cdiv(PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(device), across)
    return across, max(1, min(fill, rows, room))
