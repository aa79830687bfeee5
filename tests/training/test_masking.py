"""Exact counts, unbiased positions, and draws that depend on nothing but seed and index."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from cramming_train.data.special_tokens import MASK_ID
from cramming_train.masking import MaskingCounts, mask_rows, masking_counts

VOCAB = 5000


def rows(count=16, length=128, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(MASK_ID + 1, VOCAB, (count, length), generator=generator)


def test_the_originals_counts():
    assert masking_counts(128, 0.25, 0.1, 0.1) == MaskingCounts(32, 26, 3)
    assert masking_counts(128, 0.15, 0.1, 0.1) == MaskingCounts(19, 15, 2)


@given(length=st.integers(1, 600), rate=st.floats(0.001, 0.999), random=st.floats(0, 0.5), keep=st.floats(0, 0.5))
def test_counts_add_up(length, rate, random, keep):
    counts = masking_counts(length, rate, random, keep)
    assert 1 <= counts.masked <= length
    assert counts.replaced_by_mask >= 0 and counts.replaced_by_random >= 0
    assert counts.replaced_by_mask + counts.replaced_by_random <= counts.masked


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**40), index=st.integers(0, 2**40), rate=st.sampled_from([0.15, 0.25, 0.3]))
@example(seed=9427, index=21340527, rate=0.25)  # one of the random ids is <mask>'s
def test_every_row_has_the_exact_counts(seed, index, rate):
    ids = rows(5, 128, seed % 1000)
    counts = masking_counts(128, rate, 0.1, 0.1)
    batch = mask_rows(ids, counts, VOCAB, seed=seed, index=index)
    assert torch.equal(batch.labels_M, ids.reshape(-1)[batch.positions_M])
    assert (batch.positions_M.diff() > 0).all()
    assert torch.equal(torch.bincount(batch.positions_M // 128), torch.full((5,), counts.masked))
    shown = batch.ids_T.view(5, 128)
    masks = (shown == MASK_ID).sum(1)
    changed = shown != ids
    assert not changed.reshape(-1)[np.setdiff1d(np.arange(640), batch.positions_M)].any()
    other = (changed & (shown != MASK_ID)).sum(1)
    # a random id may be <mask>'s, or the one that it replaces
    assert (masks >= counts.replaced_by_mask).all()
    assert (masks + other <= counts.replaced_by_mask + counts.replaced_by_random).all()
    assert (masks + other).sum() >= 5 * (counts.replaced_by_mask + counts.replaced_by_random) - 2


def test_positions_and_roles_are_unbiased():
    """Each position is masked, and shown as <mask>, equally often: chi-square over 4000 rows."""
    ids = rows(4000, 32)
    counts = masking_counts(32, 0.25, 0.125, 0.125)
    batch = mask_rows(ids, counts, VOCAB, seed=1, index=0)
    masked = np.bincount(batch.positions_M % 32, minlength=32)
    assert chisquare(masked).pvalue > 1e-3
    shown = (batch.ids_T.view(4000, 32) == MASK_ID).sum(0).numpy()
    assert chisquare(shown).pvalue > 1e-3


def test_random_ids_are_uniform_over_the_vocabulary():
    ids = torch.full((4000, 32), 7)
    batch = mask_rows(ids, MaskingCounts(16, 0, 16), 64, seed=2, index=0)
    drawn = batch.ids_T[batch.positions_M]
    assert chisquare(np.bincount(drawn, minlength=64)).pvalue > 1e-3


def test_draws_depend_on_seed_and_index_alone():
    ids, counts = rows(), masking_counts(128, 0.25, 0.1, 0.1)
    first = mask_rows(ids, counts, VOCAB, seed=5, index=9)
    torch.manual_seed(123)
    torch.rand(1000)
    again = mask_rows(ids, counts, VOCAB, seed=5, index=9)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for seed, index in ((6, 9), (5, 10)):
        other = mask_rows(ids, counts, VOCAB, seed=seed, index=index)
        assert not torch.equal(first.positions_M, other.positions_M)


@pytest.mark.parametrize("length", [1, 7, 31])
def test_odd_lengths(length):
    ids = rows(3, length)
    batch = mask_rows(ids, masking_counts(length, 0.25, 0.1, 0.1), VOCAB, seed=0, index=0)
    assert batch.ids_T.shape == (3 * length,)
