"""Adam and AdamW as the recipes ask for them."""

from __future__ import annotations

import torch
from torch import nn

from cramming_train.recipes import Training


def decays(name: str) -> bool:
    """The original's rule: weight decay for every parameter whose name has neither "bias" nor "norm" in it.

    Embeddings and the learned scale of the sinusoids are decayed.
    """
    return "bias" not in name and "norm" not in name


def build_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """torch's fused optimizer with two groups, decayed and not. The learning rate is set before every step."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in named if decays(name)], "weight_decay": training.weight_decay},
        {"params": [p for name, p in named if not decays(name)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[training.optimizer]
    return kind(groups, lr=training.peak_lr, betas=tuple(training.betas), eps=training.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set one learning rate for all groups."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
