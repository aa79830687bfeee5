"""The masked-LM loss in CUDA C++ (csrc/loss): products by torch (cramkernels/decoder.py), the rest by these kernels."""

from __future__ import annotations

import torch

from cramkernels import decoder, library
from cramkernels.cuda.arguments import DTYPES, LOSS, capability, multiprocessors, pointer
from cramkernels.decoder import Kernels, Problem

TILE = (256, 128)
CTAS_PER_MULTIPROCESSOR = 1  # of the kernel by tiles, at a time: its registers are all there are


def _call(
    name: str, p: Problem, *, buffer=None, first=0, rows=0, write=False, first_column=0, columns=0, partials=None,
    targets=None, results=(None, None, None), splits=0,
) -> None:  # fmt: skip
    loss, z_loss, num_correct = results
    tensors = (
        buffer, p.hidden, p.weight, p.bias, p.labels, p.grad_scale, p.share, p.lse, p.stats, partials, targets,
        loss, z_loss, p.num_tokens, num_correct,
    )  # fmt: skip
    arguments = LOSS.pack(
        *map(pointer, tensors),
        p.hidden.shape[0], rows, first, 0 if buffer is None else buffer.shape[1], p.ignore_index,
        p.weight.shape[0], p.weight.shape[1], first_column, columns, DTYPES[p.hidden.dtype],
        DTYPES[(p.hidden if p.bias is None else p.bias).dtype], splits, write,
        p.z_loss, p.label_smoothing, p.softcap or 0.0, capability(p.hidden.device)[0],
    )  # fmt: skip
    library.call(name, arguments, p.hidden.device)


def _count(problem: Problem) -> None:
    _call("ck_loss_count", problem)


def _rows(problem: Problem, buffer, first: int, rows: int, write: bool) -> None:
    _call("ck_loss_rows", problem, buffer=buffer, first=first, rows=rows, write=write)


def _tiles(problem: Problem) -> None:
    rows, device = problem.hidden.shape[0], problem.hidden.device
    programs = CTAS_PER_MULTIPROCESSOR * multiprocessors(device)
    splits = decoder.vocabulary_splits(rows, problem.weight.shape[0], programs, TILE)
    sums = {"partials": torch.empty(splits, 3, rows, device=device), "targets": torch.empty(rows, device=device)}
    _call("ck_loss_tiles", problem, **sums, splits=splits)
    _call("ck_loss_combine", problem, **sums, splits=splits)


def _slice(problem: Problem, buffer, first: int, rows: int, first_column: int, columns: int) -> None:
    _call("ck_loss_slice", problem, buffer=buffer, first=first, rows=rows, first_column=first_column, columns=columns)


def _finish(problem: Problem):
    device = problem.hidden.device
    results = [torch.empty((), dtype=dtype, device=device) for dtype in (torch.float32, torch.float32, torch.int64)]
    _call("ck_loss_finish", problem, results=results)
    return results


KERNELS = Kernels(_count, _rows, _tiles, _slice, _finish)


def mlm_loss_forward(*arguments):
    """As the reference's: (loss, z term, counted rows, hits, lse [M], dhidden, dweight, dbias)."""
    return decoder.forward(KERNELS, *arguments)


def mlm_loss_backward(*arguments):
    """As the reference's, of ``recompute`` mode: (dhidden, dweight, dbias)."""
    return decoder.backward(KERNELS, *arguments)
