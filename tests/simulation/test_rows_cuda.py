"""The CUDA kernels of the row family: real launchers, real PTX, every check of the simulator, the 2x error rule."""

import pytest

from cramkernels.cuda import arguments as arguments_of
from tests.cramkernels.cases import BF16, GEGLU_CASES, KERNEL_ROW_CASES, MANY_ROWS, NORM_CASES
from tests.cramkernels.compare import assert_error_rule, exact, ours, plain
from tests.simulation.cuda import simulated

CASES = [*NORM_CASES, *GEGLU_CASES, *KERNEL_ROW_CASES]


def run(case, architecture, proof):
    arguments = case.arguments()
    with simulated(architecture) as executed:
        results = ours(case, arguments)
    proof(f"CUDA C++ sm_{architecture} executed", executed.symbols())
    assert_error_rule(results, plain(case, arguments), exact(case, arguments), case.dtype)
    return executed


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sm_80(case, proof):
    run(case, 80, proof)


@pytest.mark.parametrize("case", [case for case in KERNEL_ROW_CASES if case.dtype != BF16], ids=str)
def test_sm_75(case, proof):
    run(case, 75, proof)


@pytest.mark.parametrize("case", MANY_ROWS, ids=str)
def test_more_ctas_than_one_turn_of_the_reduction(case, proof, monkeypatch):
    monkeypatch.setattr(arguments_of, "SIMULATED_MULTIPROCESSORS", 10)
    run(case, 80, proof)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", [case for case in CASES if case.dtype != BF16], ids=str)
def test_sm_75_everything(case, proof):
    run(case, 75, proof)


@pytest.mark.parametrize("case", KERNEL_ROW_CASES[:3], ids=str)
def test_the_same_bits_twice(case):
    arguments = case.arguments()
    with simulated(80):
        first, again = ours(case, arguments), ours(case, arguments)
    assert all(first[name].equal(again[name]) for name in first)


def test_every_kernel_of_the_library_ran(proof):
    """Together the cases reach each kernel of the family: a new one cannot go untested."""
    from tests.simulation.conftest import _ran
    from tests.simulation.cuda import all_kernels

    ran = _ran["CUDA C++ sm_80 executed"]
    if len(ran) < 100:
        pytest.skip("only a part of the cases was selected")
    others = ("ck_loss_", "ck_attention_", "ck_rotary_")
    assert {kernel for kernel in all_kernels(80) if not kernel.startswith(others)} <= ran
