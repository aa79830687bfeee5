"""Learning rate, batch size and masking rate over the budget, against the published formulas at many fractions."""

import math

import numpy as np
import pytest

from cramming_train.optim.schedules import SCHEDULES, batch_size_at, learning_rate_factor, masking_rate_at, window_at
from cramming_train.recipes import TRAININGS

FRACTIONS = [*np.linspace(0, 1, 97), 1e-9, 0.06, 0.25, 0.5, 0.599999, 0.6, 0.75, 1 - 1e-9]
WARMUPS = (0.0, 0.01, 1 / 30, 0.06, 0.5)
COOLDOWN = 0.3


def by_steps(name, step, steps, warmup_steps):
    """The step-based formulas that the budget schedules squeeze into the time there is."""
    if name == "triangle":
        return min(0.25 + step * (1 - 0.25) / (1 - 0.25) / steps, 1 / 0.25 - step / (steps * 0.25))
    if name == "one-cycle":
        return step / (steps / 2) if step < steps / 2 else 2 - step / (steps / 2)
    if step < warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / (steps - warmup_steps)
    if name == "linear":
        return (steps - step) / (steps - warmup_steps)
    if name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * 0.5 * 2 * progress))
    if name == "polynomial":  # from 1e-4 to 1e-7, of degree one
        return ((1e-4 - 1e-7) * (1 - progress) + 1e-7) / 1e-4
    if name == "trapezoid":
        return min(1.0, (steps - step) / (COOLDOWN * steps))
    assert name == "constant"
    return 1.0


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", WARMUPS)
def test_factors(name, warmup):
    for t in FRACTIONS:
        expected = by_steps(name, t * 900_000, 900_000, warmup * 900_000)
        assert learning_rate_factor(name, float(t), warmup, COOLDOWN) == pytest.approx(
            max(expected, 0), rel=1e-9, abs=1e-9
        ), t


def test_the_schedules_that_there_are():
    assert set(SCHEDULES) == {"triangle", "one-cycle", "linear", "cosine", "polynomial", "constant", "trapezoid"}
    assert {training.schedule for training in TRAININGS.values()} <= set(SCHEDULES)


def test_the_triangle_of_bert_o4():
    """A quarter at the start, the peak at three quarters of the budget, nothing at the end."""
    for t, factor in ((0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1), (0.875, 0.5), (1, 0)):
        assert learning_rate_factor("triangle", t, 0.0) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", WARMUPS)
def test_never_outside_zero_and_one_and_never_with_a_jump(name, warmup):
    """Beyond the budget's end as well: the last step may come a little late."""
    values = [learning_rate_factor(name, t, warmup, COOLDOWN) for t in np.linspace(-0.1, 1.1, 5000)]
    assert 0 <= min(values) and max(values) <= 1 and max(values) > 0.998
    start = 1 if warmup == 0 and name not in ("triangle", "one-cycle") else 0.25 * (name == "triangle")
    assert values[0] == pytest.approx(start, abs=1e-9)
    steepest = max(4, 1 / warmup if warmup else 0)
    assert np.abs(np.diff(values)).max() <= steepest * 1.2 / 4999 + 1e-9
    end = {"constant": 1, "polynomial": 1e-3}.get(name, 0)
    assert values[-1] == pytest.approx(end, abs=1e-12)


@pytest.mark.parametrize("micro_batch", [32, 64, 96, 128, 100])
@pytest.mark.parametrize("ceiling, ramp", [(8192, 0.6), (4096, 0.5), (1536, 0.5), (1000, 0.25), (8192, 1.0)])
def test_batch_ramp(micro_batch, ceiling, ramp):
    sizes = []
    for t in np.linspace(0, 1, 1001):
        t = float(t)
        size = batch_size_at(t, ceiling=ceiling, ramp=ramp, micro_batch=micro_batch)
        assert size == min(micro_batch * int(np.floor(t * ceiling / ramp / micro_batch + 1)), ceiling)
        assert size % micro_batch == 0 or size == ceiling
        assert t < ramp or size == ceiling
        sizes.append(size)
    assert sizes[0] == micro_batch and sorted(sizes) == sizes
    assert len(set(sizes)) == -(-ceiling // micro_batch)  # every number of micro-batches in its turn


def test_batch_ramp_of_bert_o4():
    """From one micro-batch of 128 to 64 of them at six tenths of the budget."""
    options = {"ceiling": 8192, "ramp": 0.6, "micro_batch": 128}
    sizes = [batch_size_at(t, **options) for t in (0, 0.009, 0.01, 0.3, 0.59, 0.5999, 0.6, 0.9, 1)]
    assert sizes == [128, 128, 256, 4224, 8064 + 128 * (0.59 * 64 / 0.6 >= 63), 8192, 8192, 8192, 8192]


def test_no_ramp():
    for t in (0.0, 0.3, 1.0):
        assert batch_size_at(t, ceiling=512, ramp=0.0, micro_batch=64) == 512


def test_masking_rate():
    for t in np.linspace(0, 1, 33):
        assert masking_rate_at(t, 0.3, 0.15) == pytest.approx(0.3 * (1 - t) + 0.15 * t)
        assert masking_rate_at(t, 0.25, 0.25) == pytest.approx(0.25)
    assert masking_rate_at(-1, 0.3, 0.15) == 0.3 and masking_rate_at(2, 0.3, 0.15) == pytest.approx(0.15)


@pytest.mark.parametrize("first, growth, row_length", [(4, 0.5, 128), (1, 1.0, 128), (3, 0.25, 100), (64, 0.1, 128)])
def test_window(first, growth, row_length):
    """Doubled at equal intervals: each as long as the others, the last of them less than a row, then all."""
    fractions = np.linspace(0, 1, 9601)[:-1]
    windows = [window_at(float(t), first=first, growth=growth, row_length=row_length) for t in fractions]
    assert all((w is None) == (t >= growth) for w, t in zip(windows, fractions, strict=True))
    seen = [w for w in windows if w is not None]
    expected = [first]
    while 2 * expected[-1] < row_length:
        expected.append(2 * expected[-1])
    assert seen == sorted(seen) and sorted(set(seen)) == expected
    shares = [seen.count(w) / len(seen) for w in expected]
    assert shares == pytest.approx([1 / len(expected)] * len(expected), abs=0.002)


def test_no_window():
    for t in (0.0, 0.3, 1.0):
        assert window_at(t, first=None, growth=0.5, row_length=128) is None
        assert window_at(t, first=128, growth=0.5, row_length=128) is None
    assert (
        window_at(0.6, first=4, growth=0.5, row_length=128) is None
        and window_at(1.2, first=4, growth=1, row_length=128) is None
    )
