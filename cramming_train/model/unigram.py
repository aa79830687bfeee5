"""The decoder's bias at the log-frequencies of the tokens, so that training does not begin by learning these."""

from __future__ import annotations

import numpy as np
import torch

from cramming_train.data import Rows
from cramming_train.model.masked_lm import MaskedLM

SAMPLE_ROWS = 65536  # 8 M tokens of 128 a row: counted in well under a second
CHUNK_ROWS = 1024


def start_at_unigram(model: MaskedLM, rows: Rows) -> None:
    """Set the decoder's bias to ln(1 + count) of each token, less its mean over the vocabulary.

    Counts are those of rows spread evenly over the training rows. The softmax of the bias alone is then the unigram
    model with add-one smoothing; centred, most entries stay near zero, where 16-bit logits are finest.
    """
    counts = np.zeros(model.vocab_size, dtype=np.int64)
    numbers = np.arange(min(len(rows), SAMPLE_ROWS)) * len(rows) // min(len(rows), SAMPLE_ROWS)
    for start in range(0, len(numbers), CHUNK_ROWS):
        tokens = rows.take(numbers[start : start + CHUNK_ROWS]).reshape(-1)
        counts += np.bincount(tokens, minlength=model.vocab_size)
    bias = np.log1p(counts)
    with torch.no_grad():
        model.decoder_bias.copy_(torch.from_numpy(bias - bias.mean()))
