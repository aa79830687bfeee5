"""LayerNorm and its fusions in CUDA C++: outputs are allocated here, kernels and grids are chosen in csrc/norm."""

from __future__ import annotations

import torch

from cramkernels import library
from cramkernels.cuda.arguments import (
    DTYPES,
    NORM,
    OPERATIONS,
    PARTIAL_BYTES,
    REDUCE,
    multiprocessors,
    pointer,
)
from cramkernels.reference import normalization as reference
from cramkernels.reference.philox import keep_threshold

MAX_WIDTH = 8192  # longer rows go to the reference
FORWARD_CTAS = 4  # of a multiprocessor: more would load the parameters more often


def layer_norm_forward(x, weight, bias, eps: float):
    """x [.., N] -> y, mean, rstd."""
    if x.shape[-1] > MAX_WIDTH:
        return reference.layer_norm_forward(x, weight, bias, eps)
    return _forward("layer_norm", x, weight, bias, eps=eps)


def layer_norm_backward(grad, x, weight, bias, mean, rstd):
    """Gradients of x, weight, bias."""
    if x.shape[-1] > MAX_WIDTH:
        return reference.layer_norm_backward(grad, x, weight, bias, mean, rstd)
    return _backward("layer_norm", grad, x, weight, bias, mean, rstd)[:3]


def add_layer_norm_forward(x, residual, weight, bias, eps: float, dropout_p: float, seed):
    """(y, new residual, mean, rstd)."""
    if x.shape[-1] > MAX_WIDTH:
        return reference.add_layer_norm_forward(x, residual, weight, bias, eps, dropout_p, seed)
    residual = residual.to(torch.promote_types(x.dtype, residual.dtype)).contiguous()
    if DTYPES[residual.dtype] and residual.dtype != x.dtype:  # fp16 with bf16: only fp32 holds both
        residual = residual.float()
    new_residual = torch.empty_like(residual)
    y, mean, rstd = _forward(
        "add_layer_norm", x, weight, bias, eps=eps, residual=residual, new_residual=new_residual,
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
    one = dropout_p == 0.0 and x_dtype == new_residual.dtype
    dresidual = None if one else torch.empty_like(new_residual)
    if grad_residual is not None:
        grad_residual = grad_residual.to(new_residual.dtype).contiguous()
    dx, dweight, dbias, _ = _backward(
        "add_layer_norm", grad_y.to(x_dtype), new_residual, weight, bias, mean, rstd,
        grad_residual=grad_residual, dresidual=dresidual, dropout_p=dropout_p, seed=seed,
    )  # fmt: skip
    return dx, (dx if one else dresidual).to(residual_dtype), dweight, dbias


def layer_norm_gelu_forward(x, weight, bias, eps: float, approximate: str):
    """GELU(LN(x)), mean, rstd."""
    if x.shape[-1] > MAX_WIDTH:
        return reference.layer_norm_gelu_forward(x, weight, bias, eps, approximate)
    return _forward("layer_norm_gelu", x, weight, bias, eps=eps, approximate=approximate)


def layer_norm_gelu_backward(grad, x, weight, bias, mean, rstd, eps: float, approximate: str):
    """Gradients of x, weight, bias."""
    if x.shape[-1] > MAX_WIDTH:
        return reference.layer_norm_gelu_backward(grad, x, weight, bias, mean, rstd, eps, approximate)
    return _backward("layer_norm_gelu", grad, x, weight, bias, mean, rstd, approximate=approximate)[:3]


def gelu_layer_norm_forward(x, weight, bias, linear_bias, eps: float, approximate: str):
    """LN(GELU(x + linear_bias)), mean, rstd."""
    if x.shape[-1] > MAX_WIDTH:
        return reference.gelu_layer_norm_forward(x, weight, bias, linear_bias, eps, approximate)
    return _forward("gelu_layer_norm", x, weight, bias, linear_bias, eps=eps, approximate=approximate)


def gelu_layer_norm_backward(grad, x, weight, bias, linear_bias, mean, rstd, approximate: str):
    """Gradients of x, weight, bias, linear_bias."""
    if x.shape[-1] > MAX_WIDTH:
        return reference.gelu_layer_norm_backward(grad, x, weight, bias, linear_bias, mean, rstd, approximate)
    return _backward("gelu_layer_norm", grad, x, weight, bias, mean, rstd, linear_bias, approximate=approximate)


def _forward(
    op: str, x, weight, bias, linear_bias=None, *, eps, residual=None, new_residual=None,
    approximate="none", dropout_p=0.0, seed=None,
):  # fmt: skip
    x = x.contiguous()
    width = x.shape[-1]
    rows = x.numel() // width
    y = torch.empty_like(x)
    device = x.device
    mean = torch.empty(rows, dtype=torch.float32, device=device)
    rstd = torch.empty_like(mean)
    if rows == 0:
        return y, mean, rstd
    weight, bias, linear_bias = _of_one_dtype(weight, bias, linear_bias)
    arguments = NORM.pack(
        x.data_ptr(), pointer(residual), weight.data_ptr(), pointer(bias), pointer(linear_bias), 0, 0,
        pointer(seed), y.data_ptr(), pointer(new_residual), 0, 0,
        mean.data_ptr(), rstd.data_ptr(), 0,
        rows, width, OPERATIONS[op], DTYPES[x.dtype], DTYPES[(x if residual is None else residual).dtype],
        DTYPES[weight.dtype], approximate == "tanh", FORWARD_CTAS * multiprocessors(device), 0,
        eps, 1.0 / (1.0 - dropout_p), keep_threshold(dropout_p), 0,
    )  # fmt: skip
    library.call("ck_norm_forward", arguments, device)
    return y, mean, rstd


def _backward(
    op: str, grad, x, weight, bias, mean, rstd, linear_bias=None, *, grad_residual=None, dresidual=None,
    approximate="none", dropout_p=0.0, seed=None,
):  # fmt: skip
    """Gradients of x (of grad's dtype), weight, bias, linear_bias; empty where there is no parameter."""
    grad, x = grad.contiguous(), x.contiguous()
    width = x.shape[-1]
    rows = x.numel() // width
    dx = torch.empty_like(grad)
    parameters = [p for p in (weight, bias, linear_bias) if p is not None]
    if rows == 0:
        return dx, *(torch.empty(0) if p is None else torch.zeros_like(p) for p in (weight, bias, linear_bias))
    ctas = partial_rows(rows, width, len(parameters), x.device)
    partials = torch.empty(len(parameters), ctas, width, dtype=torch.float32, device=x.device)
    weight_, bias_, linear_bias_ = _of_one_dtype(weight, bias, linear_bias)
    arguments = NORM.pack(
        x.data_ptr(), 0, weight_.data_ptr(), pointer(bias_), pointer(linear_bias_), grad.data_ptr(),
        pointer(grad_residual), pointer(seed), 0, 0, dx.data_ptr(), pointer(dresidual),
        mean.data_ptr(), rstd.data_ptr(), partials.data_ptr(),
        rows, width, OPERATIONS[op], DTYPES[grad.dtype], DTYPES[x.dtype],
        DTYPES[weight_.dtype], approximate == "tanh", ctas, 0,
        0.0, 1.0 / (1.0 - dropout_p), keep_threshold(dropout_p), 0,
    )  # fmt: skip
    library.call("ck_norm_backward", arguments, x.device)
    gradients = iter(reduce_partials(partials, weight_.dtype))
    return dx, *(torch.empty(0) if p is None else next(gradients).to(p.dtype) for p in (weight, bias, linear_bias))


def partial_rows(rows: int, width: int, parameters: int, device: torch.device) -> int:
    """CTAs of a backward: one fills a multiprocessor; no more than there are rows for, or room for partial rows."""
    rows_of_cta = 4 if width <= 1024 else 1  # at least: with fewer the partial rows would cost as much as the rows
    room = PARTIAL_BYTES // (4 * width * parameters)
    return max(1, min(multiprocessors(device), -(-rows // rows_of_cta), room))


def reduce_partials(partials: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Sums partials [P, ctas, N] over the CTAs in their order -> P tensors [N]."""
    count, ctas, width = partials.shape
    sums = [torch.empty(width, dtype=dtype, device=partials.device) for _ in range(count)]
    pointers = [s.data_ptr() for s in sums] + [0] * (3 - count)
    library.call(
        "ck_norm_reduce",
        REDUCE.pack(partials.data_ptr(), *pointers, count, ctas, width, DTYPES[dtype]),
        partials.device,
    )
    return sums


def _of_one_dtype(*parameters):
    """The kernels read all parameters in one dtype; fp32 holds any mixture."""
    first = parameters[0].dtype
    for p in parameters:
        if p is not None and (p.dtype != first or not p.is_contiguous()):
            dtype = first if all(q is None or q.dtype == first for q in parameters) else torch.float32
            return [None if q is None else q.to(dtype).contiguous() for q in parameters]
    return parameters
