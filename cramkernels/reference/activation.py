"""Gated GELU: half of the input gates the other half."""

from __future__ import annotations

import torch

from cramkernels.reference.normalization import widen


def geglu_forward(x, linear_bias, approximate: str, gate: str):
    """x [.., 2F] -> [.., F]: a * GELU(g)."""
    biased = _biased(x.contiguous(), linear_bias)
    linear, gated = _halves(biased, gate)
    return torch.nn.functional.gelu(gated, approximate=approximate).mul_(linear).to(x.dtype)


def geglu_backward(grad, x, linear_bias, approximate: str, gate: str):
    """da = grad * GELU(g), dg = grad * a * GELU'(g); GELU is recomputed. Gradients of x and linear_bias."""
    biased, grad = _biased(x.contiguous(), linear_bias), widen(grad)
    linear, gated = _halves(biased, gate)
    dx = torch.empty_like(biased)
    dlinear_half, dgated_half = _halves(dx, gate)
    torch.mul(torch.nn.functional.gelu(gated, approximate=approximate), grad, out=dlinear_half)
    torch.ops.aten.gelu_backward.grad_input(grad * linear, gated, approximate=approximate, grad_input=dgated_half)
    dbias = torch.empty(0) if linear_bias is None else dx.flatten(0, -2).sum(0).to(linear_bias.dtype)
    return dx.to(x.dtype), dbias


def _biased(x, linear_bias):
    wide = widen(x)
    return wide if linear_bias is None else wide + linear_bias.to(wide.dtype)


def _halves(x, gate: str):
    """(linear half, half that goes through the GELU)."""
    first, second = x.chunk(2, dim=-1)
    return (first, second) if gate == "second" else (second, first)
