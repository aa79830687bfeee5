"""Packed batches: sequences one after another, without padding, found through their cumulative lengths."""

from __future__ import annotations

from typing import NamedTuple

import torch


class PackedBatch(NamedTuple):
    """T tokens of B sequences; sequence b is ``ids_T[cu_seqlens[b]:cu_seqlens[b + 1]]``."""

    ids_T: torch.Tensor
    cu_seqlens: torch.Tensor  # int32 [B + 1]
    max_seqlen: int
    indices_T: torch.Tensor  # where each token was in the flattened padded batch


def pack_padded(ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> PackedBatch:
    """Pack a padded batch. ``mask_BS`` is true (or 1) where there is a token.

    The number of tokens becomes a shape, so this reads the device: pack in the loader, not in a training step.

    Raises:
        ValueError: the shapes differ.
    """
    if ids_BS.shape[:2] != mask_BS.shape or mask_BS.dim() != 2:
        raise ValueError(f"mask_BS: got shape {tuple(mask_BS.shape)}, want {tuple(ids_BS.shape[:2])}")
    mask_BS = mask_BS.bool()
    indices_T = mask_BS.reshape(-1).nonzero().squeeze(1)
    lengths_B = mask_BS.sum(dim=1)
    cu_seqlens = torch.zeros(mask_BS.shape[0] + 1, dtype=torch.int32, device=ids_BS.device)
    cu_seqlens[1:] = lengths_B.cumsum(0)
    longest = int(lengths_B.max()) if lengths_B.numel() else 0
    return PackedBatch(ids_BS.flatten(0, 1)[indices_T], cu_seqlens, longest, indices_T)


def token_positions(cu_seqlens: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each of T packed tokens: its sequence, its position there, and whether it is inside any sequence.

    Returns:
        sequence_T and position_T (int64), inside_T (bool). Outside tokens have sequence 0 and position 0.
    """
    index_T = torch.arange(tokens, device=cu_seqlens.device)
    starts = cu_seqlens.to(torch.int64)
    sequence_T = torch.searchsorted(starts, index_T, right=True) - 1
    inside_T = (sequence_T >= 0) & (sequence_T < starts.shape[0] - 1)
    sequence_T = torch.where(inside_T, sequence_T, 0)
    position_T = torch.where(inside_T, index_T - starts[sequence_T], 0)
    return sequence_T, position_T, inside_T
