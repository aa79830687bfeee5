"""The Triton kernels of attention: compiled PTX executed with every check of the simulator, the 2x error rule."""

import pytest
import torch

import cramkernels
from benchmarks import tilings
from cramkernels import configurations
from cramkernels.attention import attention_with_lse
from cramkernels.dispatch import simulate_backend
from tests.cramkernels import oracle
from tests.cramkernels.cases import (
    BF16,
    DTYPES,
    FP16,
    FP32,
    KERNEL_ATTENTION_CASES,
    LONG_ATTENTION_CASES,
    SEES_ITSELF_CASES,
    SHORT_ATTENTION_CASES,
    AttentionCase,
    cumulative,
)
from tests.cramkernels.compare import assert_error_rule, exact, in_double, ours, plain, poisoned_memory
from tests.simulation.triton import simulated

pytest.importorskip("triton", reason="triton is not installed")
CASES = [*SHORT_ATTENTION_CASES, *KERNEL_ATTENTION_CASES, *LONG_ATTENTION_CASES]
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
ONLY_EXHAUSTIVE = [pytest.param(dtype, marks=pytest.mark.exhaustive) for dtype in (FP16, FP32)]
# fp16 differs from bf16 in conversions and the product's name
FP16_IF_EXHAUSTIVE = pytest.mark.parametrize("dtype", [FP32, BF16, ONLY_EXHAUSTIVE[0]], ids=str)
LENGTHS = pytest.mark.parametrize("lengths", [(50, 3, 0, 70, 30), (50, 3, 0, 150, 30)], ids=["short", "long"])


def run(case, architecture, proof):
    arguments = case.arguments()
    with simulated(architecture) as executed:
        results = ours(case, arguments)
    assert {name.split("_")[2] for name in executed.symbols()} >= {"forward", "backward"}
    proof(f"Triton sm_{architecture} executed", {f"{case.op} {case.dtype} {name}" for name in executed.symbols()})
    assert_error_rule(results, plain(case, arguments), exact(case, arguments), case.dtype)
    return executed


@pytest.mark.parametrize("case", [case for case in CASES[::9] if sum(case.lengths) < 500], ids=str)
def test_sm_80(case, proof):
    run(case, 80, proof)


@pytest.mark.exhaustive
@pytest.mark.parametrize("architecture", [80, 86, 89])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_everything(case, architecture, proof):
    run(case, architecture, proof)


OPTIONS = (("window", 70), ("dropout_p", 0.2), ("seed", 2**40 + 3))
MID_CASES = [
    AttentionCase("attention", BF16, lengths=(137, 0, 250, 3), heads=2, head_dim=32, outside=(3, 5), rope=True),
    AttentionCase("attention", BF16, lengths=(130, 255), heads=1, head_dim=64, rope=True, masked=0.3, options=OPTIONS),
    AttentionCase("attention", FP16, lengths=(1, 512), heads=1, head_dim=64, options=OPTIONS[1:]),
]


@pytest.mark.parametrize("case", [*MID_CASES[:2], pytest.param(MID_CASES[2], marks=pytest.mark.exhaustive)], ids=str)
def test_the_backward_of_several_tiles_is_one_kernel(case, proof):
    assert set(run(case, 80, proof).symbols()) == {"_attention_forward_kernel", "_attention_backward_mid_kernel"}


def test_every_row_of_the_table_has_a_case(monkeypatch):
    """What is launched for each case is recorded here, not executed."""
    from cramkernels.triton import attention as launchers

    def out_and_lse(qkv, *_):
        return torch.zeros_like(qkv[:, 0]), torch.zeros(qkv.shape[2], len(qkv))

    chosen = set()
    monkeypatch.setattr(configurations, "_tiling", lambda *call: chosen.add(configurations.key_for(*call[:5])))
    monkeypatch.setattr(launchers.forward, "attention_forward", out_and_lse)
    monkeypatch.setattr(launchers.backward, "attention_backward", lambda _, qkv, *__: torch.zeros_like(qkv))
    monkeypatch.setattr(launchers.mid_backward, "attention_mid_backward", lambda _, qkv, *__: torch.zeros_like(qkv))
    with simulate_backend("triton"):
        for case in (*CASES, *MID_CASES):
            ours(case, case.arguments())
    assert not [key for key in configurations.KEYS if tilings.is_triton(key) and key not in chosen]


def test_longer_sequences_are_cut(proof):
    case = AttentionCase("attention", BF16, lengths=(513, 20), heads=1, head_dim=32, options=OPTIONS[:1])
    kernels = set(run(case, 80, proof).symbols())
    assert kernels == {"_attention_forward_kernel", "_attention_delta_kernel", "_attention_backward_kernel"}


@pytest.mark.parametrize("rope", [False, True], ids=["", "rope"])
@pytest.mark.parametrize("lengths", [(128,), (200,)], ids=["short", "long"])
@FP16_IF_EXHAUSTIVE
def test_no_bank_conflicts(dtype, lengths, rope, proof):
    """In no load, and in no store of 16-bit kernels or of a forward; the fp32 backward's small tiles exchange more."""
    case = AttentionCase("attention", dtype, lengths=lengths, heads=1, head_dim=64, rope=rope)
    for name, result in run(case, 80, proof):
        loads, stores = result.stats.shared_load, result.stats.shared_store
        exchanged = stores.wavefronts / 5 if dtype == FP32 and "backward" in name else 0
        assert loads.bank_conflicts == 0 and stores.bank_conflicts <= exchanged, name


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


@pytest.mark.parametrize("case", SEES_ITSELF_CASES, ids=str)
def test_a_query_that_sees_itself_alone(case):
    """O = V, in 16 bits to the bit; dV = dO; and dQ and dK are what is left of dP - delta = 0: ulps of dP."""
    arguments = case.arguments()
    qkv = arguments["qkv_T3HD"]
    before, after = case.outside
    inside = slice(before, len(qkv) - after)
    grad = torch.randn(qkv[:, 0].shape, generator=torch.Generator().manual_seed(3)).to(case.dtype)
    out, dqkv = forward_and_gradient(arguments, grad)
    assert ((out - qkv[:, 2])[inside].abs() <= torch.finfo(FP32).eps * qkv[inside, 2].abs()).all()
    for outside in (slice(before), slice(len(qkv) - after, None)):
        assert not out[outside].any() and not dqkv[outside].any()
    q, k, v = (part.double() for part in qkv[inside].unbind(1))
    dq, dk, dv = (part.double() for part in dqkv[inside].unbind(1))
    do, scale = grad[inside].double(), case.head_dim**-0.5
    # the probability is exp(score - lse), of which both are rounded, and so is each of the sums dP and delta
    relative = torch.finfo(FP32).eps * (1 + scale * (q * k).sum(-1).abs().max())
    rounding = 0.0 if case.dtype == FP32 else torch.finfo(case.dtype).eps / 2
    assert ((dv - do).abs() <= (relative + rounding) * do.abs()).all()
    left = relative * scale * (do * v).abs().sum(-1).max()
    assert dq.abs().max() <= left * k.abs().max() and dk.abs().max() <= left * q.abs().max()


@pytest.mark.parametrize("masked", [0.0, 0.3], ids=["", "masked"])
@LENGTHS
@EVERY_DTYPE
def test_lse(dtype, lengths, masked):
    case = AttentionCase("attention", dtype, lengths=lengths, heads=1, head_dim=32, outside=(2, 1), masked=masked)
    arguments = case.arguments()
    with simulated(80), poisoned_memory():
        lse = attention_with_lse(**arguments)[1]
    assert lse.dtype == FP32
    torch.testing.assert_close(lse, attention_with_lse(**in_double(arguments))[1].float(), rtol=1e-6, atol=2e-6)


@LENGTHS
@pytest.mark.parametrize("dtype", [BF16, *ONLY_EXHAUSTIVE], ids=str)
def test_permuting_sequences_permutes_outputs(dtype, lengths):
    """Tiles are other ones then, and sums are made in another order: near, not the same bits."""
    case = AttentionCase("attention", dtype, lengths=lengths, heads=1, head_dim=32, rope=True)
    arguments = case.arguments()
    bounds, order = arguments["cu_seqlens"].tolist(), [3, 0, 4, 2, 1]
    tokens = torch.cat([torch.arange(bounds[b], bounds[b + 1]) for b in order])
    permuted = dict(arguments, qkv_T3HD=arguments["qkv_T3HD"][tokens])
    permuted["cu_seqlens"] = cumulative([lengths[b] for b in order])
    for got, want in zip(forward_and_gradient(permuted), forward_and_gradient(arguments), strict=True):
        torch.testing.assert_close(got, want[tokens], rtol=4 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("junk", [float("nan"), pytest.param(float("inf"), marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("lengths", [(40, 9), (140, 9)], ids=["short", "long"])
@FP16_IF_EXHAUSTIVE
def test_rows_outside_may_hold_anything(dtype, lengths, junk):
    case = AttentionCase("attention", dtype, lengths=lengths, heads=1, head_dim=32, outside=(3, 2), rope=True)
    arguments = case.arguments()
    clean = forward_and_gradient(arguments)
    arguments["qkv_T3HD"][:3] = arguments["qkv_T3HD"][-2:] = junk
    poisoned = forward_and_gradient(arguments)
    assert all(x.isfinite().all() and x.equal(y) for x, y in zip(poisoned, clean, strict=True))
    for x in clean:
        assert not x[:3].any() and not x[-2:].any() and x[3:-2].any()


@pytest.mark.parametrize("lengths", [(40, 7), (150, 20)], ids=["short", "long"])
@EVERY_DTYPE
def test_extreme_scores(dtype, lengths):
    """Up to 10^14, exact in every dtype: a choice, and the log-sum-exp is known to 10^7, not to one.

    Gradients of queries and keys that meet with the same score are beyond fp16, and infinite.
    """
    case = AttentionCase("attention", dtype, lengths=lengths, heads=1, head_dim=64, options=(("scale", 2.0**22),))
    arguments = case.arguments()
    arguments["qkv_T3HD"][:, :2] = (arguments["qkv_T3HD"][:, :2].float().round() * 200).to(dtype)
    out, dqkv = forward_and_gradient(arguments)
    exact_qkv = arguments["qkv_T3HD"].double().requires_grad_()
    want = oracle.attention(**{**arguments, "qkv_T3HD": exact_qkv})
    torch.testing.assert_close(out.double(), want.detach(), rtol=0, atol=4 * torch.finfo(dtype).eps)
    gradient = torch.autograd.grad(want.sum(), exact_qkv)[0]
    beyond = (gradient.abs() > torch.finfo(dtype).max / 2).any(-1, keepdim=True)
    assert (dqkv.isfinite() | beyond).all() and not dqkv.isnan().any() and beyond.float().mean() < 0.2


@pytest.mark.parametrize("lengths", [(50, 3), (150, 3)], ids=["short", "long"])
def test_nan_within_a_sequence_stays_nan(lengths):
    case = AttentionCase("attention", BF16, lengths=lengths, heads=1, head_dim=32)
    arguments = case.arguments()
    arguments["qkv_T3HD"][7, 0] = float("nan")  # a query
    out, dqkv = forward_and_gradient(arguments)
    assert out[7].isnan().all() and dqkv[: lengths[0], 1:].isnan().all()


def test_a_strided_or_unaligned_input():
    case = AttentionCase("attention", FP16, lengths=(40, 30), head_dim=32)
    arguments = case.arguments()
    want = forward_and_gradient(arguments)
    padded = torch.zeros(70, 3, 2, 33, dtype=FP16)
    padded[..., 1:] = arguments["qkv_T3HD"]
    got = forward_and_gradient(dict(arguments, qkv_T3HD=padded[..., 1:]))
    assert all(x.equal(y) for x, y in zip(got, want, strict=True))


def test_other_head_dims_go_to_the_reference():
    case = AttentionCase("attention", BF16, lengths=(30, 3), head_dim=40)
    with simulated(80) as executed:
        results = ours(case, case.arguments())
    assert not executed
    assert_error_rule(results, plain(case, case.arguments()), exact(case, case.arguments()), BF16)


@pytest.mark.parametrize("window", [100, pytest.param(None, marks=pytest.mark.exhaustive)])
def test_one_sequence_of_8192_tokens(window):
    generator = torch.Generator().manual_seed(2)
    qkv = torch.randn(8192, 3, 1, 32, generator=generator).bfloat16()
    arguments = dict(qkv_T3HD=qkv, cu_seqlens=cumulative([8192]), max_seqlen=8192, window=window)
    with simulated(80, check="memory"):
        out, lse = attention_with_lse(**arguments)
    want, want_lse = attention_with_lse(**arguments)
    torch.testing.assert_close(out, want, rtol=0.02, atol=0.01)
    torch.testing.assert_close(lse, want_lse, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sequences", [1000, pytest.param(10_000, marks=pytest.mark.exhaustive)])
def test_many_short_sequences(sequences):
    """Of at most 31 tokens, a mean of 15, one head."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(0, 32, (sequences,), generator=generator)
    lengths[::50] = 0
    qkv = torch.randn(int(lengths.sum()), 3, 1, 32, generator=generator).bfloat16()
    arguments = dict(qkv_T3HD=qkv, cu_seqlens=cumulative(lengths.tolist()), max_seqlen=31)
    with simulated(80, check="memory"):
        out, lse = attention_with_lse(**arguments)
    want, want_lse = attention_with_lse(**arguments)
    torch.testing.assert_close(out, want, rtol=0.02, atol=0.02)
    torch.testing.assert_close(lse, want_lse, rtol=1e-4, atol=1e-4)
