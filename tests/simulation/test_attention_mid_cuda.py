"""CUDA attention's backward of sequences of 129 to 512 tokens: every check of the simulator, the 2x error rule."""

import pytest
import torch

import cramkernels
from cramkernels.cuda import attention as cuda_attention
from tests.cramkernels.cases import ALL_OPTIONS, BF16, FP16, KERNEL_ATTENTION_VARIANTS, AttentionCase, cumulative
from tests.cramkernels.compare import assert_error_rule, exact, ours, plain
from tests.simulation import cuda
from tests.simulation.cuda import simulated
from tests.simulation.planted import assert_caught, assert_passes, the_first_by_default
from tests.simulation.test_attention_cuda import ours_of, run
from tests.simulation.test_attention_long_cuda import sdpa

WINDOW_AND_DROPOUT = (("window", 100), ("dropout_p", 0.2), ("seed", 5))
SHAPES = (
    *(dict(lengths=(length,), heads=1, head_dim=64) for length in (129, 255, 256, 257, 400, 511, 512)),
    dict(lengths=(256, 256, 129), heads=2, head_dim=64),
    dict(lengths=(512, 30, 511), heads=1, head_dim=32),
    dict(lengths=(130, 0, 126, 1, 0, 258, 40, 9, 200), heads=2, head_dim=64, outside=(3, 5), rope=True),
    dict(lengths=(60, 9, 0, 155, 32, 90), heads=1, head_dim=64, outside=(300, 270)),  # whole CTAs of zeros
    dict(lengths=(3,) * 50 + (200,) + (1,) * 40, heads=1, head_dim=64, **ALL_OPTIONS),
    dict(lengths=(140, 300), heads=1, head_dim=64, spread=6.0, options=(("scale", -0.3),)),
    dict(lengths=(129, 300), heads=3, head_dim=32, masked=0.3, rope=True, options=WINDOW_AND_DROPOUT),
    dict(lengths=(500, 20), heads=1, head_dim=64, options=(("window", 300),)),
    dict(lengths=(500, 20), heads=1, head_dim=64, options=(("window", 5),)),  # some queries see one block of keys alone
)
VARIED = dict(lengths=(290, 0, 131, 40), heads=1, head_dim=64, outside=(2, 1))
CASES = [AttentionCase("attention", dtype, **shape) for shape in SHAPES for dtype in (FP16, BF16)] + [
    AttentionCase("attention", dtype, **VARIED, **variant)
    for variant in KERNEL_ATTENTION_VARIANTS
    for dtype in (FP16, BF16)
]
# The two dtypes are one kernel but for conversions and the product's name: each takes every other pair of cases
TAKING_TURNS = [
    pytest.param(case, marks=pytest.mark.exhaustive if i % 4 in (1, 2) else ()) for i, case in enumerate(CASES)
]


@pytest.mark.parametrize("case", TAKING_TURNS, ids=str)
def test_sm_80(case, proof):
    executed = run(case, 80, proof)
    assert ["_".join(symbol.split("_")[2:-2]) for symbol in executed.symbols()] == ["long_forward", "mid_backward"]
    for symbol, result in executed:
        stats = result.stats
        assert stats.shared_load.bank_conflicts + stats.shared_store.bank_conflicts == 0, symbol


def test_short_sequences_alone():
    """``max_seqlen`` may be more than the longest."""
    for lengths in ((0, 0), (1,), (5, 0, 100, 128, 3), (128, 128, 128)):
        case = AttentionCase("attention", BF16, lengths=lengths, heads=2, head_dim=64, outside=(4, 2))
        arguments = case.arguments() | {"max_seqlen": 300}
        with simulated(80) as executed:
            results = ours(case, arguments)
        assert "mid_backward" in executed.symbols()[-1]
        assert_error_rule(results, plain(case, arguments), exact(case, arguments), case.dtype)


ALL = AttentionCase("attention", BF16, lengths=(300, 30, 150), heads=2, head_dim=64, **ALL_OPTIONS)


def test_the_same_bits_twice():
    arguments = ALL.arguments()
    with simulated(80):
        first, again = ours(ALL, arguments), ours(ALL, arguments)
    assert all(first[name].equal(again[name]) for name in first)


def test_rows_outside_may_hold_nan():
    case = AttentionCase("attention", BF16, lengths=(300, 9), heads=1, head_dim=64, outside=(3, 2))
    arguments = case.arguments()
    clean = ours_of(arguments)
    arguments["qkv_T3HD"][:3] = arguments["qkv_T3HD"][-2:] = float("nan")
    poisoned = ours_of(arguments)
    assert all(x.isfinite().all() and x.equal(y) for x, y in zip(poisoned, clean, strict=True))
    assert not clean[1][:3].any() and not clean[1][-2:].any()


def test_permuting_sequences_permutes_gradients():
    case = AttentionCase("attention", BF16, lengths=(150, 3, 0, 270, 30), heads=1, head_dim=64, rope=True)
    arguments = case.arguments()
    bounds = arguments["cu_seqlens"].tolist()
    order = [3, 0, 4, 2, 1]
    tokens = torch.cat([torch.arange(bounds[b], bounds[b + 1]) for b in order])
    permuted = dict(arguments, qkv_T3HD=arguments["qkv_T3HD"][tokens])
    permuted["cu_seqlens"] = cumulative([case.lengths[b] for b in order])
    for got, want in zip(ours_of(permuted), ours_of(arguments), strict=True):
        torch.testing.assert_close(got, want[tokens], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("options", [{}, ALL_OPTIONS], ids=["plain", "all"])
@pytest.mark.parametrize("other", ["long", "short"])
def test_the_other_ways_agree(other, options, monkeypatch):
    """The same masks, dropout's too: the results differ by rounding alone."""
    lengths = (100, 0, 28, 128, 1, *([300] if other == "long" else []))
    case = AttentionCase("attention", FP16, lengths=lengths, heads=1, head_dim=64, outside=(2, 1), **options)
    arguments = case.arguments()
    with simulated(80) as executed:
        monkeypatch.setattr(cuda_attention, "MID_TOKENS", -1)
        want = ours(case, arguments)
        monkeypatch.setattr(cuda_attention, "MID_TOKENS", 512)
        monkeypatch.setattr(cuda_attention, "SHORT_TOKENS", -1)
        got = ours(case, arguments)
    backwards = [symbol.split("_")[2] for symbol in executed.symbols() if "backward" in symbol]
    assert backwards == [other, "mid"]
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=0.01, atol=0.01)


@pytest.mark.parametrize("length", [250, pytest.param(400, marks=pytest.mark.exhaustive)])
def test_a_wide_window_is_none(length):
    case = AttentionCase("attention", BF16, lengths=(length, 30), heads=1, head_dim=64)
    arguments = case.arguments()
    for window in (length - 1, 2**40):
        for got, want in zip(ours_of(dict(arguments, window=window)), ours_of(arguments), strict=True):
            assert got.equal(want)


def test_fused_rope_is_rotary_then_attention():
    case = AttentionCase("attention", BF16, lengths=(300, 0, 30), heads=2, head_dim=64, rope=True)
    arguments = case.arguments()
    rope, cu_seqlens = arguments["rope"], arguments["cu_seqlens"]
    fused = ours_of(arguments)
    qkv = arguments["qkv_T3HD"].clone().requires_grad_()
    with simulated(80):
        out = cramkernels.attention(cramkernels.rotary(qkv, *rope, cu_seqlens), cu_seqlens, arguments["max_seqlen"])
        gradient = torch.autograd.grad(out, qkv, torch.ones_like(out))[0]
    torch.testing.assert_close(gradient, fused[1], rtol=0.02, atol=0.02)


def test_padded_is_packed():
    lengths, longest = (270, 3, 0, 90), 280
    case = AttentionCase("attention", BF16, lengths=lengths, heads=1, head_dim=64)
    arguments = case.arguments()
    packed = ours_of(arguments)
    padded, mask = torch.randn(4 * longest, 3, 1, 64).bfloat16(), torch.zeros(4 * longest, dtype=torch.bool)
    rows = torch.cat([torch.arange(b * longest, b * longest + n) for b, n in enumerate(lengths)])
    padded[rows], mask[rows] = arguments["qkv_T3HD"], True
    qkv = padded.requires_grad_()
    with simulated(80):
        out = cramkernels.attention(qkv, cumulative([longest] * 4), longest, key_mask=mask)
        gradient = torch.autograd.grad(out[rows], qkv, torch.ones_like(out[rows]))[0]
    torch.testing.assert_close(gradient[rows], packed[1], rtol=0.02, atol=0.02)
    assert not gradient[~mask].any()


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("length", [140, 300])
def test_extreme_scores(dtype, length):
    """Scores of tens of thousands: nothing overflows."""
    qkv = torch.randn(length, 3, 1, 64, generator=torch.Generator().manual_seed(3)).to(dtype)
    qkv[:, :2] *= 60
    _, gradient = ours_of(dict(qkv_T3HD=qkv, cu_seqlens=cumulative([length]), max_seqlen=length))
    assert gradient.isfinite().all()


def test_a_query_that_sees_itself_alone():
    """Its probability is 1: the gradient of its value is that of its output, and of its query and key there is none."""
    case = AttentionCase("attention", BF16, lengths=(290, 3), heads=1, head_dim=64, options=(("window", 0),))
    arguments = case.arguments()
    results = ours_of(arguments)
    assert results[0].equal(arguments["qkv_T3HD"][:, 2])
    torch.testing.assert_close(results[1][:, 2], torch.ones_like(results[1][:, 2]))
    torch.testing.assert_close(results[1][:, :2], torch.zeros_like(results[1][:, :2]), rtol=0, atol=0.05)


@pytest.mark.parametrize("lengths", [(256, 129), (512,)], ids=str)
def test_agrees_with_sdpa(lengths):
    case = AttentionCase("attention", BF16, lengths=lengths, heads=1, head_dim=64, rope=True, masked=0.2)
    arguments = case.arguments()
    gradient = ours_of(arguments)[1]
    qkv = arguments["qkv_T3HD"].double().requires_grad_()
    rope = tuple(x.double() for x in arguments["rope"])
    out = sdpa(arguments | {"qkv_T3HD": qkv, "rope": rope})
    want = torch.autograd.grad(out, qkv, torch.ones_like(out))[0]
    torch.testing.assert_close(gradient.double(), want, rtol=0.02, atol=0.02 * want.abs().max().item())


OPEN, FAR, MASKED = "open", "far", "masked"
CAUGHT_BY = {
    OPEN: AttentionCase("attention", BF16, lengths=(310,), heads=2, head_dim=64),
    FAR: AttentionCase("attention", BF16, lengths=(0, 500, 20), heads=1, head_dim=64, options=(("window", 40),)),
    MASKED: AttentionCase(
        "attention", BF16, lengths=(60, 9, 0, 155, 290), heads=1, head_dim=64, outside=(3, 2), rope=True, masked=0.2,
        options=WINDOW_AND_DROPOUT,
    ),
}  # fmt: skip
MUTANTS = [
    # which case, what is there, what is planted
    (OPEN, "        __syncthreads();  // this slice has come", "        ;  // this slice has come"),
    (OPEN, "        __syncthreads();  // dS is there", "        ;  // dS is there"),
    (OPEN, "            __syncthreads();  // the block before", "            ;  // the block before"),
    (OPEN, "    wait_copies<0>();\n", ""),
    (OPEN, 'asm volatile("bar.sync %0, 64;" ::"r"(1 + pair) : "memory");', ""),
    (OPEN, '"r"(1 + pair)', '"r"(1 + half)'),
    (OPEN, "exchange + 256 * (warp ^ 1)", "exchange + 256 * warp"),
    (FAR, "block + keys, memory.run.rows) - 1", "block + keys, memory.run.rows) - 64"),
    (OPEN, "first >= there, memory)", "true, memory)"),
    (OPEN, "first >= there, memory)", "false, memory)"),
    (OPEN, "mine[2 * i] += two.x, ", ""),
    (OPEN, "reinterpret_cast<float *>(&memory.slice[buffer])", "reinterpret_cast<float *>(&memory.slice[buffer ^ 1])"),
    (
        OPEN,
        "start_slice<T, D>(a, at, first + M::kQueries, buffer ^ 1",
        "start_slice<T, D>(a, at, first + M::kQueries, 0",
    ),
    (OPEN, "sum = fmaf(x[i], y[i], sum);", "sum += x[i];"),
    (OPEN, "(mine[i] + other[i]) * a.scale", "(mine[i] + other[i])"),
    (FAR, "rows.low(first + M::kQueries - 1, a.window) <= key &&", ""),
    (FAR, "rows.high(first, a.window) >= key + 32 &&", ""),
    (MASKED, " &\n           rows.shown[key / 32]", ""),
    (MASKED, "rows.low(key, a.window) >= first + M::kQueries", "rows.low(key, a.window) >= first"),
    (MASKED, "a.window) <= first)\n", "a.window) <= first + 31)\n"),
    (MASKED, "begin + first + lane, begin + key)", "begin + first + lane, key)"),
    (MASKED, "&= 0xffff0000u >> (16 * c)", "&= 0xffff0000u"),
    (MASKED, "? a.keep_scale : 0.0f;", "? 1.0f : 0.0f;"),
    (MASKED, "if (a.cos && row < count)", "if (false)"),
    (MASKED, "if (a.cos && valid)", "if (false)"),
    (MASKED, "min(M::kKeys, count - at.block), a", "32, a"),
    (MASKED, "slice.query, M::kQueries, a, memory.rows, first)", "slice.query, M::kQueries, a, memory.rows, 0)"),
    (MASKED, "store_row<T, D>(dvalue[m], h, a.keep_scale", "store_row<T, D>(dvalue[m], h, 1.0f"),
    (MASKED, "out, 3 * width, width, 3, D", "out, 3 * width, width, 2, D"),
    (FAR, "if (run.rows == 0) continue;", "if (run.rows == 0) return;"),
]


@pytest.mark.parametrize(
    ("which", "there", "planted"),
    the_first_by_default(MUTANTS, lambda m: f"{m[1].strip()}->{m[2].strip()}"),
)
def test_a_planted_bug_is_caught(which, there, planted, tmp_path, proof):
    assert_caught(CAUGHT_BY[which], tmp_path, "attention/mid_backward.cuh", there, planted, conflicts=True)
    proof("planted bugs caught", {f"mid_backward.cuh:{there}->{planted}"})


RUN_MUTANTS = [
    ("run.cuh", "- begin, LONGEST)", "- begin, TOGETHER)"),
    ("short_forward.cuh", "from + outside : outside - before + after", "outside : outside - before + after"),
]


@pytest.mark.parametrize(("file", "there", "planted"), the_first_by_default(RUN_MUTANTS, lambda m: m[1]))
def test_a_bug_in_what_is_shared_is_caught(file, there, planted, tmp_path, proof):
    case = AttentionCase("attention", BF16, lengths=(200, 100, 290), heads=1, head_dim=64, outside=(300, 270))
    assert_caught(case, tmp_path, f"attention/{file}", there, planted)
    proof("planted bugs caught", {f"{file}:{there}"})


@pytest.mark.parametrize("case", CAUGHT_BY.values(), ids=CAUGHT_BY)
def test_without_a_bug_the_cases_pass(case):
    cuda.simulator()
    assert_passes(case, conflicts=True)


def test_every_kernel_of_the_family_ran():
    """Together the cases reach each of them; in one process."""
    from tests.simulation.conftest import _ran

    family = {kernel for kernel in cuda.all_kernels(80) if kernel.startswith("ck_attention_mid_")}
    ran = _ran["CUDA C++ sm_80 executed"] & family
    if len(ran) < 2:
        pytest.skip("only a part of the cases was selected")
    assert family == ran
