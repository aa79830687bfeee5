"""Means of the last weights against sums written out."""

import pytest
import torch
from torch import nn

from cramming_train.optim.averaging import average, newest_weight, use_average

STEPS = 40


def run(kind, share):
    """(the weights after each step, those that training ends with) of a walk under AdamW."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    passed, averaged = [], 0
    for step in range(STEPS):
        model(torch.randn(5, 3, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        passed.append(model.weight.detach().clone())
        weight = newest_weight(kind, share, fraction=step / STEPS, step=step, averaged=averaged)
        if weight:
            average(model, optimizer, weight)
            averaged += 1
    use_average(model, optimizer)
    assert not any("average" in state for state in optimizer.state.values())
    return torch.stack(passed), model.weight.detach()


@pytest.mark.parametrize("share", [0.1, 0.25, 1.0])
def test_a_window_is_the_mean_of_the_last_steps(share):
    passed, ended = run("window", share)
    torch.testing.assert_close(ended, passed[-round(share * STEPS) :].mean(0))


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_ema_is_as_old_as_asked(share):
    """Each step's weight is what the later ones leave of it; the mean age is share / (1 + share) of all steps."""
    passed, ended = run("ema", share)
    newest = torch.tensor([newest_weight("ema", share, fraction=0, step=s, averaged=s) for s in range(STEPS)])
    left = torch.cat([(1 - newest[1:]).flip(0).cumprod(0).flip(0), torch.ones(1)])
    weights = newest * left
    assert weights.sum().item() == pytest.approx(1)
    torch.testing.assert_close(ended, (weights[:, None, None] * passed).sum(0))
    age = (weights * (STEPS - 1 - torch.arange(STEPS))).sum().item()
    assert age == pytest.approx(share / (1 + share) * (STEPS - 1), rel=0.03)


def test_none_ends_with_the_last():
    passed, ended = run("none", 0.5)
    assert torch.equal(ended, passed[-1])


def test_a_parameter_that_has_not_moved_waits():
    """As after steps that a gradient scaler left out: optimizers set themselves up where there is no state."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    average(model, optimizer, 0.5)
    assert not any(optimizer.state.values())
