"""Two hundred steps of the real trainer through mlm_loss, beside the same steps through linear and F.cross_entropy.

The measure is eager PyTorch itself: with one thread and with two its sums are rounded in another order, which departs
by 2.5e-7 nats. A decoder's gradient that is off by one part in ten thousand departs by 1.1e-6.
"""

import dataclasses

import torch
from torch.nn import functional as F

from cramkernels import MLMLoss
from cramming_train.model import masked_lm
from tests.training.test_engine import TRAINING, never, trainer

STEPS = 200


def eager(hidden_MN, weight_VN, labels_M, *, bias, grad_scale):
    """What mlm_loss computes for the trainer, in plain PyTorch; on a CPU there is no scaler."""
    assert grad_scale is None
    loss = F.cross_entropy(F.linear(hidden_MN, weight_VN, bias), labels_M)
    return MLMLoss(loss, torch.zeros(()), torch.tensor(len(labels_M)), torch.zeros((), dtype=torch.int64))


def losses(small_data, threads):
    """Of each step."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        t = trainer(small_data, dataclasses.replace(TRAINING, batch_size=8, micro_batch_size=8))
        steps = [t.train_step(t.plan(0.5), never).loss for _ in range(STEPS)]
    finally:
        torch.set_num_threads(before)
    return torch.stack(steps).double()


def distance(one, other):
    return (one - other).square().mean().sqrt().item()


def test_the_loss_curve_is_that_of_eager(small_data, monkeypatch, record_property):
    ours = losses(small_data, 1)
    monkeypatch.setattr(masked_lm, "mlm_loss", eager)
    one, two = losses(small_data, 1), losses(small_data, 2)
    assert one[-20:].mean() < one[:5].mean() - 1, "nothing was learnt"
    of_eager, of_ours = distance(one, two), distance(ours, one)
    record_property("departure of eager from itself, nats", of_eager)
    record_property("departure of mlm_loss from eager, nats", of_ours)
    assert 0 < of_eager < 1e-5, "training has amplified it: three times as much would show nothing"
    assert 0 < of_ours <= 3 * of_eager
