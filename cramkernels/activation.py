"""Gated GELU."""

from __future__ import annotations

import torch
from torch import Tensor

from cramkernels.checks import check_approximate, check_tensor, check_vector
from cramkernels.dispatch import implementation
from cramkernels.operator import make_operator, optional

GATES = ("first", "second")


def geglu(
    x_2F: Tensor, *, linear_bias: Tensor | None = None, approximate: str = "none", gate: str = "second"
) -> Tensor:
    """One half of the input times the GELU of the other (Shazeer 2020, "GLU variants improve transformer").

    Args:
        x_2F: [.., 2F]; fp32, fp16, bf16 or fp64. Computed in fp32 for 16-bit input.
        linear_bias: [2F], added first.
        approximate: "none" (erf) or "tanh".
        gate: which half goes through the GELU, "second" or "first".

    Returns:
        [.., F] in the dtype of x.

    Raises:
        ValueError: a wrong shape, dtype, device or value.
    """
    check_tensor("x_2F", x_2F)
    if x_2F.dim() < 1 or x_2F.shape[-1] % 2:
        raise ValueError(f"x_2F: got shape {tuple(x_2F.shape)}, want an even last dimension")
    check_vector("linear_bias", linear_bias, x_2F.shape[-1], x_2F)
    check_approximate(approximate)
    if gate not in GATES:
        raise ValueError(f"gate: got {gate!r}, want 'second' or 'first'")
    return _geglu(x_2F, linear_bias, approximate, gate)


def _forward(x: Tensor, linear_bias: Tensor | None, approximate: str, gate: str) -> Tensor:
    return implementation("geglu", "forward", x)(x, linear_bias, approximate, gate)


def _forward_fake(x, linear_bias, approximate, gate):
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


def _backward(
    grad: Tensor, x: Tensor, linear_bias: Tensor | None, approximate: str, gate: str
) -> tuple[Tensor, Tensor]:
    return implementation("geglu", "backward", x)(grad, x, linear_bias, approximate, gate)


def _backward_fake(grad, x, linear_bias, approximate, gate):
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return dx, torch.empty(0) if linear_bias is None else torch.empty_like(linear_bias)


def _save(ctx, inputs, output):
    x, linear_bias, ctx.approximate, ctx.gate = inputs
    ctx.save_for_backward(x, linear_bias)


def _gradients(ctx, call_backward, grad):
    if grad is None:
        return (None,) * 4
    x, linear_bias = ctx.saved_tensors
    dx, dbias = call_backward(grad, x, linear_bias, ctx.approximate, ctx.gate)
    return dx, optional(dbias), None, None


_geglu = make_operator(
    "geglu",
    forward=_forward,
    forward_fake=_forward_fake,
    backward=_backward,
    backward_fake=_backward_fake,
    save=_save,
    gradients=_gradients,
)
