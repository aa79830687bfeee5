"""Number formats of a run: autocast and gradient scaling where the device and the recipe ask for them."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

_DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


class Precision:
    """fp32 master weights throughout; on a GPU the forward may run in 16 bit, in fp16 with a gradient scaler.

    Args:
        name: "fp32", "fp16" or "bf16", as the recipe says.
        device: on a CPU everything runs in fp32; a GPU without bf16 (before sm_80) gets fp16 instead.
    """

    def __init__(self, name: str, device: torch.device):
        self.notice: str | None = None
        if device.type == "cpu":
            name = "fp32"
        elif name == "bf16" and torch.cuda.get_device_capability(device) < (8, 0):
            self.notice = "this GPU has no bf16: running in fp16 with a gradient scaler"
            name = "fp16"
        self.name = name
        self.device = device
        self.dtype = _DTYPES[name]
        self.scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None

    @property
    def gemm_dtype(self) -> torch.dtype:
        """The format that matrices are multiplied in, for calibration."""
        return self.dtype or torch.float32

    @property
    def scale(self) -> torch.Tensor | None:
        """The present loss scale as a device scalar, for the loss that computes its gradient in the forward."""
        if self.scaler is None:
            return None
        return self.scaler.scale(torch.ones((), device=self.device))

    def autocast(self) -> AbstractContextManager:
        """Context for the forward."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss to call backward on."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale, before clipping."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer step; with a scaler it is skipped when a gradient is not finite."""
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()

    def state(self) -> dict | None:
        """What a checkpoint has to keep."""
        return None if self.scaler is None else self.scaler.state_dict()

    def restore(self, state: dict | None) -> None:
        """The inverse of :meth:`state`."""
        if self.scaler is not None and state is not None:
            self.scaler.load_state_dict(state)
