"""The peers of the cost table: Liger's kernels and those that torch.compile writes, or why a row is absent."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

from benchmarks.cost_cases import EPS, Case, Named

LIGER, COMPILE = "Liger", "torch.compile"
PEERS = (LIGER, COMPILE)


class Absent(Exception):
    """A row that cannot be had, and why."""


def compared(case: Case) -> bool:
    """Liger has LayerNorm, and GEGLU without a bias."""
    return case.op in ("layer_norm", "geglu") and not case.linear_bias


def peer_case(peer: str, case: Case, direction: str, inputs: Named, multiprocessors: int) -> tuple[Callable, Named]:
    """(the call, its inputs): Liger takes the halves of GEGLU's input as two tensors."""
    if peer == COMPILE:
        from benchmarks import cost_inductor

        with _or_absent():
            call = cost_inductor.call(case, direction, inputs, multiprocessors)
        return _or_absent()(call), inputs
    if not liger_installed():
        raise Absent("not installed")
    if case.op == "layer_norm":
        return _liger_layer_norm(direction, inputs, multiprocessors), inputs
    if case.approximate != "tanh":
        raise Absent("has the tanh form only")
    linear, gated = (half.contiguous() for half in inputs["x"].chunk(2, -1))
    inputs = {"gated": gated, "linear": linear} | ({"grad": inputs["grad"]} if direction == "backward" else {})
    return _liger_geglu(direction, inputs), inputs


@contextmanager
def _or_absent() -> Iterator[None]:
    """The private interfaces of torch may have changed in any way: then there is no row, and the others stand."""
    try:
        yield
    except Exception as error:
        text = (str(error).splitlines() or [""])[0][:100]
        raise Absent(f"the generated kernels cannot be had: {type(error).__name__}: {text}") from error


@cache
def liger_installed() -> bool:
    """The optional package liger-kernel can be imported."""
    try:
        importlib.import_module("liger_kernel.ops.layer_norm")
    except ImportError:
        return False
    return True


def _liger_layer_norm(direction: str, n: Named, multiprocessors: int) -> Callable[[], Named]:
    from liger_kernel.ops import layer_norm

    def forward() -> Named:
        y, _, mean, rstd, _, _ = layer_norm.layer_norm_forward(n["x"], n["weight"], n["bias"], EPS)
        return {"y": y, "mean": mean, "rstd": rstd}

    def backward() -> Named:
        function = _sized_for(layer_norm.layer_norm_backward, multiprocessors)
        dx, dweight, dbias = function(n["grad"], n["x"], n["weight"], n["bias"], n["mean"], n["rstd"])
        return {"dx": dx, "dweight": dweight, "dbias": dbias}

    return forward if direction == "forward" else backward


def _liger_geglu(direction: str, n: Named) -> Callable[[], Named]:
    from liger_kernel.ops import geglu

    def forward() -> Named:
        return {"y": geglu.geglu_forward(n["gated"], n["linear"])[2]}

    def backward() -> Named:  # in place: the gradients overwrite the halves
        geglu.geglu_backward(n["gated"], n["linear"], n["grad"])
        return {}

    return forward if direction == "forward" else backward


@cache
def _sized_for(function: Callable, multiprocessors: int) -> Callable:
    """Liger's launcher, told the multiprocessors of a card: on CPU tensors it assumes one."""
    source = inspect.getsource(function)
    if source.count("sm_count = 1\n") != 1:
        raise Absent("this version's launcher cannot be told the number of multiprocessors")
    namespace = dict(vars(inspect.getmodule(function)))
    exec(source.replace("sm_count = 1\n", f"sm_count = {multiprocessors}\n"), namespace)
    return namespace[function.__name__]


def versions(*more: str) -> dict[str, str]:
    """Of what is compared: torch, Triton, Liger and these packages."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"torch": torch.__version__}
    for package in ("triton", "liger-kernel", *more):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
