"""The CUDA C++ backend: csrc/ through a plain C ABI. One module per family, the same names as in the reference."""

from __future__ import annotations

import torch

from cramkernels import library


def obstacle(op: str, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why this backend cannot serve these tensors, or None."""
    if device.type != "cuda":
        return None if library.hook_installed() else "cpu tensors, and no launch hook"
    if not torch.cuda.is_available():
        return "no CUDA device here"
    return library.obstacle(device.index if device.index is not None else torch.cuda.current_device())
