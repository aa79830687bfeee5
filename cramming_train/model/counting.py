"""Parameters and nominal FLOPs of a model."""

from __future__ import annotations

from torch import nn

from cramming_train.recipes import Architecture


def parameter_count(model: nn.Module) -> int:
    """Trained parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def flops_per_token(architecture: Architecture, vocab_size: int, row_length: int, masking_rate: float) -> float:
    """Nominal training FLOPs of one token: forward and twice that for the backward.

    Matrices of the blocks on every token, attention over the row, head transform and decoder on the masked share. What
    running the last block on masked rows saves is not subtracted, so that utilisation compares with other programs'.
    """
    a = architecture
    block = a.hidden * 3 * a.hidden + a.hidden**2 + a.hidden * a.ffn_hidden + a.ffn_inner * a.hidden
    attention = 2 * row_length * a.hidden
    head = (a.hidden**2 if a.head_transform else 0) + a.hidden * vocab_size
    return 6.0 * (a.layers * (block + attention) + masking_rate * head)
