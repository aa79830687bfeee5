"""Dropout that needs no generator state: each place where it acts derives its seed from one seed a micro-batch."""

from __future__ import annotations

import torch

from cramkernels import add_layer_norm


class DropoutSeeds:
    """Seeds for the dropout sites of one forward pass, in the order of the forward: seed, seed + 1, ...

    Args:
        seed: an int or int64 scalar tensor; None turns dropout off.
    """

    def __init__(self, seed: int | torch.Tensor | None):
        self._seed = seed
        self._used = 0

    @property
    def off(self) -> bool:
        """True when nothing is dropped."""
        return self._seed is None

    def next(self) -> int | torch.Tensor:
        """The next site's seed."""
        self._used += 1
        return self._seed + (self._used - 1)

    def options(self, rate: float) -> dict:
        """Keyword arguments of an operation with dropout."""
        return {} if self.off or rate == 0.0 else {"dropout_p": rate, "seed": self.next()}


def dropout_add(x_TN: torch.Tensor, residual_TN: torch.Tensor, rate: float, seed: int | torch.Tensor) -> torch.Tensor:
    """dropout(x) + residual: the second result of add_layer_norm, for the places that no norm follows."""
    unit_N = torch.ones(x_TN.shape[-1], device=x_TN.device, dtype=x_TN.dtype)
    return add_layer_norm(x_TN, residual_TN, unit_N, eps=1.0, dropout_p=rate, seed=seed)[1]
