"""A mean of the weights of the last steps, to be judged and kept instead of the last ones.

* "window": the mean of all steps in the last ``share`` of the budget (Izmailov et al. 2018, arXiv 1803.05407; Kaddour
  2022, arXiv 2209.14981).
* "ema": a moving average that is ``share`` of the steps so far old, so that it forgets the beginning however long a run
  is (the power function of Karras et al. 2024, arXiv 2312.02696).

Training itself goes on with the last weights. The mean is part of the optimizer's state, so checkpoints hold it.
"""

from __future__ import annotations

import torch
from torch import nn

KINDS = ("none", "window", "ema")
_KEY = "average"


def newest_weight(kind: str, share: float, *, fraction: float, step: int, averaged: int) -> float:
    """What the newest weights count in the mean, 0 where there is none yet.

    Args:
        fraction: of the budget, used before this step.
        step: of the run, counted from 0.
        averaged: steps in the mean so far.
    """
    if kind == "none" or (kind == "window" and fraction < 1 - share):
        return 0.0
    return 1 / (averaged + 1) if kind == "window" else 1 / (1 + share * step)


@torch.no_grad()
def average(model: nn.Module, optimizer: torch.optim.Optimizer, weight: float) -> None:
    """Take the present weights into the mean; of parameters that have not moved yet, it begins later."""
    moved = [parameter for parameter in model.parameters() if optimizer.state[parameter]]
    for parameter in moved:
        if _KEY not in optimizer.state[parameter]:
            optimizer.state[parameter][_KEY] = parameter.detach().clone()
    if moved:
        torch._foreach_lerp_([optimizer.state[parameter][_KEY] for parameter in moved], moved, weight)


@torch.no_grad()
def use_average(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the mean, where there is one, in the place of the weights."""
    for parameter in model.parameters():
        mean = optimizer.state[parameter].pop(_KEY, None)
        if mean is not None:
            parameter.copy_(mean)
