"""Rotary embedding in CUDA C++: every check of the simulator, the 2x error rule, planted bugs."""

import pytest

from tests.cramkernels.cases import DTYPES, FP32, KERNEL_ROTARY_CASES, AttentionCase
from tests.cramkernels.compare import ours
from tests.simulation import cuda
from tests.simulation.cuda import simulated
from tests.simulation.planted import assert_caught, assert_passes, the_first_by_default
from tests.simulation.test_attention_cuda import run


@pytest.mark.parametrize("architecture", [75, 80])
@pytest.mark.parametrize("case", KERNEL_ROTARY_CASES, ids=str)
def test_every_case(case, architecture, proof):
    assert len(run(case, architecture, proof).symbols()) == 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_byte_moves_once(dtype):
    case = AttentionCase("rotary", dtype, lengths=(128, 128), heads=4, head_dim=64)
    with simulated(80) as executed:
        ours(case, arguments := case.arguments())
    tensor = arguments["qkv_T3HD"].nbytes
    tables = 256 * 2 * 4 * 2 * 32 * 4  # fp32 cosines and sines of 32 angles, for each token and head of q and of k
    for _, result in executed:
        assert 32 * result.stats.global_store.sectors == tensor
        assert tensor <= 32 * result.stats.global_load.sectors <= 1.02 * (tensor + tables)


CASE = AttentionCase("rotary", FP32, lengths=(7, 0, 15, 3), heads=3, head_dim=32, outside=(2, 6))
MUTANTS = [
    ("inside && head < 2 * a.heads", "inside && head < a.heads"),
    ("a.inverse ? -sine[k] : sine[k]", "sine[k]"),
    ("token - a.cu_seqlens[sequence]", "token"),
    ("sequence >= 0 && sequence < a.sequences", "sequence >= 0"),
    ("if (token >= a.tokens) return;", ""),
    ("* pairs; i += 32", "* pairs - 32; i += 32"),
]


@pytest.mark.parametrize(("there", "planted"), the_first_by_default(MUTANTS, lambda m: m[0]))
def test_a_planted_bug_is_caught(there, planted, tmp_path, proof):
    assert_caught(CASE, tmp_path, "rotary/rotary.cu", there, planted)
    proof("planted bugs caught", {f"rotary.cu:{there}"})


def test_without_a_bug_the_case_passes():
    cuda.simulator()
    assert_passes(CASE, conflicts=True)


def test_every_kernel_of_the_family_ran():
    """Together the cases reach each of them; in one process."""
    from tests.simulation.conftest import _ran

    family = {kernel for kernel in cuda.all_kernels(80) if kernel.startswith("ck_rotary_")}
    ran = _ran["CUDA C++ sm_80 executed"] & family
    if len(ran) < len(family) // 2:
        pytest.skip("only a part of the cases was selected")
    assert family == ran
