"""Argument blocks of csrc/api.h: packed here, field by field, in the order of the C structs."""

from __future__ import annotations

import struct
from functools import cache

import torch

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
OPERATIONS = {"layer_norm": 0, "add_layer_norm": 1, "layer_norm_gelu": 2, "gelu_layer_norm": 3}
# The pointers of each block come first
NORM, NORM_POINTERS = struct.Struct("=15Qq8i2f2I"), 15
GEGLU, GEGLU_POINTERS = struct.Struct("=6Qq6i"), 6
REDUCE, REDUCE_POINTERS = struct.Struct("=4Q4i"), 4
ATTENTION, ATTENTION_POINTERS = struct.Struct("=11Qq6i2f2I"), 11
ROTARY, ROTARY_POINTERS = struct.Struct("=5Qq6i"), 5
LOSS, LOSS_POINTERS = struct.Struct("=15Q5q8i3fi"), 15
BLOCKS = {
    "ck_norm_forward": (NORM, NORM_POINTERS),
    "ck_norm_backward": (NORM, NORM_POINTERS),
    "ck_norm_reduce": (REDUCE, REDUCE_POINTERS),
    "ck_geglu_forward": (GEGLU, GEGLU_POINTERS),
    "ck_geglu_backward": (GEGLU, GEGLU_POINTERS),
    "ck_attention_*": (ATTENTION, ATTENTION_POINTERS),
    "ck_rotary": (ROTARY, ROTARY_POINTERS),
    "ck_loss_*": (LOSS, LOSS_POINTERS),
}
PARTIAL_BYTES = 4 << 20  # at most, for the partial rows of the parameter gradients
SIMULATED_CAPABILITY = (8, 0)  # where there is no device
SIMULATED_MULTIPROCESSORS = 2  # where there is no device: small, so that a CTA has several rows


def pointer(x: torch.Tensor | None) -> int:
    """Device address, 0 for none."""
    return 0 if x is None else x.data_ptr()


def multiprocessors(device: torch.device) -> int:
    """Of the device."""
    return SIMULATED_MULTIPROCESSORS if device.index is None else _multiprocessors(device.index)


@cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of the device."""
    return SIMULATED_CAPABILITY if device.type != "cuda" else _capability(device.index)


@cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)
