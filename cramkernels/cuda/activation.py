"""Gated GELU in CUDA C++ (csrc/geglu)."""

from __future__ import annotations

import torch

from cramkernels import library
from cramkernels.cuda.arguments import DTYPES, GEGLU, PARTIAL_BYTES, multiprocessors, pointer
from cramkernels.cuda.normalization import reduce_partials

ROWS_AT_ONCE = 4  # of a CTA
COLUMNS_AT_ONCE = 256
CTAS_PER_MULTIPROCESSOR = 8


def geglu_forward(x, linear_bias, approximate: str, gate: str):
    """x [.., 2F] -> [.., F]."""
    x, linear_bias = x.contiguous(), _contiguous(linear_bias)
    width = x.shape[-1] // 2
    y = x.new_empty(*x.shape[:-1], width)
    if y.numel():
        _call("ck_geglu_forward", x, linear_bias, approximate, gate, _strips(x, None), y=y)
    return y


def geglu_backward(grad, x, linear_bias, approximate: str, gate: str):
    """Gradients of x and linear_bias."""
    grad, x, linear_bias = grad.contiguous(), x.contiguous(), _contiguous(linear_bias)
    dx = torch.empty_like(x)
    if x.numel() == 0:
        return dx, torch.empty(0) if linear_bias is None else torch.zeros_like(linear_bias)
    strips = _strips(x, linear_bias)
    partials = None if linear_bias is None else torch.empty(1, strips, x.shape[-1], device=x.device)
    _call("ck_geglu_backward", x, linear_bias, approximate, gate, strips, grad=grad, dx=dx, partials=partials)
    return dx, torch.empty(0) if linear_bias is None else reduce_partials(partials, linear_bias.dtype)[0]


def _call(name: str, x, bias, approximate, gate, strips, *, grad=None, y=None, dx=None, partials=None) -> None:
    arguments = GEGLU.pack(
        x.data_ptr(), pointer(bias), pointer(grad), pointer(y), pointer(dx), pointer(partials),
        x.numel() // x.shape[-1], x.shape[-1] // 2, DTYPES[x.dtype], DTYPES[(x if bias is None else bias).dtype],
        approximate == "tanh", gate == "first", strips,
    )  # fmt: skip
    library.call(name, arguments, x.device)


def _strips(x, bias) -> int:
    """CTAs along the rows: enough to fill the device; with a bias each writes a partial row, of which room is short."""
    width, rows = x.shape[-1] // 2, x.numel() // x.shape[-1]
    fill = -(-CTAS_PER_MULTIPROCESSOR * multiprocessors(x.device) * COLUMNS_AT_ONCE // width)
    room = 65535 if bias is None else PARTIAL_BYTES // (8 * width)
    return max(1, min(fill, -(-rows // ROWS_AT_ONCE), room))


def _contiguous(x):
    return None if x is None else x.contiguous()
