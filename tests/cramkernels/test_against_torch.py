"""Every case, forward and every gradient, against torch's own functions and autograd.

In fp64, where only a wrong formula makes a difference; and in the dtypes of training, where the error against fp64 may
be at most twice that of plain PyTorch.
"""

import pytest
import torch

from tests.cramkernels.cases import ALL_CASES
from tests.cramkernels.compare import assert_error_rule, assert_same, exact, ours, plain, poisoned_memory

DOUBLE_CASES = list(dict.fromkeys(case.in_double() for case in ALL_CASES))


def each(cases):
    """Parameters with readable ids."""
    return [pytest.param(case, id=str(case)) for case in cases]


def no_rows(case):
    return case.op == "mlm_loss" and 0 in (case.tokens, case.masked)


@pytest.mark.parametrize("case", each(DOUBLE_CASES))
def test_fp64_equals_torch(case):
    arguments = case.arguments()
    assert_same(ours(case, arguments), plain(case, arguments), relative=1e-12)


@pytest.mark.parametrize("case", each(ALL_CASES))
def test_error_is_at_most_twice_that_of_plain_torch(case):
    arguments = case.arguments()
    results = ours(case, arguments)
    assert_error_rule(results, plain(case, arguments), exact(case, arguments), case.dtype)


@pytest.mark.parametrize("case", each(ALL_CASES))
def test_the_same_bits_twice(case):
    arguments = case.arguments()
    first, second = ours(case, arguments), ours(case, arguments)
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_the_names_of_cases_are_unique():
    """Values are drawn from the name, and reports refer to it."""
    assert len({str(case) for case in ALL_CASES}) == len(ALL_CASES)


def test_poison_works():
    with poisoned_memory():
        x = torch.randn(3, 4)
        assert torch.empty(5).isnan().all() and torch.empty_like(x).isnan().all() and x.new_empty(2, 2).isnan().all()
