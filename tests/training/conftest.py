"""Kernels of another backend, on a CPU: the reference's functions in their place, for a test to plant a mistake in."""

from __future__ import annotations

import importlib

import pytest

import cramkernels.cuda
from cramkernels import dispatch

FUNCTIONS = {
    (op, direction): f"{op}_{direction}" for op in dispatch.OPERATIONS for direction in ("forward", "backward")
}


@pytest.fixture
def stand_in_kernels(monkeypatch):
    """``plant(op, direction, change)``: the backend "cuda" serves CPU tensors, and ``change`` its results."""
    for (op, _), name in FUNCTIONS.items():
        monkeypatch.setattr(module("cuda", op), name, getattr(module("reference", op), name), raising=False)
    monkeypatch.setattr(cramkernels.cuda, "obstacle", lambda *_: None)
    monkeypatch.setattr(dispatch, "_fallen_back", {})
    token = dispatch._simulated.set("cuda")
    dispatch._implementation.cache_clear()

    def plant(op, direction, change):
        right = getattr(module("reference", op), FUNCTIONS[op, direction])
        monkeypatch.setattr(module("cuda", op), FUNCTIONS[op, direction], lambda *a: change(right(*a)))
        dispatch._implementation.cache_clear()

    yield plant
    dispatch._simulated.reset(token)
    dispatch._implementation.cache_clear()


def module(backend, op):
    """The module of an operation's family."""
    return importlib.import_module(f"cramkernels.{backend}.{dispatch.FAMILIES[op]}")
