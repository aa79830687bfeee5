"""The CUDA kernels of attention: real launchers, real PTX, every check of the simulator, the 2x error rule."""

import pytest
import torch

from cramkernels.attention import attention_with_lse
from cramkernels.configurations import CUDA_SHORT_FORWARD, Key, candidates, override
from cramkernels.cuda import arguments as arguments_of
from cramkernels.cuda import attention as cuda_attention
from tests.cramkernels.cases import BF16, FP16, FP32, SHORT_ATTENTION_CASES, AttentionCase, cumulative
from tests.cramkernels.compare import assert_error_rule, exact, ours, plain
from tests.simulation import cuda
from tests.simulation.cuda import simulated
from tests.simulation.planted import assert_caught, assert_passes, the_first_by_default


def run(case, architecture, proof):
    arguments = case.arguments()
    with simulated(architecture) as executed:
        results = ours(case, arguments)
    proof(f"CUDA C++ sm_{architecture} executed", executed.symbols())
    assert_error_rule(results, plain(case, arguments), exact(case, arguments), case.dtype)
    return executed


@pytest.mark.parametrize("case", SHORT_ATTENTION_CASES, ids=str)
def test_sm_80(case, proof):
    executed = run(case, 80, proof)
    assert {symbol.split("_")[3] for symbol in executed.symbols()} == {"forward", "backward"}
    for symbol, result in executed:
        stats = result.stats
        assert stats.shared_load.bank_conflicts + stats.shared_store.bank_conflicts == 0, symbol


@pytest.mark.parametrize("case", [c for c in SHORT_ATTENTION_CASES if c.dtype == FP16 and c.head_dim <= 64], ids=str)
def test_sm_75(case, proof):
    run(case, 75, proof)


def test_which_kernels_serve_what(monkeypatch):
    """And that the reference serves the rest."""

    def path(head_dim, dtype, longest):
        return cuda_attention.path(torch.zeros(1, 3, 1, head_dim, dtype=dtype), longest)

    assert path(128, FP16, 128) == path(32, BF16, 0) == "short"
    assert path(128, FP16, 129) == path(64, BF16, 8192) == "long"
    assert path(64, FP32, 5) == path(128, FP32, 1000) == "fp32"
    assert path(40, FP16, 5) is path(64, torch.float64, 5) is None
    for name, length, head_dim, dtype in (
        ("short", 128, 64, FP16), ("mid", 129, 64, BF16), ("mid", 512, 32, FP16), ("long", 513, 64, FP16),
        ("long", 200, 128, FP16), ("fp32", 200, 64, FP32), (None, 200, 40, FP16),
    ):  # fmt: skip
        qkv = torch.zeros(1, 3, 1, head_dim, dtype=dtype)
        assert cuda_attention.backward_path(qkv, length) == name
    monkeypatch.setattr(arguments_of, "SIMULATED_CAPABILITY", (7, 5))
    assert cuda_attention.backward_path(torch.zeros(1, 3, 1, 64, dtype=FP16), 200) == "long"
    assert path(64, FP16, 128) == "short" and path(128, FP16, 128) == "long" and path(64, FP32, 5) == "fp32"
    assert path(64, BF16, 128) is None
    case = AttentionCase("attention", BF16, lengths=(30, 3), head_dim=40)
    arguments = case.arguments()
    cuda.simulator()
    with simulated(80) as executed:
        results = ours(case, arguments)
    assert not executed
    assert_error_rule(results, plain(case, arguments), exact(case, arguments), case.dtype)


def test_lse(proof):
    case = AttentionCase("attention", BF16, lengths=(40, 9), head_dim=64, outside=(2, 1), masked=0.3)
    arguments = case.arguments()
    with simulated(80):
        lse = attention_with_lse(**arguments)[1]
    torch.testing.assert_close(lse, attention_with_lse(**arguments)[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", SHORT_ATTENTION_CASES[5:8:2], ids=str)
def test_the_same_bits_twice(case):
    arguments = case.arguments()
    with simulated(80):
        first, again = ours(case, arguments), ours(case, arguments)
    assert all(first[name].equal(again[name]) for name in first)


def test_every_configuration_gives_the_same_bits():
    """Of the forward, whose warps are chosen at run time; the table's is the first."""
    case = SHORT_ATTENTION_CASES[4]
    arguments = case.arguments()
    key = Key(CUDA_SHORT_FORWARD, 16, case.head_dim, 128)
    found = {}
    for tiling in candidates(key, 80):
        with simulated(80) as executed, override(key, tiling):
            found[tiling] = ours(case, arguments)
        (forward,) = [result.stats for symbol, result in executed if "short_forward" in symbol]
        assert forward.threads_per_cta == 32 * tiling.warps
    first, *others = found.values()
    assert len(others) == 3 and all(first[name].equal(other[name]) for other in others for name in first)


def test_rows_outside_may_hold_nan():
    case = AttentionCase("attention", BF16, lengths=(40, 9), head_dim=64, outside=(3, 2))
    arguments = case.arguments()
    clean = ours_of(arguments)
    arguments["qkv_T3HD"][:3] = arguments["qkv_T3HD"][-2:] = float("nan")
    poisoned = ours_of(arguments)
    assert all(x.isfinite().all() and x.equal(y) for x, y in zip(poisoned, clean, strict=True))
    assert not clean[0][:3].any() and not clean[1][:3].any() and not clean[0][-2:].any() and not clean[1][-2:].any()


def ours_of(arguments):
    """Output and gradient, for an incoming gradient of all ones, in the simulator."""
    import cramkernels

    qkv = arguments["qkv_T3HD"].clone().requires_grad_()
    with simulated(80):
        out = cramkernels.attention(**{**arguments, "qkv_T3HD": qkv})
        return out.detach(), torch.autograd.grad(out, qkv, torch.ones_like(out))[0]


def test_permuting_sequences_permutes_outputs():
    case = AttentionCase("attention", BF16, lengths=(50, 3, 0, 70, 30), head_dim=32, rope=True)
    arguments = case.arguments()
    bounds = arguments["cu_seqlens"].tolist()
    order = [3, 0, 4, 2, 1]
    tokens = torch.cat([torch.arange(bounds[b], bounds[b + 1]) for b in order])
    permuted = dict(arguments, qkv_T3HD=arguments["qkv_T3HD"][tokens])
    permuted["cu_seqlens"] = cumulative([case.lengths[b] for b in order])
    for got, want in zip(ours_of(permuted), ours_of(arguments), strict=True):
        torch.testing.assert_close(got, want[tokens])


def test_many_short_sequences():
    """10,000 sequences of at most 31 tokens, a mean of 15, one head."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(0, 32, (10_000,), generator=generator)
    lengths[::50] = 0
    qkv = torch.randn(int(lengths.sum()), 3, 1, 32, generator=generator).bfloat16()
    arguments = dict(qkv_T3HD=qkv, cu_seqlens=cumulative(lengths.tolist()), max_seqlen=31)
    with simulated(80, check="memory"):
        out, lse = attention_with_lse(**arguments)
    want, want_lse = attention_with_lse(**arguments)
    torch.testing.assert_close(out, want, rtol=0.02, atol=0.02)
    torch.testing.assert_close(lse, want_lse, rtol=1e-4, atol=1e-4)


def test_a_strided_or_unaligned_input(proof):
    case = SHORT_ATTENTION_CASES[0]
    arguments = case.arguments()
    want = ours_of(arguments)
    qkv = arguments["qkv_T3HD"]
    padded = torch.zeros(*qkv.shape[:3], 65, dtype=qkv.dtype)
    padded[..., 1:] = qkv
    got = ours_of(dict(arguments, qkv_T3HD=padded[..., 1:]))
    assert all(x.equal(y) for x, y in zip(got, want, strict=True))


MUTANTS = [
    # file, what is there, what is planted
    ("run.cuh", "a.cu_seqlens[sequence + 1] - begin <= TOGETHER", "a.cu_seqlens[sequence] - begin <= TOGETHER"),
    ("run.cuh", "row - window)", "row - window + 1)"),
    ("run.cuh", "start[row] = from, end[row] = to", "start[row] = from, end[row] = run.rows"),
    ("run.cuh", "row < run.rows && (!a.key_mask", "(!a.key_mask"),
    ("short_forward.cuh", "        __syncthreads();\n        const bool full", "        const bool full"),
    ("short_forward.cuh", "        wait_copies<0>();\n", ""),
    ("short_forward.cuh", "rotate_rows<T, D>(memory.key", "if (false) rotate_rows<T, D>(memory.key"),
    ("short_forward.cuh", "inverse[h] *= a.keep_scale;", ""),
    ("short_forward.cuh", "rows.shown[w]", "0xffffffffu"),
    ("short_backward.cuh", "__syncthreads();  // queries and gradients", ";  // queries and gradients"),
    ("short_backward.cuh", "w < S::kWarps; ++w) sum", "w < S::kWarps - 1; ++w) sum"),
    ("short_backward.cuh", "sums[i][2 * h] *= a.scale, ", ""),
    ("rows.cuh", "    y0 = y0 * cosine.x - x0 * sine.x", "    y0 = y0 * cosine.x + x0 * sine.x"),
    ("short_backward.cuh", "packed[j][h] &= ~", "packed[j][h] |= 0 & ~"),
    ("short_backward.cuh", "first += S::kQueries;\n        __syncwarp();", "first += S::kQueries;"),
]  # fmt: skip
CAUGHT_BY = AttentionCase(
    "attention", BF16, lengths=(60, 9, 0, 55, 90), heads=1, head_dim=32, rope=True, masked=0.2,
    options=(("window", 20), ("dropout_p", 0.2), ("seed", 5)),
)  # fmt: skip


@pytest.mark.parametrize(
    ("file", "there", "planted"), the_first_by_default(MUTANTS, lambda m: f"{m[0]}:{m[1].strip()}")
)
def test_a_planted_bug_is_caught(file, there, planted, tmp_path, proof):
    assert_caught(CAUGHT_BY, tmp_path, f"attention/{file}", there, planted)
    proof("planted bugs caught", {f"attention/{file}:{there}"})


def test_without_a_bug_the_case_passes():
    cuda.simulator()
    assert_passes(CAUGHT_BY)


def test_every_kernel_of_the_family_ran(proof):
    """Together the cases reach each of them."""
    from tests.simulation.conftest import _ran

    family = {kernel for kernel in cuda.all_kernels(80) if kernel.startswith("ck_attention_short_")}
    ran = _ran["CUDA C++ sm_80 executed"] & family
    if len(ran) < 6:
        pytest.skip("only a part of the cases was selected")
    assert family == ran
