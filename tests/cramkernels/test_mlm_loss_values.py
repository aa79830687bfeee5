"""mlm_loss against F.cross_entropy on every option, and the properties that hold for any values."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cramkernels import mlm_loss
from tests.cramkernels import oracle
from tests.cramkernels.strategies import bounded, close, random, seeds

OPTIONS = {
    "z_loss": (0.0, 0.05),
    "label_smoothing": (0.0, 0.3),
    "softcap": (None, 2.0),
    "ignore_index": (-100, -1, 2),
    "grad_scale": (None, 64.0),
    "mode": ("chunked", "recompute"),
}
EVERY_OPTION = [dict(zip(OPTIONS, values, strict=True)) for values in product(*OPTIONS.values())]
modes = st.sampled_from(["chunked", "recompute"])
budgets = st.sampled_from([1, 200, 1 << 20])


def problem(rows, vocabulary, seed, hidden=6):
    """(hidden, weight, bias, labels) in fp64."""
    labels = torch.randint(0, vocabulary, (rows,), generator=torch.Generator().manual_seed(seed))
    return (
        random(rows, hidden, seed=seed), random(vocabulary, hidden, seed=seed + 1), random(vocabulary, seed=seed + 2),
        labels,
    )  # fmt: skip


def gradients(function, hidden, weight, bias, labels, **options):
    """(loss, gradients of hidden, weight and bias)."""
    leaves = [x.detach().clone().requires_grad_() for x in (hidden, weight, bias)]
    loss = function(leaves[0], leaves[1], labels, bias=leaves[2], **options)[0]
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def assert_equal(got, want, tolerance=1e-11):
    for one, other in zip(got, want, strict=True):
        close(one, other, tolerance)


@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
def test_every_combination_of_options(with_bias):
    """All 96 of them, forward and backward, in fp64."""
    hidden, weight, bias, labels = problem(23, 11, seed=4)
    positions = torch.randint(0, 23, (31,), generator=torch.Generator().manual_seed(1))
    bias = bias if with_bias else torch.zeros_like(bias)
    for options in EVERY_OPTION:
        chosen = labels[positions].clone()
        chosen[::5] = options["ignore_index"]
        options = dict(options, positions_M=positions)
        got = gradients(mlm_loss, hidden, weight, bias, chosen, **options)
        assert_equal(got, gradients(oracle.mlm_loss, hidden, weight, bias, chosen, **options))


def test_the_default_is_the_mean_cross_entropy():
    hidden, weight, bias, labels = problem(9, 7, seed=1)
    result = mlm_loss(hidden, weight, labels, bias=bias)
    close(result.loss, F.cross_entropy(hidden @ weight.t() + bias, labels))
    assert result.z_loss == 0 and result.num_tokens == 9


@bounded
@given(rows=st.integers(1, 20), vocabulary=st.integers(1, 50), seed=seeds, shift=st.floats(-500, 500), mode=modes)
def test_a_shift_of_all_logits_changes_nothing(rows, vocabulary, seed, shift, mode):
    hidden, weight, bias, labels = problem(rows, vocabulary, seed)
    shifted = gradients(mlm_loss, hidden, weight, bias + shift, labels, mode=mode)
    assert_equal(shifted, gradients(mlm_loss, hidden, weight, bias, labels, mode=mode), tolerance=1e-10)


@bounded
@given(rows=st.integers(1, 40), vocabulary=st.integers(1, 50), seed=seeds, budget=st.integers(1, 4000), mode=modes)
def test_the_budget_for_logits_changes_nothing(rows, vocabulary, seed, budget, mode):
    problem_ = problem(rows, vocabulary, seed)
    options = dict(softcap=3.0, label_smoothing=0.1, z_loss=0.01, mode=mode)
    whole = gradients(mlm_loss, *problem_, **options)
    assert_equal(gradients(mlm_loss, *problem_, logits_bytes=budget, **options), whole)


@bounded
@given(rows=st.integers(1, 20), vocabulary=st.integers(1, 50), seed=seeds, mode=modes, budget=budgets)
def test_ignored_rows_count_for_nothing(rows, vocabulary, seed, mode, budget):
    """Taking them out gives the same loss and gradients; their own gradient is exactly zero."""
    hidden, weight, bias, labels = problem(rows, vocabulary, seed)
    ignored = torch.rand(rows, generator=torch.Generator().manual_seed(seed)) < 0.5
    marked = torch.where(ignored, -100, labels)
    options = dict(z_loss=0.1, label_smoothing=0.1, mode=mode, logits_bytes=budget)
    loss, dhidden, *rest = gradients(mlm_loss, hidden, weight, bias, marked, **options)
    assert not dhidden[ignored].any()
    kept_loss, kept_dhidden, *kept_rest = gradients(
        oracle.mlm_loss, hidden[~ignored], weight, bias, labels[~ignored], **options
    )
    assert_equal([loss, dhidden[~ignored], *rest], [kept_loss, kept_dhidden, *kept_rest])


@pytest.mark.parametrize("mode", ["chunked", "recompute"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 13])
def test_no_counted_row(mode, dtype, rows):
    """Loss zero, gradients zero everywhere, no NaN: not even from 0 / 0."""
    hidden, weight, bias, labels = problem(rows, 9, seed=2)
    hidden, weight, bias = (x.to(dtype) for x in (hidden, weight, bias))
    options = dict(z_loss=0.1, label_smoothing=0.1, softcap=3.0, logits_bytes=100, mode=mode)
    got = gradients(mlm_loss, hidden, weight, bias, torch.full_like(labels, -100), **options)
    for one, like in zip(got, (torch.zeros(()), hidden, weight, bias), strict=True):
        assert one.shape == like.shape and not one.any()
    result = mlm_loss(hidden, weight, torch.full_like(labels, -100), bias=bias, **options)
    assert result.num_tokens == 0 and result.num_correct == 0 and result.z_loss == 0


def test_no_rows_leave_zeros_in_grad():
    """M = 0 through .backward(): an optimiser finds zeros, as with any other batch."""
    hidden, weight, bias, _ = (x.requires_grad_() if x.is_floating_point() else x for x in problem(5, 9, seed=2))
    none = torch.empty(0, dtype=torch.int64)
    mlm_loss(hidden, weight, none, positions_M=none, bias=bias).loss.backward()
    for leaf in (hidden, weight, bias):
        assert leaf.grad is not None and not leaf.grad.any()


@bounded
@given(seed=seeds, picks=st.lists(st.integers(0, 7), min_size=1, max_size=20), mode=modes)
def test_positions_select_rows_and_duplicates_add_up(seed, picks, mode):
    hidden, weight, bias, _ = problem(8, 13, seed)
    positions = torch.tensor(picks)
    labels = torch.randint(0, 13, (len(picks),), generator=torch.Generator().manual_seed(seed))
    got = gradients(mlm_loss, hidden, weight, bias, labels, positions_M=positions, mode=mode)
    loss, drows, *rest = gradients(mlm_loss, hidden[positions], weight, bias, labels, mode=mode)
    assert_equal(got, [loss, torch.zeros_like(hidden).index_add(0, positions, drows), *rest])
    unused = [row for row in range(8) if row not in picks]
    assert not got[1][unused].any()


@bounded
@given(rows=st.integers(1, 20), seed=seeds, budget=budgets)
def test_counts(rows, seed, budget):
    """Hits are rows whose label has the highest logit, ignored rows aside."""
    hidden, weight, bias, labels = problem(rows, 5, seed)
    labels[torch.rand(rows, generator=torch.Generator().manual_seed(seed)) < 0.3] = -100
    result = mlm_loss(hidden, weight, labels, bias=bias, logits_bytes=budget)
    highest = (hidden @ weight.t() + bias).argmax(1)
    assert result.num_tokens == (labels >= 0).sum() and result.num_correct == (highest == labels).sum()
    assert not any(x.requires_grad for x in result[1:])


@pytest.mark.parametrize("mode", ["chunked", "recompute"])
@pytest.mark.parametrize("wanted", list(product([False, True], repeat=3))[1:], ids=str)
def test_gradients_on_demand(mode, wanted):
    """Any subset of hidden, weight and bias may be frozen."""
    *leaves, labels = problem(7, 9, seed=6)
    full = gradients(mlm_loss, *leaves, labels, mode=mode)[1:]
    leaves = [x.requires_grad_(flag) for x, flag in zip(leaves, wanted, strict=True)]
    mlm_loss(leaves[0], leaves[1], labels, bias=leaves[2], mode=mode).loss.backward()
    for leaf, flag, expected in zip(leaves, wanted, full, strict=True):
        assert (leaf.grad is not None) == flag
        if flag:
            close(leaf.grad, expected)


@pytest.mark.parametrize("mode", ["chunked", "recompute"])
def test_tied_weights(mode):
    """The decoder is the embedding: what comes through the hidden states and through the decoder adds up."""
    results = []
    for function in (mlm_loss, oracle.mlm_loss):
        embedding, _, _, labels = problem(11, 9, seed=6)
        embedding.requires_grad_()
        hidden = embedding[torch.arange(9)].tanh()
        loss = function(hidden, embedding, labels[:9], mode=mode)[0]
        results.append(torch.autograd.grad(loss, embedding))
    assert_equal(*results)


def test_without_gradients_there_is_no_graph():
    hidden, weight, bias, labels = problem(7, 9, seed=6)
    hidden.requires_grad_()
    with torch.no_grad():
        assert not mlm_loss(hidden, weight, labels, bias=bias).loss.requires_grad
    assert not mlm_loss(hidden.detach(), weight, labels, bias=bias).loss.requires_grad
