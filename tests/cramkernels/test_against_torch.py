"""Every case, forward and every gradient, against torch's own functions and autograd.

In fp64, where only a wrong formula makes a difference; and in the dtypes of training, where the error against fp64 may
be at most twice that of plain PyTorch.
"""

from dataclasses import replace

import pytest
import torch

from tests.cramkernels.cases import (
    ALL_CASES,
    ATTENTION_CASES,
    FP32,
    FP64,
    KERNEL_ATTENTION_CASES,
    LONG_ATTENTION_CASES,
    SHORT_ATTENTION_CASES,
)
from tests.cramkernels.compare import assert_error_rule, assert_same, exact, ours, plain, poisoned_memory

DOUBLE_CASES = list(dict.fromkeys(case.in_double() for case in ALL_CASES))


# Every shape of attention, those of kernels too. With dropout the oracle is not torch's attention
SHAPES = [
    replace(case, dtype=FP32)
    for case in (*ATTENTION_CASES, *SHORT_ATTENTION_CASES, *KERNEL_ATTENTION_CASES, *LONG_ATTENTION_CASES)
    if "dropout_p" not in dict(case.options)
]


def each(cases):
    """Parameters with readable ids."""
    return [pytest.param(case, id=str(case)) for case in cases]


def no_rows(case):
    return case.op == "mlm_loss" and 0 in (case.tokens, case.masked)


@pytest.mark.parametrize("case", each(DOUBLE_CASES))
def test_fp64_equals_torch(case):
    arguments = case.arguments()
    assert_same(ours(case, arguments), plain(case, arguments), relative=1e-12)


@pytest.mark.parametrize("dtype", [FP64, FP32], ids=str)
@pytest.mark.parametrize("case", each(dict.fromkeys(SHAPES)))
def test_attention_is_scaled_dot_product_attention(case, dtype):
    """A loop over sequences, each one call of torch's, with a mask where there is a window or a key mask."""
    if dtype == FP64:
        arguments = case.in_double().arguments()
        assert_same(ours(case, arguments), plain(case, arguments), relative=1e-12)
    else:
        arguments = case.arguments()
        assert_error_rule(ours(case, arguments), plain(case, arguments), exact(case, arguments), dtype)


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
