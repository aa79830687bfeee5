"""Tensors without data: shapes and dtypes come out, and nothing reads.

Meta tensors are on a device that is no CPU, so operations treat them as a GPU's, and any read fails: these tests show
that no operation waits for the device. Fake tensors stand for one of a CPU or GPU, as torch.compile and exporters do.
"""

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import cramkernels
from tests.cramkernels.cases import DIFFERENTIABLE, AttentionCase, LossCase, RowCase
from tests.cramkernels.test_operators import SAMPLES, operator

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
DROPOUT = (("dropout_p", 0.1), ("seed", 3))
CASES = [
    AttentionCase("attention", FP32, lengths=(5, 5)),
    AttentionCase("attention", BF16, lengths=(3, 0, 7), outside=(1, 2), rope=True, options=(("window", 2), *DROPOUT)),
    AttentionCase("attention", FP32, lengths=()),
    AttentionCase("rotary", FP16, lengths=(3, 0, 7)),
    RowCase("layer_norm", BF16, FP32, shape=(2, 3, 32)),
    RowCase("add_layer_norm", BF16, FP32, shape=(5, 32), residual_dtype=FP32, options=DROPOUT),
    RowCase("layer_norm_gelu", FP16, shape=(0, 32)),
    RowCase("gelu_layer_norm", FP32, shape=(5, 32), linear_bias=True),
    RowCase("geglu", BF16, shape=(5, 32), linear_bias=True),
    LossCase("mlm_loss", FP32, tokens=9, masked=5),
    LossCase("mlm_loss", BF16, FP32, tokens=9, options=(("grad_scale", 8.0), ("logits_bytes", 1000), ("softcap", 3.0))),
    LossCase("mlm_loss", FP16, tokens=9, masked=5, bias=False, options=(("mode", "recompute"),)),
]


@pytest.mark.parametrize(
    ("kind", "case"),
    [pytest.param(kind, case, id=f"{kind}-{case}") for kind in ("meta", "fake cpu") for case in CASES],
)
def test_outputs_and_gradients(case, kind):
    """They agree with a real run in everything but data."""
    device = kind.split()[-1]
    arguments = case.arguments()
    real = getattr(cramkernels, case.op)(**arguments)
    with FakeTensorMode() if kind == "fake cpu" else nullcontext():
        arguments = {name: fake(value, device) for name, value in arguments.items()}
        leaves = [arguments[name].requires_grad_() for name in DIFFERENTIABLE[case.op] if name in arguments]
        outputs = getattr(cramkernels, case.op)(**arguments)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        differentiable = [output for output in outputs if output.requires_grad]
        gradients = torch.autograd.grad(differentiable, leaves, [torch.empty_like(output) for output in differentiable])
    assert_alike(outputs, real, device)
    assert_alike(gradients, tuple(leaves), device)


@pytest.mark.parametrize(
    ("name", "sample"), [(name, sample) for name, samples in SAMPLES.items() for sample in samples],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_operators_on_a_fake_gpu(name, sample):
    """The operators' fake implementations, as a compiler calls them for a GPU that this machine need not have."""
    real = operator(name)(*sample)
    with FakeTensorMode(), torch.no_grad():
        outputs = operator(name)(*(fake(value, "cuda") for value in sample))
    assert_alike(outputs, real, "cuda")


def fake(value, device):
    """Within the mode, ``torch.empty`` makes a fake tensor, on any device."""
    if isinstance(value, tuple):
        return tuple(fake(part, device) for part in value)
    return torch.empty(value.shape, dtype=value.dtype, device=device) if isinstance(value, torch.Tensor) else value


def assert_alike(outputs, real, device):
    outputs, real = (x if isinstance(x, tuple) else (x,) for x in (outputs, real))
    for one, other in zip(outputs, real, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype and one.device.type == device
