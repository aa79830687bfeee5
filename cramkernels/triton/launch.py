"""What every Triton launch needs to know of the device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

PARTIAL_BYTES = 4 << 20  # at most, for the partial rows of the parameter gradients
OPTIONS = {"enable_fp_fusion": True}  # a * b + c rounds once: Triton 3.10 no longer does so unasked
SIMULATED_MULTIPROCESSORS = 2  # where there is no device: small, so that a program has several rows


def multiprocessors(device: torch.device) -> int:
    """Of the device."""
    return SIMULATED_MULTIPROCESSORS if device.type != "cuda" else _multiprocessors(device.index)


@cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def on_device(x: torch.Tensor) -> AbstractContextManager:
    """Triton launches on the current device: make it that of ``x``."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()
