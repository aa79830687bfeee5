"""Choosing the positions to predict: exact counts, unbiased, on the device, with no state to save.

Every row gets exactly ``round(rate * S)`` masked positions (32 of 128 at 25 %). Of these, ``round(p_random * k)``
are replaced by uniformly random ids, ``round(p_keep * k)`` are kept, and the rest become <mask>: 26 / 3 / 3.
The original drew positions with a slight bias to low ones; here every subset of k positions is equally likely.
Shapes are static for a given rate, and nothing is read back to the host.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from cramming_train.data.special_tokens import MASK_ID
from cramming_train.seeds import derive_seed


class MaskedBatch(NamedTuple):
    """One micro-batch ready for the model. B rows of S tokens, k masked positions a row, M = B * k."""

    ids_T: torch.Tensor  # int64, with the replacements in place
    labels_M: torch.Tensor  # int64, the original ids at the masked positions
    positions_M: torch.Tensor  # int64, ascending indices into the T = B * S packed tokens


class MaskingCounts(NamedTuple):
    """How many positions of one row are predicted, and how they are shown to the model."""

    masked: int
    replaced_by_mask: int
    replaced_by_random: int


def masking_counts(row_length: int, rate: float, random_share: float, keep_share: float) -> MaskingCounts:
    """Exact counts for one row, at least one masked position."""
    masked = min(max(round(rate * row_length), 1), row_length)
    random = round(random_share * masked)
    kept = min(round(keep_share * masked), masked - random)
    return MaskingCounts(masked, masked - random - kept, random)


def mask_rows(ids_BS: torch.Tensor, counts: MaskingCounts, vocab_size: int, *, seed: int, index: int) -> MaskedBatch:
    """Mask one micro-batch.

    The draw depends on ``(seed, index)`` alone, never on earlier draws: a resumed run needs no generator state.

    Args:
        ids_BS: token ids, int64, on the device of the run.
        counts: from :func:`masking_counts`.
        vocab_size: random replacements are uniform in [0, vocab_size).
        seed, index: the run's seed and the number of the micro-batch (or of the first row, for fixed masks).
    """
    rows, length = ids_BS.shape
    device = ids_BS.device
    generator = _generator(device, derive_seed(seed, "masking", index))
    # The k smallest of S independent uniforms are a uniformly random k-subset, in a uniformly random order.
    order_BS = torch.rand(rows, length, device=device, generator=generator).argsort(dim=1)
    chosen_Bk = order_BS[:, : counts.masked]
    offsets_B1 = torch.arange(0, rows * length, length, device=device).unsqueeze(1)

    ids_T = ids_BS.reshape(-1).clone()
    masked_end = counts.replaced_by_mask
    random_end = masked_end + counts.replaced_by_random
    ids_T.index_fill_(0, (chosen_Bk[:, :masked_end] + offsets_B1).reshape(-1), MASK_ID)
    random_ids = torch.randint(vocab_size, (rows, counts.replaced_by_random), device=device, generator=generator)
    ids_T.index_copy_(0, (chosen_Bk[:, masked_end:random_end] + offsets_B1).reshape(-1), random_ids.reshape(-1))

    positions_M = (chosen_Bk.sort(dim=1).values + offsets_B1).reshape(-1)
    return MaskedBatch(ids_T, ids_BS.reshape(-1).index_select(0, positions_M), positions_M)


def _generator(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)
