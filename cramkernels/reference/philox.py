"""Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") in 64-bit integers.

Every backend draws dropout masks from these counters, so masks agree bit for bit:

* key      = (low, high) 32 bits of the seed;
* counter  = (column // 4, row, head, stream); word ``column % 4`` of the result belongs to ``column``;
* attention: row and column are the packed indices of query and key token, stream 0;
* add_layer_norm: row is the packed token, column the feature, head 0, stream 1;
* an element is kept iff its word >= floor(p * 2**32), and scaled by 1 / (1 - p).
"""

from __future__ import annotations

import functools

import numpy as np
import torch

ATTENTION_STREAM, ELEMENTWISE_STREAM = 0, 1
_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
CPU_COUNTERS = 1 << 13  # at a time, for what a core's cache holds
# Masks of the last calls on a CPU: the backward asks for what the forward drew, of attention group by group
REMEMBERED_ROWS, REMEMBERED_GROUPS = 16, 256
LARGEST_GROUP = 1 << 18  # elements of a mask of attention that is remembered


def philox(counter: tuple, key: tuple) -> tuple:
    """Ten rounds. Counters and keys hold unsigned 32-bit words in int64 tensors or NumPy arrays, and broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap, and wrapping keeps all 64 bits of the unsigned 32 x 32 product; of c1 and c3 the upper
        # half may hold anything until it is cut off with that of what they are combined with
        product0, product1 = c0 * _M0, c2 * _M1
        c0, c1 = ((product1 >> 32) ^ (c1 ^ k0)) & _MASK, product1
        c2, c3 = ((product0 >> 32) ^ (c3 ^ k1)) & _MASK, product0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1 & _MASK, c2, c3 & _MASK


def keep_threshold(dropout_p: float) -> int:
    """Words below this are dropped."""
    return int(dropout_p * 2**32)


def elementwise_keep(seed: torch.Tensor, rows: int, columns: int, dropout_p: float) -> torch.Tensor:
    """Mask of kept elements, bool [rows, columns]; on a CPU shared with later calls, so not to be written to."""
    if seed.is_cpu:
        return _elementwise_on_cpu(int(seed), rows, columns, dropout_p)
    return _elementwise_keep(seed, rows, columns, dropout_p)


@functools.lru_cache(REMEMBERED_ROWS)
def _elementwise_on_cpu(seed: int, rows: int, columns: int, dropout_p: float) -> torch.Tensor:
    return _elementwise_keep(torch.tensor(seed), rows, columns, dropout_p)


def _elementwise_keep(seed: torch.Tensor, rows: int, columns: int, dropout_p: float) -> torch.Tensor:
    row = torch.arange(rows, device=seed.device).view(1, 1, -1, 1)
    block = torch.arange((columns + 3) // 4, device=seed.device).view(1, 1, 1, -1)
    head = torch.zeros(1, 1, 1, 1, dtype=torch.int64, device=seed.device)
    return _kept(seed, head, row, block, ELEMENTWISE_STREAM, dropout_p)[0, 0, :, :columns]


def attention_keep(
    seed: torch.Tensor, starts_B: torch.Tensor, heads: int, length: int, dropout_p: float, first_head: int = 0
):
    """Mask of kept probabilities, bool [B, H, S, S], of sequences that begin at packed rows ``starts_B``.

    On a CPU shared with later calls, so not to be written to.
    """
    if seed.is_cpu and starts_B.shape[0] * heads * length * length <= LARGEST_GROUP:
        return _attention_on_cpu(int(seed), tuple(starts_B.tolist()), heads, length, dropout_p, first_head)
    return _attention_keep(seed, starts_B, heads, length, dropout_p, first_head)


@functools.lru_cache(REMEMBERED_GROUPS)
def _attention_on_cpu(seed: int, starts: tuple[int, ...], *shape_and_p):
    return _attention_keep(torch.tensor(seed), torch.tensor(starts), *shape_and_p)


def _attention_keep(seed: torch.Tensor, starts_B: torch.Tensor, heads: int, length: int, dropout_p: float, first_head):
    device = seed.device
    start = starts_B.to(torch.int64).view(-1, 1, 1, 1)
    head = torch.arange(first_head, first_head + heads, device=device).view(1, -1, 1, 1)
    query = start + torch.arange(length, device=device).view(1, 1, -1, 1)
    # the blocks of four columns that cover [start, start + S): at most one more than S / 4 rounded up
    block = start // 4 + torch.arange((length + 3) // 4 + 1, device=device).view(1, 1, 1, -1)
    kept = _kept(seed, head, query, block, ATTENTION_STREAM, dropout_p)
    column = (start % 4) + torch.arange(length, device=device).view(1, 1, 1, -1)
    return kept.gather(3, column.expand(*kept.shape[:3], length))


def _kept(seed: torch.Tensor, head, row, block, stream: int, dropout_p: float) -> torch.Tensor:
    """Which columns are kept, bool [B, H, R, 4 * K], of head [1, H, 1, 1], row [B, 1, R, 1] and block [B, 1, 1, K]."""
    key, threshold = (seed & _MASK, (seed >> 32) & _MASK), keep_threshold(dropout_p)
    if not seed.is_cpu:
        words = philox((block, row, head, torch.full_like(head, stream)), key)
        return (torch.stack(torch.broadcast_tensors(*words), -1) >= threshold).flatten(3)
    # NumPy multiplies 64-bit integers in half the time
    head, row, block, key = head.numpy(), row.numpy(), block.numpy(), tuple(int(word) for word in key)
    kept = np.empty((row.shape[0], head.shape[1], row.shape[2], block.shape[3], 4), dtype=bool)
    step = max(1, CPU_COUNTERS // max(1, head.size * block.shape[3]))
    for some, its_row, its_block in zip(kept, row, block, strict=True):
        for first in range(0, row.shape[2], step):
            rows = slice(first, first + step)
            words = philox((its_block, its_row[:, rows], head[0], np.int64(stream)), key)
            for number, word in enumerate(words):
                np.greater_equal(word, threshold, out=some[:, rows, :, number])
    return torch.from_numpy(kept).flatten(3)
