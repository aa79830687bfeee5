"""How much text a token stands for, so that models with other vocabularies can be compared."""

from __future__ import annotations

import numpy as np

from cramming_train.data import PreparedData
from cramming_train.data.special_tokens import SPECIAL_TOKENS

SAMPLE_ROWS = 2048


def characters_per_token(prepared: PreparedData) -> float:
    """Characters of cleaned held-out text over tokens, the special ones not counted on either side.

    WordPiece drops white space: a word's first piece counts one character more for the space before it.
    """
    rows = prepared.validation
    numbers = np.arange(min(len(rows), SAMPLE_ROWS)) * len(rows) // min(len(rows), SAMPLE_ROWS)
    counts = np.bincount(rows.take(numbers).reshape(-1), minlength=prepared.vocab_size)
    tokenizer = prepared.tokenizer
    pieces = [tokenizer.id_to_token(number) or "" for number in range(prepared.vocab_size)]
    lengths = np.array([len(piece) - 2 if piece.startswith("##") else len(piece) + 1 for piece in pieces])
    counts[: len(SPECIAL_TOKENS)] = 0
    return float((counts * lengths).sum() / counts.sum())
