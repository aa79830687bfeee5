"""Prefetching changes when rows are read, and nothing else."""

import threading

import pytest
import torch

from cramming_train.prefetch import BatchRows, Prefetch
from tests.training.test_engine import TRAINING, never, trainer, weights


class StandIn:
    """Copies at once; remembers in which thread, and that what is taken had been sent."""

    def __init__(self):
        self.threads, self.on_the_way = set(), []

    def send(self, tensors):
        self.threads.add(threading.current_thread().name)
        sent = tuple(x.clone() for x in tensors)
        self.on_the_way.append(sent[0])
        return sent

    def arrived(self, tensors):
        assert any(x is tensors[0] for x in self.on_the_way)
        return tensors


def read(first_row, count):
    if first_row > 90:
        raise OSError("no such row")
    return BatchRows(torch.arange(first_row, first_row + count)[:, None], torch.tensor([0, count]), 1)


def test_the_next_rows_are_read_before_they_are_asked_for():
    asked = []
    arrived = threading.Event()

    def watched(first_row, count):
        asked.append(first_row)
        if len(asked) == 2:
            arrived.set()
        return read(first_row, count)

    copier = StandIn()
    prefetch = Prefetch(watched, copier)
    assert prefetch(0, 4, 4).ids_BS.flatten().tolist() == [0, 1, 2, 3]
    assert arrived.wait(10) and asked == [0, 4]
    assert prefetch(4, 4, 8).ids_BS.flatten().tolist() == [4, 5, 6, 7]
    assert all(name.startswith("prefetch") for name in copier.threads)


def test_a_wrong_guess_costs_time_only():
    prefetch = Prefetch(read, StandIn())
    prefetch(0, 4, 4)
    assert prefetch(20, 2, 22).ids_BS.flatten().tolist() == [20, 21]
    assert prefetch(0, 4, 4).ids_BS.flatten().tolist() == [0, 1, 2, 3]


def test_an_error_comes_when_the_rows_are_wanted():
    prefetch = Prefetch(read, StandIn())
    assert prefetch(88, 4, 92).max_seqlen == 1
    with pytest.raises(OSError, match="no such row"):
        prefetch(92, 4, 96)


def test_training_gives_the_same_bits(small_data):
    t, plain = trainer(small_data, TRAINING), trainer(small_data, TRAINING)
    t._rows = Prefetch(t._read_rows, StandIn())
    for x in (t, plain):
        for fraction in (0.1, 0.6):
            x.train_step(x.plan(fraction), never)
    assert torch.equal(weights(t), weights(plain))
