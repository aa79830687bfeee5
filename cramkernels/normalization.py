"""LayerNorm and its fusions. No operation here is touched by autocast: y has the dtype of x, statistics are fp32."""

from __future__ import annotations

import torch
from torch import Tensor

from cramkernels.checks import check_approximate, check_dropout, check_parameter_dtype, check_tensor, check_vector
from cramkernels.dispatch import implementation
from cramkernels.operator import make_operator, optional


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float) -> Tensor:
    """LayerNorm over the last dimension (Ba et al. 2016).

    Args:
        x: [.., N]; fp32, fp16, bf16 or fp64.
        weight, bias: [N], of x's dtype or fp32.
        eps: added to the variance.

    Raises:
        ValueError: a wrong shape, dtype, device or value.
    """
    _check(x, weight, bias, eps)
    return _layer_norm(x, weight, bias, eps)[0]


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(LN(r), r) with r = dropout(x) + residual.

    Args:
        x, residual: [.., N], of one shape; the residual may be fp32 beside a 16-bit x.
        dropout_p, seed: the mask depends on (seed, row, column).

    Returns:
        y in the dtype of x, and the new residual in the promoted dtype.

    Raises:
        ValueError: a wrong shape, dtype, device or value.
    """
    _check(x, weight, bias, eps)
    check_tensor("residual", residual, like=x)
    check_parameter_dtype("residual", residual, x)
    if residual.shape != x.shape:
        raise ValueError(f"residual: got shape {tuple(residual.shape)}, want that of x, {tuple(x.shape)}")
    seed = check_dropout(dropout_p, seed, x.device)
    return _add_layer_norm(x, residual, weight, bias, eps, dropout_p, seed)[:2]


def layer_norm_gelu(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float, approximate: str = "none"
) -> Tensor:
    """GELU(LN(x)); arguments as in :func:`layer_norm`, ``approximate`` is "none" (erf) or "tanh"."""
    _check(x, weight, bias, eps)
    check_approximate(approximate)
    return _layer_norm_gelu(x, weight, bias, eps, approximate)[0]


def gelu_layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    linear_bias: Tensor | None = None,
    eps: float,
    approximate: str = "none",
) -> Tensor:
    """LN(GELU(x + linear_bias)): BERT's prediction-head transform after its matrix. ``linear_bias`` is [N]."""
    _check(x, weight, bias, eps)
    check_vector("linear_bias", linear_bias, x.shape[-1], x)
    check_approximate(approximate)
    return _gelu_layer_norm(x, weight, bias, linear_bias, eps, approximate)[0]


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> None:
    check_tensor("x", x)
    width = x.shape[-1] if x.dim() else 0
    if width == 0:
        raise ValueError(f"x: got shape {tuple(x.shape)}, want at least one element in the last dimension")
    if not isinstance(weight, torch.Tensor):
        raise ValueError(f"weight: got {type(weight).__name__}, want a tensor")
    check_vector("weight", weight, width, x)
    check_vector("bias", bias, width, x)
    if not eps >= 0:
        raise ValueError(f"eps: got {eps}, want a number >= 0")


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    rows = x.numel() // x.shape[-1]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(rows, dtype=dtype), x.new_empty(rows, dtype=dtype)


def _like(x: Tensor | None) -> Tensor:
    return torch.empty(0) if x is None else torch.empty_like(x)


def _contiguous_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


# --- layer_norm


def _layer_norm_forward(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return implementation("layer_norm", "forward", x)(x, weight, bias, eps)


def _layer_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return implementation("layer_norm", "backward", x)(grad, x, weight, bias, mean, rstd)


def _layer_norm_save(ctx, inputs, outputs):
    x, weight, bias, _ = inputs
    _, mean, rstd = outputs
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, weight, bias, mean, rstd)


def _layer_norm_gradients(ctx, call_backward, grad, *_):
    if grad is None:
        return (None,) * 4
    dx, dweight, dbias = call_backward(grad, *ctx.saved_tensors)
    return dx, dweight, optional(dbias), None


_layer_norm = make_operator(
    "layer_norm",
    forward=_layer_norm_forward,
    forward_fake=lambda x, weight, bias, eps: (_contiguous_like(x), *_statistics(x)),
    backward=_layer_norm_backward,
    backward_fake=lambda grad, x, weight, bias, mean, rstd: (_contiguous_like(x), _like(weight), _like(bias)),
    save=_layer_norm_save,
    gradients=_layer_norm_gradients,
)


# --- add_layer_norm


def _add_layer_norm_forward(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return implementation("add_layer_norm", "forward", x)(x, residual, weight, bias, eps, dropout_p, seed)


def _add_layer_norm_forward_fake(x, residual, weight, bias, eps, dropout_p, seed):
    new_residual = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype))
    return _contiguous_like(x), new_residual, *_statistics(new_residual)


def _add_layer_norm_backward(
    grad_y: Tensor | None,
    grad_residual: Tensor | None,
    new_residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    x_dtype: torch.dtype,
    residual_dtype: torch.dtype,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return implementation("add_layer_norm", "backward", new_residual)(
        grad_y,
        grad_residual,
        new_residual,
        weight,
        bias,
        mean,
        rstd,
        x_dtype,
        residual_dtype,
        dropout_p,
        seed,
    )


def _add_layer_norm_backward_fake(
    grad_y, grad_residual, new_residual, weight, bias, mean, rstd, x_dtype, residual_dtype, dropout_p, seed
):
    dx = new_residual.new_empty(new_residual.shape, dtype=x_dtype)
    dresidual = new_residual.new_empty(new_residual.shape, dtype=residual_dtype)
    return dx, dresidual, _like(weight), _like(bias)


def _add_layer_norm_save(ctx, inputs, outputs):
    x, residual, weight, bias, _, ctx.dropout_p, seed = inputs
    _, new_residual, mean, rstd = outputs
    ctx.dtypes = (x.dtype, residual.dtype)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(new_residual, weight, bias, mean, rstd, seed)


def _add_layer_norm_gradients(ctx, call_backward, grad_y, grad_residual, *_):
    if grad_y is None and grad_residual is None:
        return (None,) * 7
    new_residual, weight, bias, mean, rstd, seed = ctx.saved_tensors
    dx, dresidual, dweight, dbias = call_backward(
        grad_y, grad_residual, new_residual, weight, bias, mean, rstd, *ctx.dtypes, ctx.dropout_p, seed
    )
    return dx, dresidual, dweight, optional(dbias), None, None, None


_add_layer_norm = make_operator(
    "add_layer_norm",
    forward=_add_layer_norm_forward,
    forward_fake=_add_layer_norm_forward_fake,
    backward=_add_layer_norm_backward,
    backward_fake=_add_layer_norm_backward_fake,
    save=_add_layer_norm_save,
    gradients=_add_layer_norm_gradients,
)


# --- layer_norm_gelu


def _layer_norm_gelu_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, approximate: str
) -> tuple[Tensor, Tensor, Tensor]:
    return implementation("layer_norm_gelu", "forward", x)(x, weight, bias, eps, approximate)


def _layer_norm_gelu_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    eps: float,
    approximate: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return implementation("layer_norm_gelu", "backward", x)(grad, x, weight, bias, mean, rstd, eps, approximate)


def _layer_norm_gelu_save(ctx, inputs, outputs):
    x, weight, bias, ctx.eps, ctx.approximate = inputs
    _, mean, rstd = outputs
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, weight, bias, mean, rstd)


def _layer_norm_gelu_gradients(ctx, call_backward, grad, *_):
    if grad is None:
        return (None,) * 5
    dx, dweight, dbias = call_backward(grad, *ctx.saved_tensors, ctx.eps, ctx.approximate)
    return dx, dweight, optional(dbias), None, None


_layer_norm_gelu = make_operator(
    "layer_norm_gelu",
    forward=_layer_norm_gelu_forward,
    forward_fake=lambda x, weight, bias, eps, approximate: (_contiguous_like(x), *_statistics(x)),
    backward=_layer_norm_gelu_backward,
    backward_fake=lambda grad, x, weight, bias, *_: (_contiguous_like(x), _like(weight), _like(bias)),
    save=_layer_norm_gelu_save,
    gradients=_layer_norm_gelu_gradients,
)


# --- gelu_layer_norm


def _gelu_layer_norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, linear_bias: Tensor | None, eps: float, approximate: str
) -> tuple[Tensor, Tensor, Tensor]:
    return implementation("gelu_layer_norm", "forward", x)(x, weight, bias, linear_bias, eps, approximate)


def _gelu_layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    linear_bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    approximate: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    backward = implementation("gelu_layer_norm", "backward", x)
    return backward(grad, x, weight, bias, linear_bias, mean, rstd, approximate)


def _gelu_layer_norm_save(ctx, inputs, outputs):
    x, weight, bias, linear_bias, _, ctx.approximate = inputs
    _, mean, rstd = outputs
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, weight, bias, linear_bias, mean, rstd)


def _gelu_layer_norm_gradients(ctx, call_backward, grad, *_):
    if grad is None:
        return (None,) * 6
    dx, dweight, dbias, dlinear_bias = call_backward(grad, *ctx.saved_tensors, ctx.approximate)
    return dx, dweight, optional(dbias), optional(dlinear_bias), None, None


_gelu_layer_norm = make_operator(
    "gelu_layer_norm",
    forward=_gelu_layer_norm_forward,
    forward_fake=lambda x, weight, bias, linear_bias, eps, approximate: (
        _contiguous_like(x),
        *_statistics(x),
    ),
    backward=_gelu_layer_norm_backward,
    backward_fake=lambda grad, x, weight, bias, linear_bias, *_: (
        _contiguous_like(x),
        _like(weight),
        _like(bias),
        _like(linear_bias),
    ),
    save=_gelu_layer_norm_save,
    gradients=_gelu_layer_norm_gradients,
)
