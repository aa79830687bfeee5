"""The Triton kernels of attention: compiled PTX executed with every check of the simulator, the 2x error rule."""

import pytest
import torch

import cramkernels
from tests.cramkernels.cases import (
    BF16,
    DTYPES,
    FP32,
    KERNEL_ATTENTION_CASES,
    LONG_ATTENTION_CASES,
    LONG_VARIED,
    SHORT_ATTENTION_CASES,
    WINDOW_0,
    AttentionCase,
)
from tests.cramkernels.compare import assert_error_rule, exact, ours, plain, poisoned_memory
from tests.simulation.triton import simulated

pytest.importorskip("triton", reason="triton is not installed")
CASES = [*SHORT_ATTENTION_CASES, *KERNEL_ATTENTION_CASES, *LONG_ATTENTION_CASES]
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
LENGTHS = pytest.mark.parametrize("lengths", [(50, 3, 0, 70, 30), (50, 3, 0, 150, 30)], ids=["short", "long"])


def run(case, architecture, proof):
    arguments = case.arguments()
    with simulated(architecture) as executed:
        results = ours(case, arguments)
    assert {name.split("_")[2] for name in executed.symbols()} >= {"forward", "backward"}
    proof(f"Triton sm_{architecture} executed", {f"{case.op} {case.dtype} {name}" for name in executed.symbols()})
    assert_error_rule(results, plain(case, arguments), exact(case, arguments), case.dtype)
    return executed


@pytest.mark.parametrize("case", CASES[::4], ids=str)
def test_sm_80(case, proof):
    run(case, 80, proof)


@pytest.mark.exhaustive
@pytest.mark.parametrize("architecture", [80, 86, 89])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_everything(case, architecture, proof):
    run(case, architecture, proof)


def test_no_bank_conflicts(proof):
    """In no 16-bit kernel; with fp32, whose products need operands that ldmatrix cannot turn, none on the way in."""
    for dtype, lengths, rope in ((BF16, (128,), True), (BF16, (200,), False), (FP32, (70,), False)):
        case = AttentionCase("attention", dtype, lengths=lengths, heads=1, head_dim=64, rope=rope)
        for name, result in run(case, 80, proof):
            assert result.stats.shared_store.bank_conflicts == 0, name
            assert dtype == FP32 or result.stats.shared_load.bank_conflicts == 0, name


@LENGTHS
def test_the_same_bits_twice(lengths):
    case = AttentionCase("attention", BF16, lengths=lengths, head_dim=32, rope=True, masked=0.2,
                         options=(("dropout_p", 0.2), ("seed", 5)))  # fmt: skip
    arguments = case.arguments()
    with simulated(80):
        first, again = ours(case, arguments), ours(case, arguments)
    assert all(first[name].equal(again[name]) for name in first)


def forward_and_gradient(arguments, grad=None):
    """Output and gradient, for an incoming gradient of all ones, in the simulator; memory is poisoned."""
    qkv = arguments["qkv_T3HD"].clone().requires_grad_()
    with simulated(80), poisoned_memory():
        out = cramkernels.attention(**{**arguments, "qkv_T3HD": qkv})
        grad = torch.ones_like(out) if grad is None else grad
        return out.detach(), torch.autograd.grad(out, qkv, grad)[0]


@EVERY_DTYPE
def test_a_window_of_zero_sees_itself_alone(dtype):
    """O = V, dV = dO, and dQ and dK are what is left of dP - delta = 0: ulps of dP."""
    case = AttentionCase("attention", dtype, **LONG_VARIED, options=WINDOW_0)
    arguments = case.arguments()
    qkv, inside = arguments["qkv_T3HD"], slice(case.outside[0], -case.outside[1])
    grad = torch.randn(qkv[:, 0].shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    out, dqkv = forward_and_gradient(arguments, grad)
    assert out[inside].equal(qkv[inside, 2])
    # the recomputed probability is exp(score - lse)
    q, k, v = (part.double() for part in qkv[inside].unbind(1))
    ulp, scale = torch.finfo(torch.float32).eps, case.head_dim**-0.5
    score = scale * (q * k).sum(-1).abs().max().item()
    dp = (grad[inside].double() * v).abs().sum(-1).max().item()
    rounded = torch.finfo(dtype).eps * grad.double().abs().max().item() if dtype != FP32 else 0.0
    off_v = (dqkv[inside, 2].double() - grad[inside].double()).abs().max().item()
    assert off_v <= ulp * (1 + score) * grad.double().abs().max().item() + rounded
    cancelled = ulp * (1 + score) * dp * scale
    assert dqkv[inside, 0].double().abs().max().item() <= cancelled * k.abs().max().item()
    assert dqkv[inside, 1].double().abs().max().item() <= cancelled * q.abs().max().item()
    assert not dqkv[: case.outside[0]].any() and not dqkv[-case.outside[1] :].any()
