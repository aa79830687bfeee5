"""Which backend serves what, and how to say otherwise."""

import re
import threading

import pytest
import torch

from cramkernels import BackendChoice, backend_for, layer_norm, use_backend
from cramkernels.dispatch import BACKENDS, OPERATIONS, implementation, simulate_backend
from tests.cramkernels.strategies import random

X, WEIGHT = random(3, 8, seed=1, dtype=torch.float32), random(8, seed=2, dtype=torch.float32)


def default():
    return backend_for("layer_norm", dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_reference_serves_the_cpu(op, dtype):
    choice = backend_for(op, dtype=dtype, device=torch.device("cpu"))
    assert isinstance(choice, BackendChoice)
    assert choice == ("reference", "not cuda: cpu tensors; not triton: cpu tensors")


@pytest.mark.parametrize("op", OPERATIONS)
def test_fp64_is_for_the_reference_everywhere(op):
    choice = backend_for(op, dtype=torch.float64, device="cuda")
    assert choice == ("reference", "not cuda: float64; not triton: float64")


@pytest.mark.parametrize("op", OPERATIONS)
def test_every_backend_has_a_forward_and_a_backward(op):
    for direction in ("forward", "backward"):
        assert callable(implementation(op, direction, X))
        assert implementation(op, direction, X).__name__ == f"{op}_{direction}"


def test_unknown_names():
    with pytest.raises(ValueError, match=re.escape("op: got 'softmax', want one of: attention, rotary,")):
        backend_for("softmax", dtype=torch.float32, device="cpu")
    with pytest.raises(ValueError, match=re.escape("dtype: got torch.int64, want one of: torch.float32")):
        backend_for("geglu", dtype=torch.int64, device="cpu")
    with pytest.raises(ValueError, match=re.escape("name: got 'numpy', want one of: cuda, triton, reference")):
        with use_backend("numpy"):
            pytest.fail("entered")
    assert default().backend == "reference"


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_backend_that_cannot_serve_says_why(name):
    with use_backend(name):
        with pytest.raises(ValueError, match=re.escape(f"use_backend('{name}'): cannot serve layer_norm here: cpu")):
            layer_norm(X, WEIGHT, eps=1e-5)
    assert torch.isfinite(layer_norm(X, WEIGHT, eps=1e-5)).all()


def test_nested_choices_are_undone_in_turn():
    with use_backend("reference"):
        assert default() == ("reference", "chosen by use_backend")
        with use_backend("triton"):
            with pytest.raises(ValueError, match="triton"):
                default()
        assert default() == ("reference", "chosen by use_backend")
    assert default().reason != "chosen by use_backend"


def test_an_exception_undoes_the_choice():
    with pytest.raises(RuntimeError), use_backend("triton"):
        raise RuntimeError
    assert default().backend == "reference"


def test_other_threads_are_not_affected():
    seen = []
    with use_backend("triton"):
        thread = threading.Thread(target=lambda: seen.append(default()))
        thread.start()
        thread.join()
    assert [choice.backend for choice in seen] == ["reference"]


def test_the_forced_reference_gives_the_same_bits():
    expected = layer_norm(X, WEIGHT, eps=1e-5)
    with use_backend("reference"):
        assert torch.equal(layer_norm(X, WEIGHT, eps=1e-5), expected)


def test_turing_has_no_bf16(monkeypatch):
    """A 2080 Ti or T4: the message says what to use instead."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    for op in OPERATIONS:
        with pytest.raises(ValueError, match=re.escape("dtype: got bfloat16, but sm_75 has none; use float16 or")):
            backend_for(op, dtype=torch.bfloat16, device="cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 6))
    assert backend_for("geglu", dtype=torch.bfloat16, device="cuda:0").backend in BACKENDS


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_each_reason_is_given_for_a_card_that_is_not_there(backend, monkeypatch):
    """As `info` would say it on a machine without a card, for CUDA tensors."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    choice = backend_for("layer_norm", dtype=torch.float16, device="cuda")
    assert choice.backend == "reference" and f"not {backend}: no CUDA device here" in choice.reason
    assert f"not {backend}: float64" in backend_for("layer_norm", dtype=torch.float64, device="cuda").reason


def test_a_simulated_backend_needs_its_hook():
    """Without one the library would be handed addresses of the CPU."""
    with simulate_backend("cuda"), pytest.raises((ValueError, RuntimeError), match="cpu tensors, and no launch hook"):
        layer_norm(torch.randn(3, 24), torch.ones(24), eps=1e-6)
