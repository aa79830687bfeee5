"""LayerNorm and its fusions with residual, dropout and GELU.

Statistics are fp32 (fp64 for fp64 input) whatever the input. With x^ = (x - mean) * rstd and gw = grad * weight, the
backward of LayerNorm is

    dx      = rstd * (gw - mean(gw) - x^ * mean(gw * x^))
    dweight = sum over rows of grad * x^,   dbias = sum over rows of grad

which is what ATen's fused primitives, used below, compute in one pass over each row.
"""

from __future__ import annotations

import torch

from cramkernels.reference.philox import elementwise_keep

_layer_norm_backward = torch.ops.aten.native_layer_norm_backward


def widen(x: torch.Tensor | None) -> torch.Tensor | None:
    """16-bit to fp32; fp32 and fp64 stay."""
    return x.float() if x is not None and x.dtype in (torch.float16, torch.bfloat16) else x


def layer_norm_forward(x, weight, bias, eps: float):
    """x [.., N] -> y of x's dtype, mean and rstd per row."""
    wide = widen(x)
    y, mean, rstd = torch.native_layer_norm(wide, x.shape[-1:], _as(weight, wide), _as(bias, wide), eps)
    return y.to(x.dtype), mean.view(-1), rstd.view(-1)


def layer_norm_backward(grad, x, weight, bias, mean, rstd):
    """Gradients of x, weight and bias (empty where there is no bias)."""
    wide = widen(x)
    statistics_shape = (*x.shape[:-1], 1)
    dx, dweight, dbias = _layer_norm_backward(
        widen(grad), wide, x.shape[-1:], mean.view(statistics_shape), rstd.view(statistics_shape),
        _as(weight, wide), _as(bias, wide), [True, True, bias is not None],
    )  # fmt: skip
    return dx.to(x.dtype), dweight.to(weight.dtype), _or_empty(dbias, bias)


def add_layer_norm_forward(x, residual, weight, bias, eps: float, dropout_p: float, seed):
    """(LN(r), r, mean, rstd) with r = dropout(x) + residual; y has x's dtype, r the promoted one."""
    dtype = torch.promote_types(x.dtype, residual.dtype)
    new_residual = (_dropout(widen(x.contiguous()), dropout_p, seed) + widen(residual)).to(dtype)
    y, mean, rstd = layer_norm_forward(new_residual, weight, bias, eps)
    return y.to(x.dtype), new_residual, mean, rstd


def add_layer_norm_backward(
    grad_y,
    grad_residual,
    new_residual,
    weight,
    bias,
    mean,
    rstd,
    x_dtype,
    residual_dtype,
    dropout_p: float,
    seed,
):
    """Gradients of x, residual, weight and bias. Either incoming gradient may be None."""
    if grad_y is None:
        dr, dweight, dbias = grad_residual.contiguous(), torch.zeros_like(weight), _or_empty(_zeros_like(bias), bias)
    else:
        dr, dweight, dbias = layer_norm_backward(widen(grad_y), widen(new_residual), weight, bias, mean, rstd)
        if grad_residual is not None:
            dr = dr.add_(grad_residual)
    if dropout_p == 0.0 and x_dtype == residual_dtype:
        dx = dresidual = dr.to(x_dtype)
    else:
        dx, dresidual = _dropout(widen(dr), dropout_p, seed).to(x_dtype), dr.to(residual_dtype)
    return dx, dresidual, dweight, dbias


def layer_norm_gelu_forward(x, weight, bias, eps: float, approximate: str):
    """GELU(LN(x))."""
    normalized, mean, rstd = layer_norm_forward(widen(x), weight, bias, eps)
    return torch.nn.functional.gelu(normalized, approximate=approximate).to(x.dtype), mean, rstd


def layer_norm_gelu_backward(grad, x, weight, bias, mean, rstd, eps: float, approximate: str):
    """The norm's output is recomputed rather than kept."""
    wide = widen(x)
    normalized, _, _ = layer_norm_forward(wide, weight, bias, eps)
    dnormalized = torch.ops.aten.gelu_backward(widen(grad), normalized, approximate=approximate)
    dx, dweight, dbias = layer_norm_backward(dnormalized, wide, weight, bias, mean, rstd)
    return dx.to(x.dtype), dweight, dbias


def gelu_layer_norm_forward(x, weight, bias, linear_bias, eps: float, approximate: str):
    """LN(GELU(x + linear_bias))."""
    activated = torch.nn.functional.gelu(_add_bias(widen(x), linear_bias), approximate=approximate)
    y, mean, rstd = layer_norm_forward(activated, weight, bias, eps)
    return y.to(x.dtype), mean, rstd


def gelu_layer_norm_backward(grad, x, weight, bias, linear_bias, mean, rstd, approximate: str):
    """GELU is recomputed. Gradients of x, weight, bias and linear_bias."""
    biased = _add_bias(widen(x), linear_bias)
    activated = torch.nn.functional.gelu(biased, approximate=approximate)
    dactivated, dweight, dbias = layer_norm_backward(widen(grad), activated, weight, bias, mean, rstd)
    dx = torch.ops.aten.gelu_backward(dactivated, biased, approximate=approximate)
    dlinear = dx.flatten(0, -2).sum(0) if linear_bias is not None else None
    return dx.to(x.dtype), dweight, dbias, _or_empty(dlinear, linear_bias)


def _dropout(x, dropout_p: float, seed):
    """Zero with probability p and scale by 1 / (1 - p); its own backward, given the same seed."""
    if dropout_p == 0.0:
        return x
    keep = elementwise_keep(seed, x.numel() // x.shape[-1], x.shape[-1], dropout_p).view(x.shape)
    return x * keep.to(x.dtype).mul_(1.0 / (1.0 - dropout_p))


def _add_bias(x, bias):
    return x if bias is None else x + bias.to(x.dtype)


def _as(parameter, x):
    return None if parameter is None else parameter.to(x.dtype)


def _zeros_like(x):
    return None if x is None else torch.zeros_like(x)


def _or_empty(gradient, parameter):
    return torch.empty(0) if parameter is None else gradient.to(parameter.dtype)
