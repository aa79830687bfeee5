"""The masked-LM loss in Triton: products by torch (cramkernels/decoder.py), the rest by these kernels.

csrc/loss/row.cuh has the formulas. A row of at most MAX_HELD logits is held in registers, so that each is read once and
written once; a longer one is read twice. Without logits in memory: tiles of hidden times decoder end in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cramkernels import decoder
from cramkernels.decoder import Kernels, Problem
from cramkernels.triton.launch import OPTIONS, multiprocessors, on_device

MAX_HELD = 32768  # 32 to a thread
LONG_BLOCK = 8192
TILE, DEPTH = (256, 128), 32  # rows and columns of a tile, hidden columns of one step
PROGRAMS_PER_MULTIPROCESSOR = 1
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _exp(x):
    """exp(x), where exp(0) is 1 to the bit."""
    return tl.exp2(x * LOG2_E)


@triton.jit
def _finish_logits(x, bias_ptr, columns, inside, softcap, BIAS: tl.constexpr, SOFTCAP: tl.constexpr):
    """Bias and softcap; -inf outside."""
    if BIAS:
        x += tl.load(bias_ptr + columns, inside, 0.0).to(tl.float32)
    if SOFTCAP:
        share = x / softcap
        e = _exp(-2.0 * tl.abs(share))
        tanh = (1.0 - e) / (1.0 + e)
        x = softcap * tl.where(share < 0.0, -tanh, tanh)
    return tl.where(inside, x, float("-inf"))


@triton.jit
def _gradient(x, shift, inverse_sum, lse, is_target, share, z, smoothing, softcap, vocabulary, SOFTCAP: tl.constexpr):
    """What logits turn into; exp(x - shift) * inverse_sum is their softmax."""
    d = _exp(x - shift) * (inverse_sum * share * (1.0 + 2.0 * z * lse)) - share * smoothing / vocabulary
    d = tl.where(is_target, d - share * (1.0 - smoothing), d)
    if SOFTCAP:
        part = x / softcap
        d *= 1.0 - part * part
    return d


@triton.jit
def _put_row(
    lse_ptr, stats_ptr, row, total, inside, counted, maximum, exponentials, logits, target, z, smoothing, vocabulary
):  # fmt: skip
    """lse and stats of one row or a vector of rows; zero for those that do not count. Returns lse."""
    log_sum = tl.log(exponentials)
    lse = maximum + log_sum
    loss = (maximum - target) + log_sum  # lse - target would carry the rounding of a large lse
    loss += smoothing * (((maximum - logits / vocabulary) + log_sum) - loss)
    tl.store(lse_ptr + row, tl.where(counted, lse, 0.0), inside)
    tl.store(stats_ptr + row, tl.where(counted, loss, 0.0), inside)
    tl.store(stats_ptr + total + row, tl.where(counted, z * lse * lse, 0.0), inside)
    tl.store(stats_ptr + 2 * total + row, tl.where(counted & (target == maximum), 1.0, 0.0), inside)
    return lse


@triton.jit
def _known(label, target, vocabulary):
    """A label outside the vocabulary makes the loss NaN."""
    return tl.where((label >= 0) & (label < vocabulary), target, float("nan"))


@triton.jit(do_not_specialize=["total"])
def _count_kernel(labels_ptr, scale_ptr, share_ptr, num_tokens_ptr, total, ignore_index, SCALED: tl.constexpr,
                  BLOCK: tl.constexpr):  # fmt: skip
    count = tl.zeros([BLOCK], tl.int32)
    for first in range(0, total, BLOCK):
        row = first + tl.arange(0, BLOCK)
        count += (tl.load(labels_ptr + row, row < total, ignore_index) != ignore_index).to(tl.int32)
    tokens = tl.sum(count, 0)
    scale = tl.load(scale_ptr) if SCALED else 1.0
    tl.store(num_tokens_ptr, tokens.to(tl.int64))
    tl.store(share_ptr, tl.where(tokens > 0, scale / tl.maximum(tokens, 1).to(tl.float32), 0.0))


@triton.jit(do_not_specialize=["total"])
def _finish_kernel(stats_ptr, num_tokens_ptr, loss_ptr, z_loss_ptr, num_correct_ptr, total, BLOCK: tl.constexpr):
    loss = tl.zeros([BLOCK], tl.float32)
    z = tl.zeros([BLOCK], tl.float32)
    hits = tl.zeros([BLOCK], tl.float32)
    for first in range(0, total, BLOCK):
        row = first + tl.arange(0, BLOCK)
        inside = row < total
        loss += tl.load(stats_ptr + row, inside, 0.0)
        z += tl.load(stats_ptr + total + row, inside, 0.0)
        hits += tl.load(stats_ptr + 2 * total + row, inside, 0.0)
    tokens = tl.maximum(tl.load(num_tokens_ptr), 1).to(tl.float32)
    z_loss = tl.sum(z, 0) / tokens
    tl.store(loss_ptr, tl.sum(loss, 0) / tokens + z_loss)
    tl.store(z_loss_ptr, z_loss)
    tl.store(num_correct_ptr, tl.sum(hits, 0).to(tl.int64))


@triton.jit(do_not_specialize=["total", "first"])
def _rows_kernel(
    logits_ptr, bias_ptr, labels_ptr, share_ptr, lse_ptr, stats_ptr, total, first, stride, vocabulary, ignore_index,
    z, smoothing, softcap, BIAS: tl.constexpr, SOFTCAP: tl.constexpr, WRITE: tl.constexpr, HELD: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = first + tl.program_id(0)
    logits_ptr += tl.program_id(0).to(tl.int64) * stride
    label = tl.load(labels_ptr + row)
    columns = tl.arange(0, BLOCK)
    if label == ignore_index:
        _put_row(lse_ptr, stats_ptr, row, total, True, False, 0.0, 1.0, 0.0, 0.0, z, smoothing, vocabulary)
        if WRITE:
            for start in range(0, vocabulary, BLOCK):
                inside = start + columns < vocabulary
                tl.store(logits_ptr + start + columns, tl.zeros([BLOCK], logits_ptr.dtype.element_ty), inside)
    elif HELD:
        inside = columns < vocabulary
        raw = tl.load(logits_ptr + columns, inside, 0.0)
        x = _finish_logits(raw.to(tl.float32), bias_ptr, columns, inside, softcap, BIAS, SOFTCAP)
        maximum = tl.max(x, 0)
        exponentials = tl.sum(_exp(x - maximum), 0)
        logits = tl.sum(tl.where(inside, x, 0.0), 0)
        target = _known(label, tl.max(tl.where(columns == label, x, float("-inf")), 0), vocabulary)
        lse = _put_row(lse_ptr, stats_ptr, row, total, True, True, maximum, exponentials, logits, target, z, smoothing,
                       vocabulary)  # fmt: skip
        if WRITE:
            d = _gradient(x, maximum, 1.0 / exponentials, lse, columns == label, tl.load(share_ptr), z, smoothing,
                          softcap, vocabulary, SOFTCAP)  # fmt: skip
            tl.store(logits_ptr + columns, d.to(logits_ptr.dtype.element_ty), inside)
    else:
        maxima = tl.full([BLOCK], float("-inf"), tl.float32)
        sums = tl.zeros([BLOCK], tl.float32)
        all_logits = tl.zeros([BLOCK], tl.float32)
        targets = tl.full([BLOCK], float("-inf"), tl.float32)
        for start in range(0, vocabulary, BLOCK):
            at = start + columns
            inside = at < vocabulary
            raw = tl.load(logits_ptr + at, inside, 0.0)
            x = _finish_logits(raw.to(tl.float32), bias_ptr, at, inside, softcap, BIAS, SOFTCAP)
            higher = tl.maximum(maxima, x)  # finite: the first block is whole
            sums = sums * _exp(maxima - higher) + _exp(x - higher)
            maxima = higher
            all_logits += tl.where(inside, x, 0.0)
            targets = tl.where(at == label, x, targets)
        maximum = tl.max(maxima, 0)
        exponentials = tl.sum(sums * _exp(maxima - maximum), 0)
        target = _known(label, tl.max(targets, 0), vocabulary)
        lse = _put_row(lse_ptr, stats_ptr, row, total, True, True, maximum, exponentials, tl.sum(all_logits, 0), target,
                       z, smoothing, vocabulary)  # fmt: skip
        if WRITE:
            for start in range(0, vocabulary, BLOCK):
                at = start + columns
                inside = at < vocabulary
                raw = tl.load(logits_ptr + at, inside, 0.0)
                x = _finish_logits(raw.to(tl.float32), bias_ptr, at, inside, softcap, BIAS, SOFTCAP)
                d = _gradient(x, maximum, 1.0 / exponentials, lse, at == label, tl.load(share_ptr), z, smoothing,
                              softcap, vocabulary, SOFTCAP)  # fmt: skip
                tl.store(logits_ptr + at, d.to(logits_ptr.dtype.element_ty), inside)


@triton.jit
def _product(hidden_ptr, weight_ptr, rows, columns, total, vocabulary, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
             DEPTH: tl.constexpr):  # fmt: skip
    """hidden[rows] times weight[columns] transposed, in fp32."""
    d = tl.zeros([ROWS, COLUMNS], tl.float32)
    depth = tl.arange(0, DEPTH)
    hidden_ptr += rows.to(tl.int64)[:, None] * width
    weight_ptr += columns.to(tl.int64)[:, None] * width
    for start in range(0, width, DEPTH):
        at = start + depth[None, :]
        a = tl.load(hidden_ptr + at, (rows < total)[:, None] & (at < width), 0.0)
        b = tl.load(weight_ptr + at, (columns < vocabulary)[:, None] & (at < width), 0.0)
        d = tl.dot(a, tl.trans(b), d)
    return d


@triton.jit(do_not_specialize=["total"])
def _tiles_kernel(
    hidden_ptr, weight_ptr, bias_ptr, labels_ptr, partials_ptr, targets_ptr, total, vocabulary, width, softcap,
    BIAS: tl.constexpr, SOFTCAP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    labels = tl.load(labels_ptr + rows, rows < total, -1)
    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    exponentials = tl.zeros([ROWS], tl.float32)
    logits = tl.zeros([ROWS], tl.float32)
    for start in range(tl.program_id(1) * COLUMNS, vocabulary, tl.num_programs(1) * COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = (columns < vocabulary)[None, :]
        x = _product(hidden_ptr, weight_ptr, rows, columns, total, vocabulary, width, ROWS, COLUMNS, DEPTH)
        x = _finish_logits(x, bias_ptr, columns[None, :], inside, softcap, BIAS, SOFTCAP)
        higher = tl.maximum(maximum, tl.max(x, 1))  # finite: no tile is empty
        exponentials = exponentials * _exp(maximum - higher) + tl.sum(_exp(x - higher[:, None]), 1)
        maximum = higher
        logits += tl.sum(tl.where(inside, x, 0.0), 1)
        hit = columns[None, :] == labels[:, None]
        here = (labels >= start) & (labels < start + COLUMNS) & (labels < vocabulary) & (rows < total)
        tl.store(targets_ptr + rows, tl.max(tl.where(hit, x, float("-inf")), 1), here)
    partials_ptr += tl.program_id(1).to(tl.int64) * 3 * total
    tl.store(partials_ptr + rows, maximum, rows < total)
    tl.store(partials_ptr + total + rows, exponentials, rows < total)
    tl.store(partials_ptr + 2 * total + rows, logits, rows < total)


@triton.jit(do_not_specialize=["total"])
def _combine_kernel(
    partials_ptr, targets_ptr, labels_ptr, lse_ptr, stats_ptr, total, splits, vocabulary, ignore_index, z, smoothing,
    ROWS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < total
    labels = tl.load(labels_ptr + rows, inside, ignore_index)
    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    exponentials = tl.zeros([ROWS], tl.float32)
    logits = tl.zeros([ROWS], tl.float32)
    for split in range(0, splits):
        part = partials_ptr + tl.cast(split, tl.int64) * 3 * total + rows
        other = tl.load(part, inside, 0.0)
        higher = tl.maximum(maximum, other)
        exponentials = exponentials * _exp(maximum - higher) + tl.load(part + total, inside, 1.0) * _exp(other - higher)
        maximum = higher
        logits += tl.load(part + 2 * total, inside, 0.0)
    is_written = (labels != ignore_index) & (labels >= 0) & (labels < vocabulary)
    target = _known(labels, tl.load(targets_ptr + rows, inside & is_written, 0.0), vocabulary)
    _put_row(lse_ptr, stats_ptr, rows, total, inside, labels != ignore_index, maximum, exponentials, logits, target, z,
             smoothing, vocabulary)  # fmt: skip


@triton.jit(do_not_specialize=["total", "first", "count"])
def _slice_kernel(
    out_ptr, hidden_ptr, weight_ptr, bias_ptr, labels_ptr, share_ptr, lse_ptr, total, first, count, first_column,
    stride, vocabulary, width, ignore_index, z, smoothing, softcap,
    BIAS: tl.constexpr, SOFTCAP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    local_rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    local_columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    rows, columns = first + local_rows, first_column + local_columns
    labels = tl.load(labels_ptr + rows, local_rows < count, ignore_index)
    lse = tl.load(lse_ptr + rows, local_rows < count, 0.0)[:, None]
    inside = (columns < vocabulary)[None, :]
    x = _product(hidden_ptr, weight_ptr, rows, columns, total, vocabulary, width, ROWS, COLUMNS, DEPTH)
    x = _finish_logits(x, bias_ptr, columns[None, :], inside, softcap, BIAS, SOFTCAP)
    d = _gradient(x, lse, 1.0, lse, columns[None, :] == labels[:, None], tl.load(share_ptr), z, smoothing, softcap,
                  vocabulary, SOFTCAP)  # fmt: skip
    d = tl.where((labels != ignore_index)[:, None], d, 0.0)
    at = local_rows.to(tl.int64)[:, None] * stride + local_columns[None, :]
    tl.store(out_ptr + at, d.to(out_ptr.dtype.element_ty), (local_rows < count)[:, None] & inside)


def _count(p: Problem) -> None:
    with on_device(p.hidden):
        _count_kernel[(1,)](
            p.labels, p.grad_scale, p.share, p.num_tokens, p.hidden.shape[0], p.ignore_index,
            SCALED=p.grad_scale is not None, BLOCK=1024, num_warps=8, **OPTIONS,
        )  # fmt: skip


def _rows(p: Problem, buffer, first: int, rows: int, write: bool) -> None:
    vocabulary = p.weight.shape[0]
    held = vocabulary <= MAX_HELD
    block = max(128, triton.next_power_of_2(vocabulary)) if held else LONG_BLOCK
    with on_device(p.hidden):
        _rows_kernel[(rows,)](
            buffer, p.bias, p.labels, p.share, p.lse, p.stats, p.hidden.shape[0], first, buffer.shape[1], vocabulary,
            p.ignore_index, p.z_loss, p.label_smoothing, p.softcap or 0.0, BIAS=p.bias is not None,
            SOFTCAP=p.softcap is not None, WRITE=write, HELD=held, BLOCK=block,
            num_warps=min(32, max(4, block // 1024)), **OPTIONS,
        )  # fmt: skip


def _tiles(p: Problem) -> None:
    (rows, width), vocabulary, device = p.hidden.shape, p.weight.shape[0], p.hidden.device
    splits = decoder.vocabulary_splits(rows, vocabulary, PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(device), TILE)
    partials, targets = torch.empty(splits, 3, rows, device=device), torch.empty(rows, device=device)
    with on_device(p.hidden):
        _tiles_kernel[(triton.cdiv(rows, TILE[0]), splits)](
            p.hidden, p.weight, p.bias, p.labels, partials, targets, rows, vocabulary, width, p.softcap or 0.0,
            BIAS=p.bias is not None, SOFTCAP=p.softcap is not None, ROWS=TILE[0], COLUMNS=TILE[1], DEPTH=DEPTH,
            num_warps=16, num_stages=3, **OPTIONS,
        )  # fmt: skip
        _combine_kernel[(triton.cdiv(rows, 128),)](
            partials, targets, p.labels, p.lse, p.stats, rows, splits, vocabulary, p.ignore_index, p.z_loss,
            p.label_smoothing, ROWS=128, num_warps=4, **OPTIONS,
        )  # fmt: skip


def _slice(p: Problem, buffer, first: int, rows: int, first_column: int, columns: int) -> None:
    with on_device(p.hidden):
        _slice_kernel[(triton.cdiv(columns, TILE[1]), triton.cdiv(rows, TILE[0]))](
            buffer, p.hidden, p.weight, p.bias, p.labels, p.share, p.lse, p.hidden.shape[0], first, rows, first_column,
            buffer.shape[1], p.weight.shape[0], p.hidden.shape[1], p.ignore_index, p.z_loss, p.label_smoothing,
            p.softcap or 0.0, BIAS=p.bias is not None, SOFTCAP=p.softcap is not None, ROWS=TILE[0], COLUMNS=TILE[1],
            DEPTH=DEPTH, num_warps=16, num_stages=3, **OPTIONS,
        )  # fmt: skip


def _finish(p: Problem):
    device = p.hidden.device
    loss, z_loss = torch.empty((), device=device), torch.empty((), device=device)
    num_correct = torch.empty((), dtype=torch.int64, device=device)
    with on_device(p.hidden):
        _finish_kernel[(1,)](
            p.stats, p.num_tokens, loss, z_loss, num_correct, p.hidden.shape[0], BLOCK=1024, num_warps=8, **OPTIONS
        )
    return loss, z_loss, num_correct


KERNELS = Kernels(_count, _rows, _tiles, _slice, _finish)


def mlm_loss_forward(*arguments):
    """As the reference's: (loss, z term, counted rows, hits, lse [M], dhidden, dweight, dbias)."""
    return decoder.forward(KERNELS, *arguments)


def mlm_loss_backward(*arguments):
    """As the reference's, of ``recompute`` mode: (dhidden, dweight, dbias)."""
    return decoder.backward(KERNELS, *arguments)
