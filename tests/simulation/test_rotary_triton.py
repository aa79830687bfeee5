"""Rotary embedding in Triton: compiled PTX executed with every check of the simulator."""

import pytest
import torch

from benchmarks import cost_cases, cost_count
from cramkernels import attention, rotary
from tests.cramkernels.cases import (
    BF16,
    DTYPES,
    FP16,
    FP32,
    KERNEL_ROTARY_CASES,
    ROTARY_CASES,
    AttentionCase,
    cumulative,
    rope_tables,
)
from tests.cramkernels.compare import assert_error_rule, exact, ours, plain, poisoned_memory
from tests.simulation.triton import simulated

pytest.importorskip("triton", reason="triton is not installed")
CASES = [*KERNEL_ROTARY_CASES, *(case for case in ROTARY_CASES if case.head_dim in (32, 64))]
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def run(case, architecture, proof):
    arguments = case.arguments()
    with simulated(architecture) as executed:
        results = ours(case, arguments)
    assert len(executed) == 2  # forward and backward
    proof(f"Triton sm_{architecture} executed", {f"{case.op} {case.dtype} {name}" for name in executed.symbols()})
    assert_error_rule(results, plain(case, arguments), exact(case, arguments), case.dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sm_80(case, proof):
    run(case, 80, proof)


@pytest.mark.exhaustive
@pytest.mark.parametrize("architecture", [86, 89])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_other_architectures(case, architecture, proof):
    run(case, architecture, proof)


def both(arguments, grad):
    """Output and gradient."""
    qkv = arguments["qkv_T3HD"].clone().requires_grad_()
    with simulated(80), poisoned_memory():
        y = rotary(**{**arguments, "qkv_T3HD": qkv})
        return y.detach(), torch.autograd.grad(y, qkv, grad)[0]


@EVERY_DTYPE
def test_what_passes_is_the_same_bits(dtype):
    """Values, and tokens outside every sequence, whatever they hold."""
    case = AttentionCase("rotary", dtype, lengths=(9, 0, 30), heads=3, head_dim=64, outside=(2, 3))
    arguments = case.arguments()
    qkv = arguments["qkv_T3HD"]
    qkv[:2], qkv[-3:] = float("inf"), -0.0
    for x in both(arguments, qkv):
        assert x[:2].equal(qkv[:2]) and x[-3:].equal(qkv[-3:]) and x[-3:].signbit().all()
        assert x[:, 2].equal(qkv[:, 2]) and not x[3:-3, :2].equal(qkv[3:-3, :2])


@EVERY_DTYPE
def test_the_backward_undoes_the_forward(dtype):
    case = AttentionCase("rotary", dtype, lengths=(40, 7), heads=2, head_dim=32)
    arguments = case.arguments()
    y, _ = both(arguments, arguments["qkv_T3HD"])
    _, back = both(arguments, y)
    torch.testing.assert_close(back, arguments["qkv_T3HD"], rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_the_same_bits_twice():
    case = KERNEL_ROTARY_CASES[2]
    arguments = case.arguments()
    with simulated(80):
        first, again = ours(case, arguments), ours(case, arguments)
    assert all(first[name].equal(again[name]) for name in first)


def test_rope_in_attention_is_rotary_before_it():
    """In fp32, where no rounding of the rotated lies between."""
    case = AttentionCase("attention", FP32, lengths=(40, 70), heads=1, head_dim=64, rope=True)
    arguments = case.arguments()
    apart = dict(arguments)
    cos, sin = apart.pop("rope")
    with simulated(80):
        fused = attention(**arguments)
        turned = rotary(apart["qkv_T3HD"], cos, sin, apart["cu_seqlens"])
        assert attention(**{**apart, "qkv_T3HD": turned}).sub(fused).abs().max() < 2e-6


def test_strided_tables_and_tokens():
    cos, sin = rope_tables(20, 64, torch.Generator().manual_seed(1))
    qkv = torch.randn(20, 3, 4, 80, generator=torch.Generator().manual_seed(2)).half()[:, :, 1:3, 8:40]
    assert not qkv.is_contiguous() and not cos[:, ::2].is_contiguous()
    cu_seqlens = cumulative([13, 7])
    with simulated(80):
        got = rotary(qkv, cos[:, ::2], sin[:, ::2].double(), cu_seqlens)
    want = rotary(qkv, cos[:, ::2], sin[:, ::2], cu_seqlens)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-3)


def test_tables_that_are_too_short_give_nan_and_nothing_is_read():
    """The public function notices on a CPU; on a card it cannot look without waiting, so this is the backend's own."""
    from cramkernels.triton.attention import rotary_forward

    cos, sin = rope_tables(5, 32, torch.Generator().manual_seed(1))
    qkv = torch.ones(9, 3, 1, 32, dtype=FP16)
    with simulated(80):
        y = rotary_forward(qkv, cos, sin, cumulative([7, 2]))
    assert y[5:7, :2].isnan().all() and y[[0, 4, 7, 8]].isfinite().all() and y[:, 2].isfinite().all()


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("dtype, head_dim", [(BF16, 64), (FP32, 64), (BF16, 32), (FP16, 128)], ids=str)
def test_every_byte_moves_once(dtype, head_dim, direction):
    from cramkernels.triton import attention as kernels

    case = AttentionCase("rotary", dtype, lengths=(128, 60, 68), heads=6, head_dim=head_dim)
    arguments = case.arguments()
    x, cos, sin, cu_seqlens = (arguments[name] for name in ("qkv_T3HD", "cos", "sin", "cu_seqlens"))
    function = getattr(kernels, f"rotary_{direction}")
    counts = cost_count.counted(
        cost_cases.simulation(cost_cases.TRITON), lambda: {"y": function(x, cos, sin, cu_seqlens)}, {"x": x}, 82
    )
    ratios = {tensor.name: tensor.ratio for tensor in counts.of(cost_count.ACTIVATION)}
    assert ratios == {"x": 1.0, "y": 1.0}
    assert counts.bank_conflicts == 0
