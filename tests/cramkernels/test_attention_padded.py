"""The reference where lengths are not read, as on a GPU: padded batches, against the views that a CPU takes."""

from unittest import mock

import torch
from hypothesis import given
from hypothesis import strategies as st

from cramkernels import attention, rotary
from cramkernels.reference import attention as reference_attention
from tests.cramkernels.cases import cumulative, rope_tables
from tests.cramkernels.strategies import bounded, close, lengths, random, seeds, with_gradient


def padded(matrices=1000):
    """A reference that takes so many matrices of scores at a time of 9 x 9 numbers, and reads no lengths."""
    return mock.patch.multiple(reference_attention, _is_readable=lambda x: False, SCORE_BYTES=matrices * 9 * 9 * 8)


@bounded
@given(
    lengths=lengths,
    seed=seeds,
    outside=st.integers(0, 2),
    window=st.sampled_from([None, 0, 2]),
    masked=st.booleans(),
    dropout_p=st.sampled_from([0.0, 0.4]),
    matrices=st.sampled_from([1, 3, 1000]),
)
def test_padding_changes_nothing(lengths, seed, outside, window, masked, dropout_p, matrices):
    """Neither do NaN of tokens outside every sequence."""
    tokens, inside = sum(lengths) + 2 * outside, slice(outside, outside + sum(lengths))
    qkv = torch.full((tokens, 3, 2, 8), torch.nan, dtype=torch.float64)
    qkv[inside] = random(sum(lengths), 3, 2, 8, seed=seed)
    key_mask = torch.rand(tokens, generator=torch.Generator().manual_seed(seed)) < 0.6 if masked else None
    rope = tuple(table.double() for table in rope_tables(max(lengths), 8, torch.Generator().manual_seed(seed)))

    def run(x):
        return attention(
            x, cumulative(lengths, outside), max(lengths),
            rope=rope, window=window, key_mask=key_mask, dropout_p=dropout_p, seed=seed,
        )  # fmt: skip

    views = with_gradient(run, qkv)
    with padded(matrices):
        batches = with_gradient(run, qkv)
    for one, other in zip(views, batches, strict=True):
        close(one, other)


@bounded
@given(lengths=lengths, seed=seeds, outside=st.integers(0, 2))
def test_rotary(lengths, seed, outside):
    qkv = random(sum(lengths) + 2 * outside, 3, 2, 8, seed=seed)
    cos, sin = (table.double() for table in rope_tables(max(lengths), 8, torch.Generator().manual_seed(seed)))
    views = rotary(qkv, cos, sin, cumulative(lengths, outside))
    with padded():
        close(rotary(qkv, cos, sin, cumulative(lengths, outside)), views)
