"""The parameters of a LayerNorm; the arithmetic is in cramkernels, fused with what stands around it."""

from __future__ import annotations

import torch
from torch import nn


class LayerNorm(nn.Module):
    """Holds weight (ones) and bias (zeros) of one norm."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps
