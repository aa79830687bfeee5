"""The Triton kernels of the row family, compiled for real architectures and executed with every check."""

import importlib

import pytest

from tests.cramkernels.cases import GEGLU_CASES, KERNEL_ROW_CASES, MANY_ROWS, NORM_CASES
from tests.cramkernels.compare import assert_error_rule, exact, ours, plain
from tests.simulation.triton import simulated

pytest.importorskip("triton", reason="triton is not installed")
launch = importlib.import_module("cramkernels.triton.launch")
CASES = [*NORM_CASES, *GEGLU_CASES, *KERNEL_ROW_CASES]


def run(case, architecture, proof):
    arguments = case.arguments()
    with simulated(architecture) as executed:
        results = ours(case, arguments)
    proof(f"Triton sm_{architecture} executed", {f"{case.op} {case.dtype} {name}" for name in executed.symbols()})
    assert_error_rule(results, plain(case, arguments), exact(case, arguments), case.dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sm_80(case, proof):
    run(case, 80, proof)


@pytest.mark.parametrize("case", MANY_ROWS, ids=str)
def test_more_programs_than_one_turn_of_the_reduction(case, proof, monkeypatch):
    monkeypatch.setattr(launch, "SIMULATED_MULTIPROCESSORS", 10)
    run(case, 80, proof)


@pytest.mark.exhaustive
@pytest.mark.parametrize("architecture", [86, 89])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_other_architectures(case, architecture, proof):
    run(case, architecture, proof)
