"""The Triton backend, for sm_80 and later. One module per family, the same names as in the reference."""

from __future__ import annotations

import importlib.util

import torch


def obstacle(op: str, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why this backend cannot serve these tensors, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device.type != "cuda":
        return None  # an interpreter or a simulator: see dispatch.simulate_backend
    if not torch.cuda.is_available():
        return "no CUDA device here"
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"triton kernels are for sm_80 and later, not sm_{major}{minor}"
