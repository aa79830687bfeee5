"""Held-out masked-LM loss and accuracy: one protocol for every recipe, so that numbers compare."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cramming_train.data import Rows
from cramming_train.masking import mask_rows, masking_counts
from cramming_train.model import MaskedLM, sequence_boundaries

RATE, RANDOM_SHARE, KEEP_SHARE = 0.15, 0.1, 0.1
MASK_SEED = 0
GROUP = 64  # rows masked and evaluated together; part of the protocol, since masks are drawn group by group


@torch.no_grad()
def held_out_loss(
    model: MaskedLM,
    rows: Rows,
    *,
    device: torch.device,
    max_rows: int | None = None,
    autocast_dtype: torch.dtype | None = None,
    window: int | None = None,
) -> dict[str, Any]:
    """Mean cross-entropy (nats) and accuracy over the masked positions of held-out rows.

    15 % of the positions of every row, of these 80 % shown as <mask>, 10 % as random ids, 10 % unchanged (BERT's
    rule), dropout off. Masks are drawn on the CPU from a row's place among the evaluated rows alone: the same for every
    model and machine. With ``max_rows`` the rows are spread evenly over all held-out rows. ``window`` as in
    :meth:`Encoder.forward`, for a model that is trained with one at present.

    Returns:
        loss, accuracy, tokens (predicted positions), rows (evaluated rows).
    """
    counts = masking_counts(rows.row_length, RATE, RANDOM_SHARE, KEEP_SHARE)
    total = len(rows) if max_rows is None else min(len(rows), max_rows)
    was_training = model.training
    model.eval()
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    numbers = np.arange(total) * len(rows) // max(total, 1)
    for start in range(0, total, GROUP):
        ids_BS = torch.from_numpy(rows.take(numbers[start : start + GROUP]).astype(np.int64))
        batch = mask_rows(ids_BS, counts, model.vocab_size, seed=MASK_SEED, index=start)
        ids_T, labels_M, positions_M = (tensor.to(device) for tensor in batch)
        cu_seqlens, max_seqlen = sequence_boundaries(ids_BS, document_attention=model.architecture.document_attention)
        with torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype is not None):
            result = model(ids_T, labels_M, positions_M, cu_seqlens.to(device), max_seqlen, window=window)
        loss_sum += result.loss.double() * labels_M.numel()
        correct += result.num_correct
    model.train(was_training)
    predicted = total * counts.masked
    return {
        "loss": float(loss_sum) / predicted,
        "accuracy": float(correct) / predicted,
        "tokens": predicted,
        "rows": total,
    }
