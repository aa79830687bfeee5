"""The CUDA C++ backend: csrc/ through a plain C ABI. One module per family, the same names as in the reference."""

from __future__ import annotations

import torch

from cramkernels import library


def obstacle(op: str, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why this backend cannot serve these tensors, or None."""
    if library.hook_installed():
        return None
    return library.obstacle(device.index if device.index is not None else torch.cuda.current_device())
