"""The registered operators ``cramkernels::*`` under torch.library.opcheck: schema, autograd, fake implementations."""

import importlib

import pytest
import torch

from cramkernels.dispatch import FAMILIES
from tests.cramkernels.cases import cumulative, rope_tables
from tests.cramkernels.strategies import random

FP32, BF16 = torch.float32, torch.bfloat16
CU_SEQLENS = cumulative((3, 0, 2), 1)
COS, SIN = rope_tables(4, 8, torch.Generator().manual_seed(1))
SEED = torch.tensor(11)
LABELS = torch.tensor([1, -100, 4, 0, 2])


def leaf(*shape, seed=1, dtype=FP32):
    return random(*shape, seed=seed + len(shape), dtype=dtype).requires_grad_()


def loss(grad_scale=None, recompute=False, want=(True, True, True), dtype=FP32, bias=True):
    parameters = (leaf(5, 8, dtype=dtype), leaf(9, 8), LABELS, leaf(9) if bias else None)
    return (*parameters, -100, 0.1, 0.1, 3.0, 80, grad_scale, recompute, *want)


KEY_MASK = torch.tensor([True, False, True, True, True, False, True])

SAMPLES = {
    "attention": [
        (leaf(7, 3, 2, 8), CU_SEQLENS, 3, None, None, None, None, 0.4, 0.0, None),
        (leaf(7, 3, 2, 8, dtype=BF16), CU_SEQLENS, 3, COS, SIN, KEY_MASK, 1, 0.4, 0.25, SEED),
    ],
    "rotary": [(leaf(7, 3, 2, 8), COS, SIN, CU_SEQLENS)],
    "layer_norm": [(leaf(5, 12), leaf(12), leaf(12), 1e-5), (leaf(2, 3, 12, dtype=BF16), leaf(12), None, 1e-5)],
    "add_layer_norm": [
        (leaf(5, 12), leaf(5, 12, seed=2), leaf(12), leaf(12), 1e-5, 0.0, None),
        (leaf(5, 12, dtype=BF16), leaf(5, 12), leaf(12), None, 1e-5, 0.3, SEED),
    ],
    "layer_norm_gelu": [(leaf(5, 12), leaf(12), leaf(12), 1e-5, "none"), (leaf(5, 12), leaf(12), None, 1e-5, "tanh")],
    "gelu_layer_norm": [
        (leaf(5, 12), leaf(12), leaf(12), leaf(12), 1e-5, "none"),
        (leaf(5, 12, dtype=BF16), leaf(12), None, None, 1e-5, "tanh"),
    ],
    "geglu": [(leaf(5, 12), leaf(12), "none", "second"), (leaf(2, 3, 12, dtype=BF16), None, "tanh", "first")],
    "mlm_loss": [
        loss(),
        loss(recompute=True, bias=False, want=(True, True, False)),
        loss(dtype=BF16, grad_scale=torch.tensor(8.0)),
        loss(want=(False, True, False)),
    ],
}
EACH = [
    pytest.param(name, sample, id=f"{name}-{number}")
    for name, samples in SAMPLES.items()
    for number, sample in enumerate(samples)
]


def operator(name):
    return getattr(torch.ops.cramkernels, name).default


@pytest.mark.parametrize(("name", "sample"), EACH)
def test_forward_operators(name, sample):
    """Schema, autograd registration, fake tensors, and AOT dispatch with dynamic shapes, backward included."""
    torch.library.opcheck(operator(name), sample)


def captured_backward(name, sample):
    """The arguments with which autograd calls the backward operator."""
    calls = []

    class Capture(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is operator(f"{name}_backward"):
                calls.append(tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in args))
            return function(*args, **(kwargs or {}))

    outputs = operator(name)(*sample)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    with Capture():
        for number, output in enumerate(outputs):
            if output.requires_grad:
                leaves = [x for x in sample if isinstance(x, torch.Tensor) and x.requires_grad]
                grad = random(*output.shape, seed=number, dtype=output.dtype)
                torch.autograd.grad(output, leaves, grad, retain_graph=True, allow_unused=True)
    return calls


@pytest.mark.parametrize(("name", "sample"), EACH)
def test_backward_operators(name, sample):
    """Called as autograd calls them: for add_layer_norm, with either of the incoming gradients missing too."""
    calls = captured_backward(name, sample)
    direct = name == "mlm_loss" and not sample[10]  # made in the forward
    assert len(calls) == (0 if direct else 2 if name == "add_layer_norm" else 1)
    for arguments in calls:
        torch.library.opcheck(operator(f"{name}_backward"), arguments)


TRANSPOSED = {
    "layer_norm": (leaf(12, 5).detach().t(), leaf(12), leaf(12), 1e-5),
    "add_layer_norm": (leaf(12, 5).detach().t(), leaf(12, 5, seed=2).detach().t(), leaf(12), None, 1e-5, 0.0, None),
    "layer_norm_gelu": (leaf(12, 5).detach().t(), leaf(12), None, 1e-5, "none"),
    "gelu_layer_norm": (leaf(12, 5).detach().t(), leaf(12), None, None, 1e-5, "none"),
    "geglu": (leaf(12, 5).detach().t(), None, "none", "second"),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_fake_strides_of_transposed_inputs(name):
    """Compiled code trusts the strides that the fake implementation promises."""
    torch.library.opcheck(operator(name), TRANSPOSED[name], test_utils="test_faketensor")
    differentiable = tuple(
        x.clone().requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for x in TRANSPOSED[name]
    )
    for arguments in captured_backward(name, differentiable):
        torch.library.opcheck(operator(f"{name}_backward"), arguments, test_utils="test_faketensor")


@pytest.mark.parametrize(("name", "sample"), EACH)
def test_the_operator_equals_the_function(name, sample):
    """Eager calls go around the dispatcher: both ways give the same bits, gradients included."""
    through = operator(name)(*sample)
    eager = getattr(importlib.import_module(f"cramkernels.{FAMILIES[name]}"), f"_{name}")(*sample)
    through, eager = (x if isinstance(x, tuple) else (x,) for x in (through, eager))
    for one, other in zip(through, eager, strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype and one.requires_grad == other.requires_grad


def test_every_operation_is_registered():
    for name in FAMILIES:
        assert name in SAMPLES
        assert operator(name) and operator(f"{name}_backward")
