"""CUDA attention of sequences of any length, in 16 bits and in fp32: every check, the 2x error rule.

Backwards of at most 512 tokens, which have kernels of their own (test_attention_mid_cuda.py), go the long way here.
"""

import pytest
import torch
import torch.nn.functional as F

import cramkernels
from cramkernels.attention import attention_with_lse
from cramkernels.cuda import attention as cuda_attention
from tests.cramkernels.cases import (
    ALL_OPTIONS,
    BF16,
    FP16,
    FP32,
    LONG_ATTENTION_CASES,
    LONG_VARIED,
    MANY_SHORT,
    WINDOW_0,
    AttentionCase,
    cumulative,
)
from tests.cramkernels.compare import assert_error_rule, exact, ours, plain
from tests.simulation import cuda
from tests.simulation.cuda import simulated
from tests.simulation.planted import assert_caught, assert_passes, the_first_by_default
from tests.simulation.test_attention_cuda import ours_of, run

WIDTHS = (32, 64, 128)
EVERY_WIDTH = [
    AttentionCase("attention", dtype, lengths=(70, 0, 140, 1), heads=2, head_dim=width, outside=(3, 1), **options)
    for width in WIDTHS
    for options in ({}, ALL_OPTIONS)
    for dtype in (FP16, FP32)
]
CASES = [
    *LONG_ATTENTION_CASES,
    *EVERY_WIDTH,
    AttentionCase("attention", FP32, **LONG_VARIED, options=WINDOW_0),
    AttentionCase("attention", FP32, lengths=MANY_SHORT, heads=1, head_dim=32, outside=(0, 90), rope=True),
    AttentionCase("attention", FP32, lengths=(1,), heads=3, head_dim=64),
    AttentionCase("attention", FP32, lengths=(0, 0), heads=1, head_dim=64, outside=(4, 130), rope=True),
    AttentionCase("attention", BF16, lengths=(3,) * 50 + (200,) + (1,) * 40, heads=1, head_dim=64, **ALL_OPTIONS),
    AttentionCase("attention", BF16, lengths=(256, 1000), heads=1, head_dim=32, rope=True, options=(("window", 64),)),
]


def by_cost(cases: list[AttentionCase]) -> list:
    """Those of fp32 whose every key is seen take up to half a minute, and most of them are left to ``exhaustive``.

    Options are branches of one kernel: by default each kernel runs with all of them, in a narrow window; and those of
    16 bits, which differ in conversions and the product's name, take turns.
    """
    dear = [
        case.dtype == FP32 and sum(n * n for n in case.lengths) * case.heads * case.head_dim > 2e6
        and dict(case.options).get("window", 1000) > 100
        for case in cases
    ]  # fmt: skip
    return [
        pytest.param(case, marks=pytest.mark.exhaustive if is_dear or case.dtype != FP32 and i % 4 in (0, 3) else ())
        for i, (case, is_dear) in enumerate(zip(cases, dear, strict=True))
    ]


@pytest.fixture(autouse=True)
def _no_mid(monkeypatch):
    monkeypatch.setattr(cuda_attention, "MID_TOKENS", -1)


@pytest.mark.parametrize("case", by_cost(CASES), ids=str)
def test_sm_80(case, proof):
    executed = run(case, 80, proof)
    kinds = ["_".join(symbol.split("_")[2:-2]) for symbol in executed.symbols()]
    fp32 = ["fp32_forward", "fp32_dq", "fp32_dkv"]
    assert kinds == (fp32 if case.dtype == FP32 else ["long_forward", "delta", "long_backward"])
    for symbol, result in executed:
        stats = result.stats
        assert stats.shared_load.bank_conflicts + stats.shared_store.bank_conflicts == 0, symbol


@pytest.mark.parametrize("case", by_cost(EVERY_WIDTH), ids=str)
def test_sm_75(case, proof):
    run(case, 75, proof)


LONG = [(BF16, 64), pytest.param(FP32, 32, marks=pytest.mark.exhaustive)]


@pytest.mark.parametrize(("dtype", "width"), LONG, ids=str)
def test_lse(dtype, width):
    case = AttentionCase("attention", dtype, lengths=(140, 9), head_dim=width, outside=(2, 1), masked=0.3)
    arguments = case.arguments()
    with simulated(80):
        lse = attention_with_lse(**arguments)[1]
    torch.testing.assert_close(lse, attention_with_lse(**arguments)[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "width"), LONG, ids=str)
def test_the_same_bits_twice(dtype, width):
    case = AttentionCase("attention", dtype, lengths=(200, 30), heads=2, head_dim=width, **ALL_OPTIONS)
    arguments = case.arguments()
    with simulated(80):
        first, again = ours(case, arguments), ours(case, arguments)
    assert all(first[name].equal(again[name]) for name in first)


@pytest.mark.parametrize(("dtype", "width"), LONG, ids=str)
def test_rows_outside_may_hold_nan(dtype, width):
    case = AttentionCase("attention", dtype, lengths=(150, 9), heads=1, head_dim=width, outside=(3, 2))
    arguments = case.arguments()
    clean = ours_of(arguments)
    arguments["qkv_T3HD"][:3] = arguments["qkv_T3HD"][-2:] = float("nan")
    poisoned = ours_of(arguments)
    assert all(x.isfinite().all() and x.equal(y) for x, y in zip(poisoned, clean, strict=True))
    assert not clean[0][:3].any() and not clean[1][:3].any() and not clean[0][-2:].any() and not clean[1][-2:].any()


@pytest.mark.parametrize(("dtype", "width"), LONG, ids=str)
def test_permuting_sequences_permutes_outputs(dtype, width):
    case = AttentionCase("attention", dtype, lengths=(150, 3, 0, 170, 30), heads=1, head_dim=width, rope=True)
    arguments = case.arguments()
    bounds = arguments["cu_seqlens"].tolist()
    order = [3, 0, 4, 2, 1]
    tokens = torch.cat([torch.arange(bounds[b], bounds[b + 1]) for b in order])
    permuted = dict(arguments, qkv_T3HD=arguments["qkv_T3HD"][tokens])
    permuted["cu_seqlens"] = cumulative([case.lengths[b] for b in order])
    tolerance = 1e-5 if dtype == FP32 else 0.02  # blocks begin elsewhere, so sums are in another order
    for got, want in zip(ours_of(permuted), ours_of(arguments), strict=True):
        torch.testing.assert_close(got, want[tokens], rtol=tolerance, atol=tolerance)


def long(monkeypatch) -> None:
    """Every 16-bit case goes the long way."""
    monkeypatch.setattr(cuda_attention, "SHORT_TOKENS", -1)


@pytest.mark.parametrize("options", [{}, ALL_OPTIONS], ids=["plain", "all"])
def test_the_long_way_and_the_short_agree(options, monkeypatch):
    """The same masks, dropout's too: the results differ by rounding alone."""
    case = AttentionCase(
        "attention", FP16, lengths=(100, 0, 28, 128, 1), heads=2, head_dim=64, outside=(2, 1), **options
    )
    arguments = case.arguments()
    expected = plain(case, arguments), exact(case, arguments)
    with simulated(80) as executed:
        short = ours(case, arguments)
        assert all("short" in symbol for symbol in executed.symbols())
        long(monkeypatch)
        results = ours(case, arguments)
        assert "long" in executed.symbols()[-1]
    assert_error_rule(results, *expected, case.dtype)
    for name in short:
        torch.testing.assert_close(results[name], short[name], rtol=0.01, atol=0.01)


@pytest.mark.parametrize(("dtype", "width"), LONG, ids=str)
def test_a_wide_window_is_none(dtype, width):
    case = AttentionCase("attention", dtype, lengths=(150, 30), heads=1, head_dim=width)
    arguments = case.arguments()
    for window in (149, 2**40):
        for got, want in zip(ours_of(dict(arguments, window=window)), ours_of(arguments), strict=True):
            assert got.equal(want)


@pytest.mark.parametrize(("dtype", "width"), LONG, ids=str)
def test_fused_rope_is_rotary_then_attention(dtype, width):
    case = AttentionCase("attention", dtype, lengths=(150, 0, 30), heads=2, head_dim=width, rope=True)
    arguments = case.arguments()
    rope, cu_seqlens = arguments["rope"], arguments["cu_seqlens"]
    fused = ours_of(arguments)
    qkv = arguments["qkv_T3HD"].clone().requires_grad_()
    with simulated(80) as executed:
        rotated = cramkernels.rotary(qkv, *rope, cu_seqlens)
        out = cramkernels.attention(rotated, cu_seqlens, arguments["max_seqlen"])
        gradient = torch.autograd.grad(out, qkv, torch.ones_like(out))[0]
    assert executed.symbols()[0].startswith("ck_rotary") and executed.symbols()[-1].startswith("ck_rotary")
    tolerance = 1e-5 if dtype == FP32 else 0.02
    torch.testing.assert_close(out, fused[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient, fused[1], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "width"), LONG, ids=str)
def test_padded_is_packed(dtype, width):
    lengths, longest, heads = (150, 3, 0, 90), 160, 1
    case = AttentionCase("attention", dtype, lengths=lengths, heads=heads, head_dim=width)
    arguments = case.arguments()
    packed = ours_of(arguments)
    padded, mask = torch.randn(4 * longest, 3, heads, width).to(dtype), torch.zeros(4 * longest, dtype=torch.bool)
    rows = torch.cat([torch.arange(b * longest, b * longest + n) for b, n in enumerate(lengths)])
    padded[rows], mask[rows] = arguments["qkv_T3HD"], True
    qkv = padded.requires_grad_()
    with simulated(80):
        out = cramkernels.attention(qkv, cumulative([longest] * 4), longest, key_mask=mask)
        gradient = torch.autograd.grad(out[rows], qkv, torch.ones_like(out[rows]))[0]
    tolerance = 1e-5 if dtype == FP32 else 0.02
    torch.testing.assert_close(out[rows], packed[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient[rows], packed[1], rtol=tolerance, atol=tolerance)
    assert not gradient[~mask].any()


@pytest.mark.parametrize(("dtype", "width"), [*LONG, (FP16, 64)], ids=str)
@pytest.mark.parametrize("length", [40, 140])
def test_extreme_scores(dtype, width, length):
    """Scores of tens of thousands: one probability is 1, the others are 0, and nothing overflows."""
    generator = torch.Generator().manual_seed(3)
    qkv = torch.randn(length, 3, 1, width, generator=generator).to(dtype)
    qkv[:, :2] *= 60
    out, gradient = ours_of(dict(qkv_T3HD=qkv, cu_seqlens=cumulative([length]), max_seqlen=length))
    assert out.isfinite().all() and gradient.isfinite().all()
    wide = qkv.double()
    scores = wide[:, 0, 0] @ wide[:, 1, 0].t() * width**-0.5
    sure = scores.topk(2).values.diff().abs().squeeze(1) > 30  # by such a margin does one key win
    assert scores.abs().max() > 1e4 and sure.sum() > length / 2
    assert out[sure, 0].equal(qkv[scores.argmax(1)[sure], 2, 0])


def sdpa(arguments):
    """torch's attention, sequence by sequence; no dropout."""
    qkv, bounds = arguments["qkv_T3HD"], arguments["cu_seqlens"].tolist()
    if arguments.get("rope"):
        qkv = cramkernels.rotary(qkv, *arguments["rope"], arguments["cu_seqlens"])
    out = torch.zeros_like(qkv[:, 0])
    for first, last in zip(bounds, bounds[1:], strict=False):
        q, k, v = qkv[first:last].permute(1, 2, 0, 3)
        place = torch.arange(last - first)
        mask = torch.ones(last - first, last - first, dtype=torch.bool)
        if arguments.get("window") is not None:
            mask &= (place - place[:, None]).abs() <= arguments["window"]
        if arguments.get("key_mask") is not None:
            mask = mask & arguments["key_mask"][first:last]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=arguments.get("scale"))
        out[first:last] = attended.transpose(0, 1).masked_fill(~mask.any(1)[:, None, None], 0.0)
    return out


@pytest.mark.parametrize("case", by_cost([c for c in CASES if not dict(c.options).get("dropout_p")]), ids=str)
def test_agrees_with_sdpa(case):
    arguments = case.arguments()
    with simulated(80, check="memory"):
        out = cramkernels.attention(**arguments)
    want = sdpa(arguments)
    # scores of a spread of 36 have errors of their size
    tolerance = (1e-5 if case.dtype == FP32 else 0.01) * case.spread * max(1.0, want.abs().max().item())
    torch.testing.assert_close(out, want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("window", [None, 64])
def test_one_sequence_of_8192_tokens(window):
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(8192, 3, 1, 32, generator=generator).bfloat16()
    arguments = dict(qkv_T3HD=qkv, cu_seqlens=cumulative([8192]), max_seqlen=8192, window=window)
    with simulated(80, check="memory"):
        out, lse = attention_with_lse(**arguments)
    want, want_lse = attention_with_lse(**arguments)
    torch.testing.assert_close(out, want, rtol=0.02, atol=0.002)
    torch.testing.assert_close(lse, want_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.exhaustive
def test_the_gradient_of_8192_tokens():
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(8192, 3, 1, 32, generator=generator).bfloat16().requires_grad_()
    arguments = dict(cu_seqlens=cumulative([8192]), max_seqlen=8192)
    grad = torch.randn(8192, 1, 32, generator=generator).bfloat16()
    with simulated(80, check="memory"):
        gradient = torch.autograd.grad(cramkernels.attention(qkv, **arguments), qkv, grad)[0]
    want = torch.autograd.grad(cramkernels.attention(qkv, **arguments), qkv, grad)[0]
    torch.testing.assert_close(gradient, want, rtol=0.02, atol=0.002)


@pytest.mark.exhaustive
def test_many_short_sequences_in_fp32():
    """10,000 sequences of at most 7 tokens, one head."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(0, 8, (10_000,), generator=generator)
    qkv = torch.randn(int(lengths.sum()), 3, 1, 32, generator=generator)
    arguments = dict(qkv_T3HD=qkv, cu_seqlens=cumulative(lengths.tolist()), max_seqlen=7)
    with simulated(80, check="memory"):
        out, lse = attention_with_lse(**arguments)
    want, want_lse = attention_with_lse(**arguments)
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse, want_lse, rtol=1e-5, atol=1e-5)


MUTANTS = [
    # which case, file, what is there, what is planted
    (BF16, "attention/band.cuh", "cu_seqlens[middle] <= token", "cu_seqlens[middle] < token"),
    (BF16, "attention/band.cuh", "token + 1 + min(end - token - 1, reach)", "token + min(end - token - 1, reach)"),
    (BF16, "attention/band.cuh", "token - min(token - start, reach), token + 1", "start, token + 1"),
    (BF16, "attention/band.cuh", "block + count > low", "block + count > low + 32"),
    ("open", "attention/band.cuh", "block + count <= all_high", "block < all_high"),
    (
        BF16,
        "attention/band.cuh",
        "const bool valid = token >= low && token < high;",
        "const bool valid = token >= low;",
    ),
    (BF16, "attention/band.cuh", "if (shown && !shown[token])", "if (false)"),
    (BF16, "attention/long_forward.cuh", "        __syncthreads();  // this block", "        ;  // this block"),
    (BF16, "attention/long_forward.cuh", "        wait_copies<0>();\n", ""),
    (BF16, "attention/long_forward.cuh", "higher, sum[m][h] *= correction;", "higher;"),
    (BF16, "attention/long_forward.cuh", "out[m][d][2 * h] *= correction, ", ""),
    (BF16, "attention/long_forward.cuh", "block + 32 * (kTall == 2 ? w : lane % 2)", "block"),
    (BF16, "attention/long_forward.cuh", "a.keep_scale / total", "1.0f / total"),
    (BF16, "attention/long_forward.cuh", "& shown[w]", ""),
    (BF16, "attention/long_forward.cuh", "mma<T>(out[m][d + 1], p[m], b", "mma<T>(out[m][d + 1], p[0], b"),
    (BF16, "attention/band.cuh", "token += kPass, from", "from"),
    (BF16, "attention/attention_delta.cu", "sum = fmaf(x[k], y[k], sum);", "sum += x[k];"),
    (BF16, "attention/attention_delta.cu", "lane % kAtOnce * kLanes)", "lane % kAtOnce)"),
    (BF16, "attention/attention_delta.cu", "if (first + lane < a.tokens)", "if (first < a.tokens)"),
    (BF16, "attention/long_backward.cuh", "(dp0 - delta[h])", "(dp0 - delta[0])"),
    (BF16, "attention/long_backward.cuh", "valid ? a.delta[head", "false ? a.delta[head"),
    (BF16, "attention/long_backward.cuh", "tile / 2 * a.heads", "tile * a.heads"),
    (BF16, "attention/long_backward.cuh", "kTiles * half + i);", "i);"),
    (BF16, "attention/long_backward.cuh", "(kept & 2 ? 0xffff0000u : 0)", "0xffff0000u"),
    (BF16, "attention/long_backward.cuh", "if (a.cos && band.holds(token))", "if (false)"),
    (BF16, "attention/long_backward.cuh", "8 * (i / 2) + 2 * t + i % 2;\n", "8 * (i / 2) + 2 * t;\n"),
    (BF16, "attention/long_backward.cuh", "sight.sees(block + 8 * (i / 2)", "sight.sees(block + 8 * (i % 2)"),
    (BF16, "attention/long_backward.cuh", "a.keep_scale, static_cast<T *>(a.dqkv)", "1.0f, static_cast<T *>(a.dqkv)"),
    (FP32, "attention/fp32.cuh", "piece ^ (row & 7)", "piece"),
    (FP32, "attention/fp32.cuh", "        __syncwarp();  // what was there has been read\n", ""),
    (FP32, "attention/fp32.cuh", "if (piece < kHalf) sine", "if (piece > kHalf) sine"),
    (
        FP32,
        "attention/fp32.cuh",
        "out[row][j] *= F::of_row(correction, row)",
        "out[row][j] *= F::of_row(correction, 0)",
    ),
    (FP32, "attention/fp32.cuh", "block + lane % 4 * kDrawn)", "block)"),
    ("wide", "attention/fp32.cuh", "token + kBlock * (row / kDrawn)", "token"),
    (FP32, "attention/fp32.cuh", "(lane < 16 ? other : -other)", "other"),
    (FP32, "attention/fp32.cuh", "__syncthreads();  // the block before is done with", ";"),
    (
        FP32,
        "attention/fp32.cuh",
        "(!a.key_mask || a.key_mask[token]);\n                score",
        "true;\n                score",
    ),
]
LONG_OPTIONS = dict(
    rope=True, masked=0.2, options=(("window", 100), ("dropout_p", 0.2), ("seed", 5)),
)  # fmt: skip
CAUGHT_BY = {
    BF16: AttentionCase(
        "attention", BF16, lengths=(60, 9, 0, 155, 90), heads=1, head_dim=64, outside=(3, 2), **LONG_OPTIONS
    ),
    "open": AttentionCase("attention", BF16, lengths=(60, 9, 0, 155), heads=1, head_dim=64),
    FP32: AttentionCase("attention", FP32, lengths=(60, 0, 75), heads=1, head_dim=32, **LONG_OPTIONS),
    "wide": AttentionCase("attention", FP32, lengths=(35,), heads=1, head_dim=128, options=LONG_OPTIONS["options"]),
}


@pytest.mark.parametrize(
    ("which", "file", "there", "planted"), the_first_by_default(MUTANTS, lambda m: f"{m[1]}:{m[2].strip()}")
)
def test_a_planted_bug_is_caught(which, file, there, planted, tmp_path, proof):
    assert_caught(CAUGHT_BY[which], tmp_path, file, there, planted, conflicts=True)
    proof("planted bugs caught", {f"{file}:{there}"})


@pytest.mark.parametrize("case", CAUGHT_BY.values(), ids=str)
def test_without_a_bug_the_cases_pass(case):
    cuda.simulator()
    assert_passes(case, conflicts=True)


def test_every_kernel_of_the_family_ran():
    """Together the cases reach each of them; in one process."""
    from tests.simulation.conftest import _ran

    others = ("ck_attention_long_", "ck_attention_delta_", "ck_attention_fp32_")
    family = {kernel for kernel in cuda.all_kernels(80) if kernel.startswith(others)}
    ran = _ran["CUDA C++ sm_80 executed"] & family
    if len(ran) < len(family) // 2:
        pytest.skip("only a part of the cases was selected")
    assert family == ran
