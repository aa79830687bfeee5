"""Argument checks shared by the public operations. Messages name the argument, what was given, what is accepted."""

from __future__ import annotations

import torch

ACTIVATION_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# of a parameter, by the dtype of the activations: the same, or fp32 beside 16 bits
PARAMETER_DTYPES = {dtype: (dtype,) for dtype in ACTIVATION_DTYPES} | {
    dtype: (dtype, torch.float32) for dtype in (torch.float16, torch.bfloat16)
}
APPROXIMATIONS = ("none", "tanh")


def check_tensor(name: str, x: torch.Tensor, *, dims: int | None = None, like: torch.Tensor | None = None) -> None:
    """A float tensor of ``dims`` dimensions, on the device of ``like``."""
    if not isinstance(x, torch.Tensor):
        raise ValueError(f"{name}: got {type(x).__name__}, want a tensor")
    if x.dtype not in ACTIVATION_DTYPES:
        raise ValueError(f"{name}: got dtype {x.dtype}, want one of: {', '.join(map(str, ACTIVATION_DTYPES))}")
    if dims is not None and x.dim() != dims:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, want {dims} dimensions")
    if like is not None and x.device != like.device:
        raise ValueError(f"{name}: got device {x.device}, want {like.device}")


def check_vector(name: str, x: torch.Tensor | None, size: int, like: torch.Tensor) -> None:
    """A parameter vector of ``size`` elements: of the dtype of ``like``, or fp32 beside 16-bit activations."""
    if x is None:
        return
    # the common case in one condition, since every call pays for it; what follows finds the words
    if isinstance(x, torch.Tensor) and x.shape == (size,) and x.device == like.device:
        if x.dtype in PARAMETER_DTYPES[like.dtype]:
            return
    check_tensor(name, x, dims=1, like=like)
    if x.shape[0] != size:
        raise ValueError(f"{name}: got {x.shape[0]} elements, want {size}")
    check_parameter_dtype(name, x, like)


def check_parameter_dtype(name: str, x: torch.Tensor, like: torch.Tensor) -> None:
    """The dtype of the activations, or float32 beside 16-bit activations."""
    if x.dtype not in PARAMETER_DTYPES[like.dtype]:
        raise ValueError(f"{name}: got dtype {x.dtype}, want {like.dtype} (or float32 beside 16-bit activations)")


def check_integers(name: str, x: torch.Tensor, like: torch.Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """A vector of indices on the device of ``like``."""
    if not isinstance(x, torch.Tensor):
        raise ValueError(f"{name}: got {type(x).__name__}, want a tensor")
    if x.dim() != 1 or x.dtype not in dtypes:
        raise ValueError(
            f"{name}: got {x.dtype} of shape {tuple(x.shape)}, want a vector of {' or '.join(map(str, dtypes))}"
        )
    if x.device != like.device:
        raise ValueError(f"{name}: got device {x.device}, want {like.device}")


def check_dropout(dropout_p: float, seed: int | torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    """Check rate and seed, and give the seed as an int64 scalar on the device, or None without dropout."""
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p: got {dropout_p}, want a number in [0, 1)")
    if dropout_p == 0.0:
        return None
    if seed is None:
        raise ValueError("seed: got None, want an int or an int64 scalar tensor when dropout_p > 0")
    if isinstance(seed, torch.Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise ValueError(f"seed: got {seed.dtype} of shape {tuple(seed.shape)}, want an int64 scalar")
        return seed.reshape(()).to(device)
    if not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed: got {seed!r}, want an int of 64 bits or an int64 scalar tensor")
    return torch.tensor(seed, dtype=torch.int64, device=device)


def check_approximate(approximate: str) -> None:
    """The GELU variant."""
    if approximate not in APPROXIMATIONS:
        raise ValueError(f"approximate: got {approximate!r}, want 'none' (erf) or 'tanh'")
