"""Which rows come when."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cramming_train.loader import RowStream


class Memory:
    row_length = 3

    def __init__(self, count):
        self.values = np.arange(count * 3, dtype=np.uint16).reshape(count, 3)

    def __len__(self):
        return len(self.values)

    def read(self, start, stop):
        return self.values[start:stop]

    def take(self, indices):
        return self.values[indices]


def numbers(batch):
    return (batch[:, 0] // 3).tolist()


def test_the_first_epoch_keeps_the_stored_order():
    stream = RowStream(Memory(10), seed=0)
    assert numbers(stream.batch(0, 4)) + numbers(stream.batch(4, 6)) == list(range(10))
    assert stream.batch(0, 2).dtype == torch.int64


def test_later_epochs_are_permutations_that_differ():
    stream = RowStream(Memory(50), seed=0)
    epochs = [numbers(stream.batch(50 * e, 50)) for e in range(4)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert numbers(RowStream(Memory(50), seed=1).batch(50, 50)) != epochs[1]
    assert [stream.epoch_of(row) for row in (0, 49, 50, 149, 150)] == [0, 0, 1, 2, 3]


@settings(max_examples=50)
@given(count=st.integers(1, 20), cuts=st.lists(st.integers(1, 17), min_size=1, max_size=8), seed=st.integers(0, 5))
def test_any_cutting_gives_the_same_stream(count, cuts, seed):
    whole = numbers(RowStream(Memory(count), seed).batch(0, sum(cuts)))
    stream, position, pieces = RowStream(Memory(count), seed), 0, []
    for size in cuts:
        pieces += numbers(stream.batch(position, size))
        position += size
    assert pieces == whole


def test_no_rows():
    with pytest.raises(ValueError, match="rows"):
        RowStream(Memory(0), seed=0)
