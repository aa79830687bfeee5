"""The optimizers that recipes ask for: Adam, AdamW, and Muon on the matrices with AdamW on the rest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from cramming_train.optim.muon import Muon
from cramming_train.recipes import Training

BLOCKS = {"qkv": 3, "ffn_in": 1, "attention_out": 1, "ffn_out": 1}  # of rows, in the matrices that Muon takes


def decays(name: str) -> bool:
    """The original's rule: weight decay for every parameter whose name has neither "bias" nor "norm" in it.

    Embeddings and the learned scale of the sinusoids are decayed.
    """
    return "bias" not in name and "norm" not in name


def build_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The recipe's optimizer. Learning rates are set before every step, see :func:`set_learning_rate`."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if training.optimizer != "muon":
        return _adam(named, training)
    matrices = {name: p for name, p in named.items() if _blocks(name)}
    rest = {name: p for name, p in named.items() if name not in matrices}
    muon = Muon(
        [(p, _blocks(name)) for name, p in matrices.items()],
        lr=training.matrix_lr, momentum=training.momentum, weight_decay=training.weight_decay,
    )  # fmt: skip
    for group in muon.param_groups:
        group["lr_share"] = training.matrix_lr / training.peak_lr
        group["interval"] = training.matrix_interval
    return Together([muon, _adam(rest, training)])


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float, step: int) -> None:
    """Set the learning rate of a step, counted from 0; groups that have a share take that much of it.

    Groups with an interval n move in each n-th step alone, n times as far.
    """
    for group in optimizer.param_groups:
        n = group.get("interval", 1)
        group["lr"] = learning_rate * group.get("lr_share", 1.0) * (n if (step + 1) % n == 0 else 0)


def matrices_of(model: nn.Module) -> list[tuple[int, int]]:
    """Sides of every matrix that Muon would take."""
    named = [(p, _blocks(name)) for name, p in model.named_parameters()]
    return [(p.shape[0] // count, p.shape[1]) for p, count in named for _ in range(count)]


class Together(torch.optim.Optimizer):
    """Several optimizers as one: their groups, and their states by parameter."""

    _step_supports_amp_scaling = True  # the parts leave a step out by themselves, so that the host need not wait

    def __init__(self, parts: list[torch.optim.Optimizer]):
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        for part in parts:
            part.state = self.state

    def step(self, closure: Callable | None = None) -> None:
        """One step of each part."""
        for part in self.parts:
            part.found_inf = getattr(self, "found_inf", None)  # set by a gradient scaler for the time of the step
            part.grad_scale = getattr(self, "grad_scale", None)
            part.step()


def _adam(named: dict[str, nn.Parameter], training: Training) -> torch.optim.Optimizer:
    """torch's fused optimizer, with a group of what is decayed and one of what is not."""
    decayed = [parameter for name, parameter in named.items() if decays(name)]
    rest = [parameter for name, parameter in named.items() if not decays(name)]
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, training.weight_decay), (rest, 0.0))
        if parameters
    ]
    kind = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=training.peak_lr, betas=tuple(training.betas), eps=training.eps, fused=True)


def _blocks(name: str) -> int:
    """Matrices that the parameter holds; 0 where it is none of the blocks'."""
    parts = name.split(".")
    return BLOCKS.get(parts[-2], 0) if "blocks" in parts and parts[-1] == "weight" else 0
