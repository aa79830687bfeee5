"""The Triton kernels of attention: compiled PTX executed with every check of the simulator, the 2x error rule."""

import pytest

from tests.cramkernels.cases import BF16, SHORT_ATTENTION_CASES
from tests.cramkernels.compare import assert_error_rule, exact, ours, plain
from tests.simulation.triton import simulated


def run(case, architecture, proof):
    arguments = case.arguments()
    with simulated(architecture) as executed:
        results = ours(case, arguments)
    assert executed
    proof(f"Triton sm_{architecture} executed", executed.symbols())
    assert_error_rule(results, plain(case, arguments), exact(case, arguments), case.dtype)


@pytest.mark.parametrize("case", SHORT_ATTENTION_CASES[::3], ids=str)
def test_sm_80(case, proof):
    run(case, 80, proof)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", SHORT_ATTENTION_CASES, ids=str)
def test_sm_80_everything(case, proof):
    run(case, 80, proof)


@pytest.mark.parametrize("architecture", [86, 89])
@pytest.mark.parametrize("case", SHORT_ATTENTION_CASES[3:4], ids=str)
def test_later_architectures(case, architecture, proof):
    run(case, architecture, proof)


@pytest.mark.parametrize("case", [case for case in SHORT_ATTENTION_CASES if case.dtype == BF16][5:6], ids=str)
def test_the_same_bits_twice(case):
    arguments = case.arguments()
    with simulated(80):
        first, again = ours(case, arguments), ours(case, arguments)
    assert all(first[name].equal(again[name]) for name in first)
