"""The masked-LM loss over the masked rows alone: decoder, cross-entropy and their gradients in one operation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cramkernels.checks import check_integers, check_parameter_dtype, check_tensor, check_vector
from cramkernels.dispatch import implementation
from cramkernels.operator import autocast_cast, make_operator

MODES = ("chunked", "recompute")


class MLMLoss(NamedTuple):
    """Device scalars. ``loss`` is the mean over counted rows and includes the z term; the others are detached."""

    loss: torch.Tensor
    z_loss: torch.Tensor
    num_tokens: torch.Tensor
    num_correct: torch.Tensor


def mlm_loss(
    hidden_TN: Tensor,
    weight_VN: Tensor,
    labels_M: Tensor,
    *,
    positions_M: Tensor | None = None,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    logits_bytes: int = 256 << 20,
    grad_scale: float | Tensor | None = None,
    mode: str = "chunked",
) -> MLMLoss:
    """Cross-entropy of ``hidden_TN[positions_M] @ weight_VN.T + bias`` against the labels; logits never exist whole.

    Args:
        hidden_TN: [T, N], or [M, N] without positions. Under autocast cast to the autocast dtype.
        weight_VN: the decoder [V, N], of the dtype of hidden or fp32.
        labels_M: int64 [M], in [0, V); rows with ``ignore_index`` count for nothing. Any other label is an error on a
            CPU, and makes the loss NaN on a GPU.
        positions_M: int64 [M], rows of hidden_TN; duplicates are legal.
        bias: decoder bias [V].
        z_loss: factor on the mean of lse^2. label_smoothing: in [0, 1). softcap: c in c * tanh(logits / c).
        logits_bytes: upper bound on the logits held at a time (at least one row).
        grad_scale: with 16-bit hidden states, the factor that the incoming gradient will carry (a loss scaler's
            scale): a positive number or a scalar on the device. Gradients are computed in the forward; scaled by it,
            small ones survive the 16-bit format.
        mode: "chunked" computes gradients in the forward; "recompute" keeps lse alone and recomputes logits in the
            backward.

    Returns:
        loss, z_loss, num_tokens (counted rows), num_correct (rows whose label has the highest logit). With no counted
        row the loss is 0 and so are the gradients.

    Raises:
        ValueError: a wrong shape, dtype, device or value.
    """
    _check(hidden_TN, weight_VN, labels_M, positions_M, bias)
    _check_options(z_loss, label_smoothing, softcap, logits_bytes, mode)
    grad_scale = _scale(grad_scale, hidden_TN)
    hidden_TN = autocast_cast(hidden_TN)
    hidden_MN = hidden_TN if positions_M is None else _gather_rows(hidden_TN, positions_M)
    want = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (hidden_MN, weight_VN, bias)]
    outputs = _mlm_loss(
        hidden_MN, weight_VN, labels_M, bias, ignore_index, z_loss, label_smoothing, softcap, logits_bytes,
        grad_scale, mode == "recompute", *want,
    )  # fmt: skip
    return MLMLoss(*outputs[:4])


def _check(hidden: Tensor, weight: Tensor, labels: Tensor, positions: Tensor | None, bias: Tensor | None) -> None:
    check_tensor("hidden_TN", hidden, dims=2)
    check_tensor("weight_VN", weight, dims=2, like=hidden)
    check_parameter_dtype("weight_VN", weight, autocast_cast(hidden[:0]))
    if weight.shape[1] != hidden.shape[1] or not weight.shape[0]:
        raise ValueError(f"weight_VN: got shape {tuple(weight.shape)}, want [V, {hidden.shape[1]}]")
    check_vector("bias", bias, weight.shape[0], autocast_cast(hidden[:0]))
    check_integers("labels_M", labels, hidden, (torch.int64,))
    if positions is not None:
        check_integers("positions_M", positions, hidden, (torch.int64, torch.int32))
    rows = hidden.shape[0] if positions is None else positions.shape[0]
    if labels.shape[0] != rows:
        raise ValueError(f"labels_M: got {labels.shape[0]} labels, want {rows}")


def _scale(grad_scale: float | Tensor | None, hidden: Tensor) -> Tensor | None:
    """As a scalar on the device of ``hidden``."""
    if isinstance(grad_scale, torch.Tensor):
        if grad_scale.numel() != 1 or not grad_scale.is_floating_point() or grad_scale.device != hidden.device:
            raise ValueError(
                f"grad_scale: got {grad_scale.dtype} of shape {tuple(grad_scale.shape)} on {grad_scale.device}, "
                f"want a number or a float scalar on {hidden.device}"
            )
        return grad_scale.detach().reshape(())
    if grad_scale is None:
        return None
    if not 0 < grad_scale < float("inf"):
        raise ValueError(f"grad_scale: got {grad_scale}, want a positive number")
    return torch.full((), float(grad_scale), device=hidden.device)


def _check_options(z_loss: float, label_smoothing: float, softcap: float | None, logits_bytes: int, mode: str) -> None:
    if not z_loss >= 0:  # NaN is not
        raise ValueError(f"z_loss: got {z_loss}, want a number >= 0")
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing: got {label_smoothing}, want a number in [0, 1)")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap: got {softcap}, want a positive number or None")
    if logits_bytes <= 0:
        raise ValueError(f"logits_bytes: got {logits_bytes}, want a positive number")
    if mode not in MODES:
        raise ValueError(f"mode: got {mode!r}, want 'chunked' or 'recompute'")


# Gathering in a kernel of the loss would not pay: it copies M x N numbers, where the logits are M x V. The backward
# adds rows of equal positions in their order, which index_select's own, by atomics on a GPU, does not.


def _gather(x_TN: Tensor, positions_M: Tensor) -> Tensor:
    return x_TN.index_select(0, positions_M)


def _gather_fake(x_TN, positions_M):
    return x_TN.new_empty(positions_M.shape[0], x_TN.shape[1])


def _scatter(grad_MN: Tensor, positions_M: Tensor, rows: int) -> Tensor:
    zeros_TN = grad_MN.new_zeros(rows, grad_MN.shape[1])
    if grad_MN.device.type == "cpu":
        return zeros_TN.index_add_(0, positions_M, grad_MN)
    return zeros_TN.index_put_((positions_M.long(),), grad_MN, accumulate=True)  # sorts


def _scatter_fake(grad_MN, positions_M, rows):
    return grad_MN.new_empty(rows, grad_MN.shape[1])


def _save_positions(ctx, inputs, output):
    ctx.rows = inputs[0].shape[0]
    ctx.save_for_backward(inputs[1])


def _gather_gradients(ctx, call_backward, grad):
    return None if grad is None else call_backward(grad, ctx.saved_tensors[0], ctx.rows), None


_gather_rows = make_operator(
    "gather_rows",
    forward=_gather,
    forward_fake=_gather_fake,
    backward=_scatter,
    backward_fake=_scatter_fake,
    save=_save_positions,
    gradients=_gather_gradients,
)


def _forward(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    z_loss: float,
    label_smoothing: float,
    softcap: float | None,
    logits_bytes: int,
    grad_scale: Tensor | None,
    recompute: bool,
    want_hidden: bool,
    want_weight: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return implementation("mlm_loss", "forward", hidden)(
        hidden, weight, labels, bias, ignore_index, z_loss, label_smoothing, softcap, logits_bytes,
        grad_scale, recompute, want_hidden, want_weight, want_bias,
    )  # fmt: skip


def _gradient_dtype(x: Tensor, hidden: Tensor, grad_scale: Tensor | None) -> torch.dtype:
    """Gradients that carry a scale stay in fp32 until the scale is taken out."""
    if grad_scale is not None and hidden.dtype in (torch.float16, torch.bfloat16):
        return torch.float32
    return x.dtype


def _empty_gradient(x: Tensor | None, hidden: Tensor, grad_scale: Tensor | None, wanted: bool) -> Tensor:
    if not wanted or x is None:
        return hidden.new_empty(0, dtype=torch.float32)
    return torch.empty_like(x, dtype=_gradient_dtype(x, hidden, grad_scale), memory_format=torch.contiguous_format)


def _forward_fake(
    hidden, weight, labels, bias, ignore_index, z_loss, label_smoothing, softcap, logits_bytes,
    grad_scale, recompute, want_hidden, want_weight, want_bias,
):  # fmt: skip
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    scalars = [hidden.new_empty((), dtype=dtype) for dtype in (wide, wide, torch.int64, torch.int64)]
    wanted = (want_hidden, want_weight, want_bias)
    gradients = [
        _empty_gradient(x, hidden, grad_scale, flag and not recompute)
        for x, flag in zip((hidden, weight, bias), wanted, strict=True)
    ]
    return *scalars, hidden.new_empty(hidden.shape[0], dtype=wide), *gradients


def _backward(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    ignore_index: int,
    z_loss: float,
    label_smoothing: float,
    softcap: float | None,
    logits_bytes: int,
    grad_scale: Tensor | None,
    want_hidden: bool,
    want_weight: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return implementation("mlm_loss", "backward", hidden)(
        hidden, weight, labels, bias, lse, ignore_index, z_loss, label_smoothing, softcap, logits_bytes,
        grad_scale, want_hidden, want_weight, want_bias,
    )  # fmt: skip


def _backward_fake(
    hidden, weight, labels, bias, lse, ignore_index, z_loss, label_smoothing, softcap, logits_bytes,
    grad_scale, want_hidden, want_weight, want_bias,
):  # fmt: skip
    parameters = zip((hidden, weight, bias), (want_hidden, want_weight, want_bias), strict=True)
    return tuple(_empty_gradient(x, hidden, grad_scale, flag) for x, flag in parameters)


def _save(ctx, inputs, outputs):
    hidden, weight, labels, bias, *options, grad_scale, ctx.recompute, want_hidden, want_weight, want_bias = inputs
    ctx.options, ctx.wanted = options, (want_hidden, want_weight, want_bias)
    ctx.dtypes = tuple(None if x is None else x.dtype for x in (hidden, weight, bias))
    ctx.scaled = grad_scale is not None and hidden.dtype in (torch.float16, torch.bfloat16)
    ctx.mark_non_differentiable(*outputs[1:])
    if ctx.recompute:
        ctx.save_for_backward(grad_scale, hidden, weight, labels, bias, outputs[4])
    else:
        ctx.save_for_backward(grad_scale, *outputs[5:])


def _gradients(ctx, call_backward, grad, *_):
    if grad is None:
        return (None,) * 14
    grad_scale, *saved = ctx.saved_tensors
    if ctx.recompute:
        saved = call_backward(*saved, *ctx.options, grad_scale, *ctx.wanted)
    factor = grad / grad_scale if ctx.scaled else grad
    # in their place, unless those made in the forward may be asked for again
    times = torch.Tensor.mul_ if ctx.recompute or _is_last_use(ctx) else torch.mul
    dhidden, dweight, dbias = (
        times(gradient, factor).to(dtype) if wanted else None
        for gradient, dtype, wanted in zip(saved, ctx.dtypes, ctx.wanted, strict=True)
    )
    return dhidden, dweight, None, dbias, *(None,) * 10


def _is_last_use(ctx) -> bool:
    """Whether what was saved is asked for no more: an eager backward without ``retain_graph=True``."""
    # a release of PyTorch that cannot tell: a copy is always right
    is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
    return ctx.is_eager and not is_kept()


_mlm_loss = make_operator(
    "mlm_loss",
    forward=_forward,
    forward_fake=_forward_fake,
    backward=_backward,
    backward_fake=_backward_fake,
    save=_save,
    gradients=_gradients,
)
