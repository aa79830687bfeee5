"""Rotary embedding, tokens outside every sequence, and memory layouts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cramkernels import attention, rotary
from tests.cramkernels.cases import cumulative, rope_tables
from tests.cramkernels.strategies import bounded, close, lengths, packed, random, seeds, with_gradient


def tables(length, head_dim=8, seed=4):
    return tuple(t.double() for t in rope_tables(length, head_dim, torch.Generator().manual_seed(seed)))


@bounded
@given(lengths=lengths, seed=seeds, outside=st.integers(0, 2))
def test_fused_rope_is_rotary_then_attention(lengths, seed, outside):
    qkv = random(sum(lengths) + 2 * outside, 3, 2, 8, seed=seed)
    cu_seqlens, longest = cumulative(lengths, outside), max(lengths)
    cos, sin = tables(longest + 1)
    fused = with_gradient(lambda x: attention(x, cu_seqlens, longest, rope=(cos, sin)), qkv)
    apart = with_gradient(lambda x: attention(rotary(x, cos, sin, cu_seqlens), cu_seqlens, longest), qkv)
    close(fused[0], apart[0])
    close(fused[1], apart[1])


@bounded
@given(lengths=lengths, seed=seeds)
def test_rotary_is_a_rotation_of_complex_pairs(lengths, seed):
    """(i, i + D / 2) is a complex number; position p of each sequence turns it by its angle; values pass."""
    qkv, cu_seqlens, longest = packed(lengths, seed)
    cos, sin = tables(longest + 1)
    position = torch.cat([torch.arange(length) for length in lengths])
    pairs = torch.complex(*qkv[:, :2].chunk(2, dim=-1)) * torch.complex(cos, sin)[position][:, None, None]
    rotated = rotary(qkv, cos, sin, cu_seqlens)
    close(rotated[:, :2], torch.cat([pairs.real, pairs.imag], -1))
    assert torch.equal(rotated[:, 2], qkv[:, 2])


@bounded
@given(seed=seeds, shift=st.integers(1, 7))
def test_scores_depend_on_relative_position_alone(seed, shift):
    qkv, cu_seqlens, longest = packed([6, 9], seed)
    angles = torch.arange(16, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.3, 0.1, 0.03], dtype=torch.float64)
    cos, sin = angles.cos(), angles.sin()
    here = attention(qkv, cu_seqlens, longest, rope=(cos, sin))
    close(attention(qkv, cu_seqlens, longest, rope=(cos[shift:], sin[shift:])), here)


@bounded
@given(lengths=lengths, seed=seeds, before=st.integers(0, 3), after=st.integers(0, 3), rope=st.booleans())
def test_tokens_outside_every_sequence(lengths, seed, before, after, rope):
    """They give zeros, get no gradient, and what they hold does not matter."""
    inner, cu_seqlens, longest = packed(lengths, seed)
    options = dict(rope=tables(longest + 1) if rope else None)
    grad = random(before + len(inner) + after, 2, 8, seed=seed + 2)

    def run(qkv, cu_seqlens, grad):
        qkv = qkv.clone().requires_grad_()
        out = attention(qkv, cu_seqlens, longest, **options)
        return out.detach(), torch.autograd.grad(out, qkv, grad)[0]

    inside = slice(before, before + len(inner))
    expected_out, expected_dqkv = run(inner, cu_seqlens, grad[inside])
    junk = 1e6 * random(before + len(inner) + after, 3, 2, 8, seed=seed + 1)
    junk[inside] = inner
    out, dqkv = run(junk, cu_seqlens + before, grad)
    close(out[inside], expected_out)
    close(dqkv[inside], expected_dqkv)
    for result in (out, dqkv):
        assert not result[:before].any() and not result[before + len(inner) :].any()


@pytest.mark.parametrize("junk", [float("nan"), float("inf")])
@pytest.mark.parametrize("lengths", [(4, 4), (4, 2), (2, 4)], ids=str)
def test_not_even_nan_leaves_a_sequence(junk, lengths):
    """Tokens see their own sequence only: a neighbour's NaN is not theirs."""
    qkv, cu_seqlens, longest = packed(list(lengths), 8)
    for sick, well in ((slice(0, lengths[0]), slice(lengths[0], None)), (slice(lengths[0], None), slice(lengths[0]))):
        mixed = qkv.clone()
        mixed[sick] = junk
        clean = with_gradient(lambda x: attention(x, cu_seqlens, longest), qkv)
        got = with_gradient(lambda x: attention(x, cu_seqlens, longest), mixed)
        close(got[0][well], clean[0][well])
        close(got[1][well], clean[1][well])


def test_rotary_leaves_tokens_outside_alone():
    qkv = random(6, 3, 2, 8, seed=1)
    rotated = rotary(qkv, *tables(4), cumulative((2, 1), 2))
    assert torch.equal(rotated[[0, 1, 5]], qkv[[0, 1, 5]])
    assert not torch.equal(rotated[2:5], qkv[2:5])


@pytest.mark.parametrize("rope", [False, True], ids=["no rope", "rope"])
@pytest.mark.parametrize("lengths", [(5, 5), (3, 7)], ids=["dense", "ragged"])
def test_strided_tokens(lengths, rope):
    """Any layout whose last dimension is contiguous, for instance a slice of a wider projection."""
    wide = random(10, 3, 4, 12, seed=2)
    qkv = wide[:, :, 1:3, 2:10]
    assert not qkv.is_contiguous()
    arguments = (cumulative(lengths), max(lengths))
    options = dict(rope=tables(8) if rope else None)
    strided = with_gradient(lambda x: attention(x[:, :, 1:3, 2:10], *arguments, **options), wide)
    contiguous = with_gradient(lambda x: attention(x, *arguments, **options), qkv.contiguous())
    close(strided[0], contiguous[0])
    close(strided[1][:, :, 1:3, 2:10], contiguous[1])


def test_incoming_gradients_may_be_strided():
    qkv, cu_seqlens, longest = packed([3, 7], 2)
    qkv.requires_grad_()
    grad = random(8, 2, 10, seed=3).permute(2, 1, 0)
    strided = torch.autograd.grad(attention(qkv, cu_seqlens, longest), qkv, grad)[0]
    contiguous = torch.autograd.grad(attention(qkv, cu_seqlens, longest), qkv, grad.contiguous())[0]
    close(strided, contiguous)
