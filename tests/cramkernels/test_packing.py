"""Packed batches."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from cramkernels import pack_padded, token_positions
from tests.cramkernels.cases import cumulative
from tests.cramkernels.strategies import bounded, lengths, random, seeds


@bounded
@given(seed=seeds, batch=st.integers(0, 5), length=st.integers(1, 8))
def test_packing_keeps_every_token_and_its_place(seed, batch, length):
    """Masks may have holes."""
    ids = torch.randint(0, 1000, (batch, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed + 1)) < 0.6
    packed = pack_padded(ids, mask)
    assert torch.equal(packed.ids_T, ids[mask])
    assert torch.equal(packed.ids_T, ids.flatten()[packed.indices_T])
    assert packed.cu_seqlens.dtype == torch.int32
    assert packed.cu_seqlens.tolist() == [0, *mask.sum(1).cumsum(0).tolist()]
    assert packed.max_seqlen == max(mask.sum(1).tolist(), default=0) and isinstance(packed.max_seqlen, int)
    assert torch.equal(pack_padded(ids, mask.long()).indices_T, packed.indices_T)


@bounded
@given(lengths=lengths, before=st.integers(0, 3), after=st.integers(0, 3))
def test_token_positions(lengths, before, after):
    tokens = before + sum(lengths) + after
    sequence_T, position_T, inside_T = token_positions(cumulative(lengths, before), tokens)
    expected = [(b, position, True) for b, length in enumerate(lengths) for position in range(length)]
    outside = (0, 0, False)
    expected = [outside] * before + expected + [outside] * after
    assert list(zip(sequence_T.tolist(), position_T.tolist(), inside_T.tolist(), strict=True)) == expected


def test_more_dimensions_are_packed_too():
    values = random(2, 3, 5, 7, seed=1)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert torch.equal(pack_padded(values, mask).ids_T, values[mask.bool()])
