"""From texts to packed batches: tokenised once, cut to length, and never padded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tokenizers
import torch

from cramming_train.data.special_tokens import CLS_ID, SEP_ID
from cramming_train.glue.reading import Examples

CHUNK = 2048  # texts tokenised at once: the tokenizer's own records of a text are some 100 x its ids


@dataclass(frozen=True)
class Encoded:
    """The token ids of a split, one example after the other.

    Attributes:
        ids: int32, all examples concatenated; example i is ``ids[offsets[i]:offsets[i + 1]]``.
        offsets: int64, one more than there are examples.
        labels: as in :class:`Examples`.
    """

    ids: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


class PackedBatch(NamedTuple):
    """B examples of T tokens in all, ready for the encoder."""

    ids_T: torch.Tensor  # int64
    cu_seqlens: torch.Tensor  # int32 [B + 1]
    max_seqlen: int
    positions_B: torch.Tensor  # int64, where each example's <cls> is
    labels_B: torch.Tensor

    def to(self, device: torch.device) -> PackedBatch:
        """The batch on another device."""
        return self._make(item.to(device) if isinstance(item, torch.Tensor) else item for item in self)


def encode(
    tokenizer: tokenizers.Tokenizer, clean: Callable[[str], str], examples: Examples, max_length: int
) -> Encoded:
    """Clean, tokenise, cut and frame every example as ``<cls> A <sep>`` or ``<cls> A <sep> B <sep>``.

    Args:
        clean: the cleaning that the pretraining text went through.
        max_length: tokens of one example, special tokens included; pairs are cut longest text first.
    """
    columns = [_tokenize(tokenizer, [clean(text) for text in texts]) for texts in examples.texts]
    framed = [frame(parts, max_length) for parts in zip(*columns, strict=True)]
    offsets = np.zeros(len(framed) + 1, dtype=np.int64)
    np.cumsum([len(ids) for ids in framed], out=offsets[1:])
    return Encoded(np.concatenate(framed), offsets, examples.labels)


def _tokenize(tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    ids = []
    for start in range(0, len(texts), CHUNK):
        chunk = tokenizer.encode_batch_fast(texts[start : start + CHUNK], add_special_tokens=False)
        ids += [np.asarray(encoding.ids, dtype=np.int32) for encoding in chunk]
    return ids


def frame(parts: Sequence[np.ndarray], max_length: int) -> np.ndarray:
    """Special tokens around one or two texts, cut to ``max_length`` tokens in all."""
    lengths = truncated_lengths([len(part) for part in parts], max_length - 1 - len(parts))
    pieces = [np.array([CLS_ID], dtype=np.int32)]
    for part, length in zip(parts, lengths, strict=True):
        pieces += [part[:length], np.array([SEP_ID], dtype=np.int32)]
    return np.concatenate(pieces)


def truncated_lengths(lengths: Sequence[int], budget: int) -> list[int]:
    """Lengths of one or two texts that fit ``budget`` tokens together.

    Longest first, token by token: the shorter text stays whole as long as it has no more than its half; of
    two cut texts, the one that was longer (the second of equals) keeps the odd token. This is Hugging Face's
    "longest_first".
    """
    if sum(lengths) <= budget:
        return list(lengths)
    if len(lengths) == 1:
        return [budget]
    short, long = (0, 1) if lengths[0] <= lengths[1] else (1, 0)
    kept = [0, 0]
    kept[short] = min(lengths[short], budget // 2)
    kept[long] = budget - kept[short]
    return kept


def compact_vocabulary(splits: Sequence[Encoded]) -> tuple[np.ndarray, list[Encoded]]:
    """Renumber the tokens that occur.

    A task uses a fraction of the vocabulary. Rows of the embedding that no example touches have no gradient
    and take no part in any result, so leaving them out changes no number, and spares the optimizer most of
    its work on a small model (of 11 M parameters, 8.4 M are the embedding).

    Returns:
        The ids in use, ascending, int64; and the splits with each id replaced by its index therein.
    """
    used = np.unique(np.concatenate([split.ids for split in splits]))
    renumbered = [
        Encoded(np.searchsorted(used, split.ids).astype(np.int32), split.offsets, split.labels) for split in splits
    ]
    return used.astype(np.int64), renumbered


def pack(split: Encoded, rows: np.ndarray) -> PackedBatch:
    """The examples ``rows`` of a split as one packed batch, on the CPU."""
    starts, ends = split.offsets[rows], split.offsets[rows + 1]
    cu_seqlens = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum(ends - starts, out=cu_seqlens[1:])
    ids = np.concatenate([split.ids[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)])
    return PackedBatch(
        torch.from_numpy(ids.astype(np.int64)),
        torch.from_numpy(cu_seqlens),
        int((ends - starts).max()),
        torch.from_numpy(cu_seqlens[:-1].astype(np.int64)),
        torch.from_numpy(split.labels[rows]),
    )


def training_batches(split: Encoded, batch_size: int, seed: int) -> Iterator[PackedBatch]:
    """One epoch in an order drawn from ``seed``.

    The last rows, which fill no batch, are left out, as in the original.
    """
    order = np.random.default_rng(seed).permutation(len(split))
    for start in range(0, batches_per_epoch(len(split), batch_size) * batch_size, batch_size):
        yield pack(split, order[start : start + batch_size])


def batches_per_epoch(rows: int, batch_size: int) -> int:
    """Optimizer steps of one epoch: whole batches only, but at least one."""
    return max(rows // batch_size, 1)


def validation_batches(split: Encoded, tokens: int) -> Iterator[tuple[np.ndarray, PackedBatch]]:
    """(row numbers, batch) over the whole split: rows of like length together, some ``tokens`` a batch."""
    lengths = np.diff(split.offsets)
    order = np.argsort(lengths, kind="stable")
    group = np.cumsum(lengths[order]) // tokens
    for rows in np.split(order, np.flatnonzero(np.diff(group)) + 1):
        yield rows, pack(split, rows)
