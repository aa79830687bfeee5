"""Dropout: Philox's published answers, the documented counters, rates, and the same mask in forward and backward."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from cramkernels import add_layer_norm, attention
from cramkernels.reference import attention as reference_attention
from cramkernels.reference.philox import attention_keep, elementwise_keep, philox
from tests.cramkernels import integer_philox
from tests.cramkernels.cases import cumulative
from tests.cramkernels.strategies import bounded, close, random, seeds

ONES = 0xFFFFFFFF
# The known answers that come with Random123, for Philox4x32-10: (counter, key, result)
KNOWN_ANSWERS = {
    "zeros": ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    "ones": ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}
signed_seeds = st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize("name", KNOWN_ANSWERS)
def test_known_answers(name):
    counter, key, answer = KNOWN_ANSWERS[name]
    words = philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(map(int, words)) == answer
    assert integer_philox.philox(counter, key) == answer


@bounded
@given(seed=signed_seeds, rows=st.integers(0, 5), columns=st.integers(1, 19), p=st.floats(0, 0.999))
def test_elementwise_masks_follow_the_documented_counters(seed, rows, columns, p):
    keep = elementwise_keep(torch.tensor(seed), rows, columns, p)
    assert keep.tolist() == [integer_philox.kept(seed, 0, row, range(columns), 1, p) for row in range(rows)]


@bounded
@given(seed=signed_seeds, starts=st.lists(st.integers(0, 50), min_size=1, max_size=3), length=st.integers(1, 9))
def test_attention_masks_follow_the_documented_counters(seed, starts, length):
    """Wherever a sequence begins within a block of four columns."""
    keep = attention_keep(torch.tensor(seed), torch.tensor(starts, dtype=torch.int32), 2, length, 0.4)
    for number, start in enumerate(starts):
        rows = range(start, start + length)
        expected = [[integer_philox.kept(seed, head, row, rows, 0, 0.4) for row in rows] for head in range(2)]
        assert keep[number].tolist() == expected


def visible_mask(lengths, seed, p, heads=2, outside=0):
    """Equal scores and one-hot values show each dropout factor: out[t, h, d] = factor(t, h, key d) / length."""
    longest, tokens = max(lengths), sum(lengths)
    qkv = torch.zeros(tokens + outside, 3, heads, longest + longest % 2, dtype=torch.float64)
    starts = [outside + sum(lengths[:b]) for b in range(len(lengths))]
    for start, length in zip(starts, lengths, strict=True):
        qkv[range(start, start + length), 2, :, range(length)] = float(length)
    return attention(qkv, cumulative(lengths, outside), longest, dropout_p=p, seed=seed), starts


@bounded
@given(seed=signed_seeds, lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), outside=st.integers(0, 3))
def test_attention_drops_by_packed_rows(seed, lengths, outside):
    factors, starts = visible_mask(lengths, seed, 0.3, outside=outside)
    for start, length in zip(starts, lengths, strict=True):
        rows = range(start, start + length)
        expected = [[integer_philox.kept(seed, h, row, rows, 0, 0.3) for h in range(2)] for row in rows]
        close(factors[start : start + length, :, :length], torch.tensor(expected).double() / 0.7)


@bounded
@given(seed=seeds, p=st.sampled_from([0.1, 0.5, 0.9]))
def test_add_layer_norm_uses_one_mask_in_both_directions(seed, p):
    x = random(6, 13, seed=seed).requires_grad_()
    residual = random(6, 13, seed=seed + 1).requires_grad_()
    weight = torch.ones(13, dtype=torch.float64)
    _, new_residual = add_layer_norm(x, residual, weight, eps=1e-5, dropout_p=p, seed=seed)
    keep = torch.tensor([integer_philox.kept(seed, 0, row, range(13), 1, p) for row in range(6)])
    close(new_residual, torch.where(keep, x / (1 - p), 0) + residual)
    dx, dresidual = torch.autograd.grad(new_residual, (x, residual), torch.ones_like(x))
    close(dx, keep.double() / (1 - p))
    close(dresidual, torch.ones_like(x))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
def test_rates(p):
    """A hundred thousand draws each: the share of dropped elements, overall and by column modulo four."""
    dropped = ~elementwise_keep(torch.tensor(1234), 400, 256, p)
    counts = dropped.view(400, 64, 4).sum((0, 1)).tolist()
    for count in counts:
        assert chisquare([count, 400 * 64 - count], [400 * 64 * p, 400 * 64 * (1 - p)]).pvalue > 1e-3
    dropped = ~attention_keep(torch.tensor(1234), torch.tensor([0, 64], dtype=torch.int32), 12, 64, p)
    assert chisquare([dropped.sum(), (~dropped).sum()], [dropped.numel() * p, dropped.numel() * (1 - p)]).pvalue > 1e-3


def test_attention_keeps_the_expectation():
    """Averaged over four hundred copies of one sequence, outputs are those without dropout."""
    qkv = random(6, 3, 1, 4, seed=3)
    many = attention(qkv.repeat(400, 1, 1, 1), cumulative((6,) * 400), 6, dropout_p=0.2, seed=1)
    assert (many.view(400, 6, 1, 4).mean(0) - attention(qkv, cumulative((6,)), 6)).abs().max() < 0.1


@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
def test_the_seed_decides(as_tensor):
    seed = torch.tensor if as_tensor else int
    qkv, x, weight = random(20, 3, 2, 8, seed=1), random(20, 16, seed=2), random(16, seed=3)

    def both(value):
        out = attention(qkv, cumulative((12, 8)), 12, dropout_p=0.3, seed=seed(value))
        return out, add_layer_norm(x, x, weight, eps=1e-5, dropout_p=0.3, seed=seed(value))[1]

    for first, again, other, high in zip(both(7), both(7), both(8), both(7 + 2**32), strict=True):
        assert torch.equal(first, again)
        assert not torch.equal(first, other) and not torch.equal(first, high)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    attention(random(5, 3, 1, 4, seed=1), cumulative((5,)), 5, dropout_p=0.3, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("lengths", [(7, 7, 7), (7, 0, 4, 5)], ids=["dense", "ragged"])
@pytest.mark.parametrize("dropout", [dict(), dict(dropout_p=0.4, seed=3)], ids=["no dropout", "dropout"])
def test_how_many_sequences_are_taken_at_a_time_changes_nothing(lengths, dropout, monkeypatch):
    """Three heads: one at a time, two, or all of several sequences."""
    qkv = random(sum(lengths), 3, 3, 8, seed=1).requires_grad_()
    grad = random(sum(lengths), 3, 8, seed=2)
    results = []
    for matrices in (1, 2, 6, 1000):
        monkeypatch.setattr(reference_attention, "CPU_SCORE_BYTES", matrices * 7 * 7 * 8)
        out = attention(qkv, cumulative(lengths), 7, **dropout)
        results.append((out, *torch.autograd.grad(out, qkv, grad)))
    for one, other in zip(results[0] * 3, [x for result in results[1:] for x in result], strict=True):
        close(one, other)
