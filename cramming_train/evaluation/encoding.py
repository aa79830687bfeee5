"""From texts to packed batches: tokenised once, cut to length, and never padded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import tokenizers
import torch

from cramming_train.data.special_tokens import CLS_ID, SEP_ID
from cramming_train.errors import UsageError
from cramming_train.evaluation.sources import Examples

CHUNK = 2048  # sequences tokenised at once: the tokenizer's own records of a text are some 100 x its ids


@dataclass(frozen=True)
class Encoded:
    """The token ids of a split, one sequence after the other.

    Attributes:
        ids: int32, all sequences concatenated; sequence i is ``ids[offsets[i]:offsets[i + 1]]``.
        offsets: int64, one more than there are sequences.
        labels, counts, references: as in :class:`Examples`.
    """

    ids: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    counts: np.ndarray | None = None
    references: list[Any] = field(default_factory=list)

    def __len__(self) -> int:
        """Examples."""
        return len(self.labels)

    @cached_property
    def firsts(self) -> np.ndarray:
        """Sequences ``firsts[i]`` to ``firsts[i + 1]`` are those of example i; int64."""
        if self.counts is None:
            return np.arange(len(self) + 1)
        return np.concatenate([[0], np.cumsum(self.counts)])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, all its sequences together."""
        return np.diff(self.offsets[self.firsts])

    def sequences_of(self, rows: np.ndarray) -> np.ndarray:
        """Numbers of the sequences of these examples, in turn."""
        if self.counts is None:
            return rows
        return np.concatenate([np.arange(self.firsts[row], self.firsts[row + 1]) for row in rows])


class PackedBatch(NamedTuple):
    """B examples in S sequences of T tokens in all, ready for the encoder."""

    ids_T: torch.Tensor  # int64
    cu_seqlens: torch.Tensor  # int32 [S + 1]
    max_seqlen: int
    positions_S: torch.Tensor  # int64, where each sequence's <cls> is
    labels_B: torch.Tensor
    choices: tuple[int, ...] | None  # sequences of each example, where these are its choices

    def to(self, device: torch.device) -> PackedBatch:
        """The batch on another device."""
        return self._make(item.to(device) if isinstance(item, torch.Tensor) else item for item in self)


def encode(
    tokenizer: tokenizers.Tokenizer, clean: Callable[[str], str], examples: Examples, max_length: int
) -> Encoded:
    """Clean, tokenise, cut and frame every sequence as ``<cls> A <sep>``, ``<cls> A <sep> B <sep>`` and so on.

    Args:
        clean: the cleaning that the pretraining text went through.
        max_length: tokens of one sequence, special tokens included; the longest text is cut first.
    """
    framed: list[np.ndarray] = []
    for start in range(0, len(examples.sequences), CHUNK):
        chunk = examples.sequences[start : start + CHUNK]
        texts = list(dict.fromkeys(text for sequence in chunk for text in sequence))  # a passage comes many times
        encodings = tokenizer.encode_batch_fast([clean(text) for text in texts], add_special_tokens=False)
        ids = {text: np.asarray(e.ids, dtype=np.int32) for text, e in zip(texts, encodings, strict=True)}
        framed += [frame([ids[text] for text in sequence], max_length) for sequence in chunk]
    offsets = np.zeros(len(framed) + 1, dtype=np.int64)
    np.cumsum([len(ids) for ids in framed], out=offsets[1:])
    return Encoded(np.concatenate(framed), offsets, examples.labels, examples.counts, examples.references)


def frame(parts: Sequence[np.ndarray], max_length: int) -> np.ndarray:
    """Special tokens around the texts of a sequence, cut to ``max_length`` tokens in all."""
    budget = max_length - 1 - len(parts)
    if budget < 0:
        raise UsageError(f"evaluation.max_length: {max_length} tokens do not hold the separators of {len(parts)} texts")
    lengths = truncated_lengths([len(part) for part in parts], budget)
    pieces = [np.array([CLS_ID], dtype=np.int32)]
    for part, length in zip(parts, lengths, strict=True):
        pieces += [part[:length], np.array([SEP_ID], dtype=np.int32)]
    return np.concatenate(pieces)


def truncated_lengths(lengths: Sequence[int], budget: int) -> list[int]:
    """Lengths of the texts that fit ``budget`` tokens together.

    Longest first, token by token: a text stays whole as long as it has no more than its share; of cut texts, those that
    were longer (of equals the later ones) keep the odd tokens. For two texts this is Hugging Face's "longest_first".
    """
    kept = list(lengths)
    left = budget
    for place, index in enumerate(sorted(range(len(lengths)), key=lambda i: (lengths[i], i))):
        kept[index] = min(lengths[index], left // (len(lengths) - place))
        left -= kept[index]
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
    renumbered = [replace(split, ids=np.searchsorted(used, split.ids).astype(np.int32)) for split in splits]
    return used.astype(np.int64), renumbered


def pack(split: Encoded, rows: np.ndarray) -> PackedBatch:
    """The examples ``rows`` of a split as one packed batch, on the CPU."""
    sequences = split.sequences_of(rows)
    starts, ends = split.offsets[sequences], split.offsets[sequences + 1]
    cu_seqlens = np.zeros(len(sequences) + 1, dtype=np.int32)
    np.cumsum(ends - starts, out=cu_seqlens[1:])
    ids = np.concatenate([split.ids[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)])
    return PackedBatch(
        torch.from_numpy(ids.astype(np.int64)),
        torch.from_numpy(cu_seqlens),
        int((ends - starts).max()),
        torch.from_numpy(cu_seqlens[:-1].astype(np.int64)),
        torch.from_numpy(split.labels[rows]),
        None if split.counts is None else tuple(split.counts[rows].tolist()),
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
    lengths = split.lengths
    order = np.argsort(lengths, kind="stable")
    group = np.cumsum(lengths[order]) // tokens
    for rows in np.split(order, np.flatnonzero(np.diff(group)) + 1):
        yield rows, pack(split, rows)
