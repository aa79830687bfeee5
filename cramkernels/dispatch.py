"""Which backend serves an operation: the CUDA library, Triton, or the plain PyTorch reference, and why.

A backend is a subpackage ``cramkernels.<backend>`` with one module per family, in which operation ``op`` is a pair of
functions ``<op>_forward`` and ``<op>_backward``. A backend that lacks them does not serve the operation.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch

FAMILIES = {
    "attention": "attention",
    "rotary": "attention",
    "layer_norm": "normalization",
    "add_layer_norm": "normalization",
    "layer_norm_gelu": "normalization",
    "gelu_layer_norm": "normalization",
    "geglu": "activation",
    "mlm_loss": "mlm_loss",
}
OPERATIONS = tuple(FAMILIES)
BACKENDS = ("cuda", "triton", "reference")
FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

_NONE: Mapping[str, str] = {}
_forced: ContextVar[Mapping[str, str]] = ContextVar("forced_backends", default=_NONE)  # operation -> backend
_fallen_back: dict[str, str] = {}  # operation -> why
_simulated: ContextVar[str | None] = ContextVar("simulated_backend", default=None)


class BackendChoice(NamedTuple):
    """The backend that serves an operation, and the reason in words."""

    backend: str
    reason: str


def backend_for(op: str, *, dtype: torch.dtype, device: torch.device | str) -> BackendChoice:
    """The backend that would serve ``op`` for tensors of this dtype and device, and why.

    Raises:
        ValueError: unknown operation, a dtype that the device does not have, or a backend forced by
            :func:`use_backend` that cannot serve this.
    """
    if op not in FAMILIES:
        raise ValueError(f"op: got {op!r}, want one of: {', '.join(OPERATIONS)}")
    if dtype not in FLOAT_DTYPES:
        raise ValueError(f"dtype: got {dtype}, want one of: {', '.join(map(str, FLOAT_DTYPES))}")
    device = torch.device(device)
    _check_bf16(dtype, device)
    forced = _forced.get().get(op)
    if forced is not None:
        obstacle = _obstacle(forced, op, dtype, device)
        if obstacle:
            raise ValueError(f"use_backend({forced!r}): cannot serve {op} here: {obstacle}")
        return BackendChoice(forced, "chosen by use_backend")
    passed_over: list[str] = []
    for backend in BACKENDS:
        obstacle = _obstacle(backend, op, dtype, device)
        if not obstacle:
            return BackendChoice(backend, "; ".join(passed_over) or f"the first choice on {device.type}")
        passed_over.append(f"not {backend}: {obstacle}")
    raise AssertionError("unreachable: the reference serves everything")


@contextmanager
def use_backend(name: str, operations: Collection[str] = OPERATIONS) -> Iterator[None]:
    """Within this context these operations run on the named backend, or raise ValueError where they cannot.

    The backward of what was recorded here runs there too, whenever and in whichever thread it comes.
    """
    if name not in BACKENDS:
        raise ValueError(f"name: got {name!r}, want one of: {', '.join(BACKENDS)}")
    unknown = set(operations) - set(OPERATIONS)
    if unknown:
        raise ValueError(f"operations: got {min(unknown)!r}, want some of: {', '.join(OPERATIONS)}")
    with resume_backends({**_forced.get(), **dict.fromkeys(operations, name)}):
        yield


def forced_backends() -> Mapping[str, str]:
    """What :func:`use_backend` asks for here, for :func:`resume_backends`."""
    return _forced.get()


@contextmanager
def resume_backends(forced: Mapping[str, str]) -> Iterator[None]:
    """As within the ``use_backend`` that ``forced`` was taken in: autograd runs the backward in threads of its own."""
    token = _forced.set(forced)
    try:
        yield
    finally:
        _forced.reset(token)


def fall_back(op: str, reason: str) -> None:
    """From now on, in this process, the reference serves ``op``, whatever else could."""
    if op not in FAMILIES:
        raise ValueError(f"op: got {op!r}, want one of: {', '.join(OPERATIONS)}")
    _fallen_back[op] = reason
    _implementation.cache_clear()


@contextmanager
def simulate_backend(name: str) -> Iterator[None]:
    """As :func:`use_backend`, for CPU tensors: its launches go to a simulator or an interpreter (see the tests)."""
    token = _simulated.set(name)
    try:
        with use_backend(name):
            yield
    finally:
        _simulated.reset(token)


def implementation(op: str, direction: str, x: torch.Tensor) -> Callable:
    """The function that runs ``op`` in ``direction`` ("forward" or "backward") for tensors like ``x``."""
    # the choice is made once for each kind of tensor and each backend asked for: a call must not pay for it again
    return _implementation(op, direction, x.dtype, x.device, _forced.get().get(op), _simulated.get())


@cache
def _implementation(op: str, direction: str, dtype, device, forced: str | None, simulated: str | None) -> Callable:
    backend = backend_for(op, dtype=dtype, device=device).backend
    return getattr(_module(backend, op), f"{op}_{direction}")


def _module(backend: str, op: str) -> ModuleType:
    return importlib.import_module(f"cramkernels.{backend}.{FAMILIES[op]}")


@cache
def _has_module(backend: str, family: str) -> bool:
    if importlib.util.find_spec(f"cramkernels.{backend}") is None:
        return False
    return importlib.util.find_spec(f"cramkernels.{backend}.{family}") is not None


def _obstacle(backend: str, op: str, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why this backend cannot serve, or None."""
    if backend == "reference":
        return None
    if op in _fallen_back:
        return _fallen_back[op]
    if device.type != "cuda" and backend != _simulated.get():
        return f"{device.type} tensors"
    if dtype == torch.float64:
        return "float64"
    if not _has_module(backend, FAMILIES[op]):
        return f"this version has no {backend} kernel for it"
    obstacle = importlib.import_module(f"cramkernels.{backend}").obstacle(op, dtype, device)
    if obstacle is None and not hasattr(_module(backend, op), f"{op}_forward"):
        return f"this version has no {backend} kernel for it"
    return obstacle


def _check_bf16(dtype: torch.dtype, device: torch.device) -> None:
    if dtype != torch.bfloat16 or device.type != "cuda" or not torch.cuda.is_available():
        return
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise ValueError(f"dtype: got bfloat16, but sm_{major}{minor} has none; use float16 or float32")
