"""The matrix products around the loss kernels of a GPU: chunks of rows, slices of the vocabulary, sums in fp32.

Both GPU backends share this; each brings its own ``Kernels``. In "chunked" mode the logits of a chunk of rows are made
by a product into one buffer, overwritten by their gradient in one pass, and multiplied into the gradients. In
"recompute" mode (16-bit hidden states) the forward's kernel keeps logits in registers; the backward's writes the
gradient of a slice of the vocabulary, a few megabytes, which two products consume. fp32 hidden states, for which the
tensor cores are not exact enough, are recomputed chunk by chunk. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Part = tuple[int, int]  # first, count

HALF = (torch.float16, torch.bfloat16)
ROW_BYTES = 128  # rows of the buffer start at multiples of this, whatever the vocabulary
SLICE_BYTES = 16 << 20  # of the buffer of "recompute", at most: wide enough for the products' full rate
SLICE_COLUMNS = 128  # in multiples of this
PARTIAL_BYTES = 4 << 20  # of the sums over parts of the vocabulary, at most


@dataclass
class Problem:
    """One loss: inputs, options, and what is found out about each row."""

    hidden: Tensor
    weight: Tensor  # of hidden's dtype
    labels: Tensor
    bias: Tensor | None
    ignore_index: int
    z_loss: float
    label_smoothing: float
    softcap: float | None
    grad_scale: Tensor | None  # an fp32 scalar
    lse: Tensor  # [M]
    stats: Tensor  # [3, M]: loss, z term, hit
    share: Tensor  # scalar: grad_scale / counted rows
    num_tokens: Tensor  # scalar: counted rows


class Kernels(NamedTuple):
    """What a backend has to bring."""

    count: Callable  # (problem): fills share and num_tokens
    rows: Callable  # (problem, buffer, first, rows, write): lse and stats of a chunk; logits become their gradient
    tiles: Callable  # (problem): lse and stats of all rows, without logits in memory
    slice: Callable  # (problem, buffer, first, rows, first_column, columns): gradient of a slice of the logits
    finish: Callable  # (problem) -> loss, z_loss, num_correct


def forward(
    kernels: Kernels, hidden, weight, labels, bias, ignore_index, z_loss, label_smoothing, softcap, logits_bytes,
    grad_scale, recompute: bool, want_hidden: bool, want_weight: bool, want_bias: bool,
):  # fmt: skip
    """As ``mlm_loss_forward`` of the reference."""
    wanted = (False, False, False) if recompute else (want_hidden, want_weight, want_bias)
    problem = _problem(hidden, weight, labels, bias, ignore_index, z_loss, label_smoothing, softcap, grad_scale)
    gradients = Gradients(hidden, weight, bias, wanted, grad_scale)
    if not hidden.shape[0]:
        zeros = [torch.zeros((), dtype=dtype, device=hidden.device) for dtype in (torch.float32, torch.int64)]
        return zeros[0], zeros[0].clone(), zeros[1], zeros[1].clone(), problem.lse, *gradients.finished()
    kernels.count(problem)
    if recompute and hidden.dtype in HALF:
        kernels.tiles(problem)
    else:
        _by_rows(kernels, problem, gradients, logits_bytes)
    loss, z_term, hits = kernels.finish(problem)
    return loss, z_term, problem.num_tokens, hits, problem.lse, *gradients.finished()


def backward(
    kernels: Kernels, hidden, weight, labels, bias, lse, ignore_index, z_loss, label_smoothing, softcap, logits_bytes,
    grad_scale, want_hidden: bool, want_weight: bool, want_bias: bool,
):  # fmt: skip
    """As ``mlm_loss_backward`` of the reference."""
    problem = _problem(hidden, weight, labels, bias, ignore_index, z_loss, label_smoothing, softcap, grad_scale)
    gradients = Gradients(hidden, weight, bias, (want_hidden, want_weight, want_bias), grad_scale)
    if hidden.shape[0]:
        kernels.count(problem)
        if hidden.dtype in HALF:
            problem.lse = lse
            _by_slices(kernels, problem, gradients, min(logits_bytes, SLICE_BYTES))
        else:
            _by_rows(kernels, problem, gradients, logits_bytes)
    return tuple(gradients.finished())


def _problem(hidden, weight, labels, bias, ignore_index, z_loss, label_smoothing, softcap, grad_scale) -> Problem:
    rows, device = hidden.shape[0], hidden.device
    if grad_scale is not None:
        grad_scale = grad_scale.float() if hidden.dtype in HALF else None
    if bias is not None:
        bias = bias.contiguous()
        if bias.storage_offset() * bias.itemsize % 16:
            bias = bias.clone()
    return Problem(
        hidden.contiguous(), weight.to(hidden.dtype).contiguous(), labels.contiguous(), bias,
        ignore_index, float(z_loss), float(label_smoothing), softcap and float(softcap), grad_scale,
        lse=torch.empty(rows, device=device), stats=torch.empty(3, rows, device=device),
        share=torch.empty((), device=device), num_tokens=torch.empty((), dtype=torch.int64, device=device),
    )  # fmt: skip


def _by_rows(kernels: Kernels, problem: Problem, gradients: Gradients, logits_bytes: int) -> None:
    """Chunks of rows; their logits are multiplied out, and overwritten by their gradient if any is wanted."""
    total, vocabulary = problem.hidden.shape[0], problem.weight.shape[0]
    stride = _round_up(vocabulary, ROW_BYTES // problem.hidden.itemsize)
    room = max(logits_bytes // (stride * problem.hidden.itemsize), 1)
    rows = -(-total // -(-total // room))  # even chunks
    buffer = torch.empty(rows, stride, dtype=problem.hidden.dtype, device=problem.hidden.device)
    for first in range(0, total, rows):
        count = min(rows, total - first)
        _logits(problem, first, buffer.narrow(0, 0, count).narrow(1, 0, vocabulary))
        kernels.rows(problem, buffer, first, count, any(gradients.wanted))
        gradients.add(problem, buffer, (first, count), (0, vocabulary))


def _logits(problem: Problem, first: int, out: Tensor) -> None:
    torch.mm(problem.hidden.narrow(0, first, out.shape[0]), problem.weight.t(), out=out)


def _by_slices(kernels: Kernels, problem: Problem, gradients: Gradients, tile_bytes: int) -> None:
    """Slices of the vocabulary, of all rows unless there are very many; the gradient of each out of hidden and lse."""
    total, vocabulary = problem.hidden.shape[0], problem.weight.shape[0]
    itemsize = problem.hidden.itemsize
    rows = min(total, max(tile_bytes // (SLICE_COLUMNS * itemsize), 1))
    columns = max(tile_bytes // (rows * itemsize) // SLICE_COLUMNS, 1) * SLICE_COLUMNS
    columns = min(columns, _round_up(vocabulary, SLICE_COLUMNS))
    buffer = torch.empty(rows, columns, dtype=problem.hidden.dtype, device=problem.hidden.device)
    for start in range(0, vocabulary, columns):
        width = min(columns, vocabulary - start)
        for first in range(0, total, rows):
            count = min(rows, total - first)
            kernels.slice(problem, buffer, first, count, start, width)
            gradients.add(problem, buffer, (first, count), (start, width))


class Gradients:
    """Gradients of hidden, weight and bias, added up over parts of the logits: in fp32 where there are several."""

    def __init__(self, hidden, weight, bias, wanted: tuple[bool, bool, bool], grad_scale):
        self.wanted = wanted
        # With a scale they stay in fp32 until it is taken out
        scaled = grad_scale is not None and hidden.dtype in HALF
        self.likes = [x if flag else None for x, flag in zip((hidden, weight, bias), wanted, strict=True)]
        self.dtypes = [None if x is None else torch.float32 if scaled else x.dtype for x in self.likes]
        self.sums: list[Tensor | None] = [None, None, None]
        self.device, self.started = hidden.device, [set(), set()]

    def add(self, problem: Problem, buffer: Tensor, rows: Part, columns: Part) -> None:
        """Add what comes from these rows and columns of the logits, whose gradient is at the buffer's beginning."""
        dlogits = buffer.narrow(0, 0, rows[1]).narrow(1, 0, columns[1])
        every_row = rows[1] == problem.hidden.shape[0]
        every_column = columns[1] == problem.weight.shape[0]
        if self.wanted[0]:
            self._add(0, dlogits, problem.weight.narrow(0, *columns), rows, whole=every_column)
        if self.wanted[1]:
            self._add(1, dlogits.t(), problem.hidden.narrow(0, *rows), columns, whole=every_row)
        if self.wanted[2]:
            if self.sums[2] is None:
                self.sums[2] = torch.zeros_like(self.likes[2], dtype=torch.float32)
            self.sums[2].narrow(0, *columns).add_(dlogits.sum(0, dtype=torch.float32))

    def _add(self, which: int, a: Tensor, b: Tensor, where: Part, whole: bool) -> None:
        """Rows ``where`` of a gradient: a @ b is all there is to them if ``whole``."""
        if self.sums[which] is None:
            dtype = self.dtypes[which] if whole else torch.float32
            self.sums[which] = torch.empty_like(self.likes[which], dtype=dtype, memory_format=torch.contiguous_format)
        again = where in self.started[which]
        self.started[which].add(where)
        multiply(a, b, self.sums[which].narrow(0, *where), again)

    def finished(self) -> Iterator[Tensor]:
        """In their final dtypes; empty where not wanted, zero where there were no rows."""
        for like, dtype, total in zip(self.likes, self.dtypes, self.sums, strict=True):
            if like is None:
                yield torch.empty(0, device=self.device)
            elif total is None:
                yield torch.zeros_like(like, dtype=dtype, memory_format=torch.contiguous_format)
            else:
                yield total.to(dtype)


def multiply(a: Tensor, b: Tensor, out: Tensor, add: bool) -> None:
    """out = a @ b, or out += a @ b. Sums are fp32; with an fp32 ``out`` nothing is rounded to 16 bit on the way.

    PyTorch before 2.8 has no product of 16-bit matrices with an fp32 result: there each product is rounded once.
    """
    if out.dtype == a.dtype:
        out.addmm_(a, b) if add else torch.mm(a, b, out=out)
    elif a.device.type == "cuda" and hasattr(torch.ops.aten.mm, "dtype_out"):
        if add:
            torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
        else:
            torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        product = torch.mm(a.float(), b.float()) if a.device.type == "cpu" else torch.mm(a, b)
        out.add_(product) if add else out.copy_(product)


def vocabulary_splits(rows: int, vocabulary: int, programs: int, tile: tuple[int, int]) -> int:
    """Parts of the vocabulary that go to different programs of a forward by tiles: enough of them for the device."""
    row_tiles, tiles = -(-rows // tile[0]), -(-vocabulary // tile[1])
    splits = max(1, min(tiles, programs // row_tiles, PARTIAL_BYTES // (12 * rows)))
    return -(-tiles // -(-tiles // splits))  # even, and none empty


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
