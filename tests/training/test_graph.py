"""Micro-batches by a graph's rules, with a stand-in for the capture: what a replay sees, and where its results go."""

import dataclasses

import pytest
import torch

from cramming_train.graph import GraphedMicroStep, graph_checked, graph_that_fits
from tests.training.test_engine import ARCHITECTURE, TRAINING, never, trainer, weights


class Capture:
    """Runs a function anew at each replay, as a graph does; results are written over the first ones."""

    def __init__(self):
        self.captures = self.replays = 0

    def __call__(self, function):
        self.captures += 1
        for _ in range(3):
            function()
        results = [x.clone() for x in function()]

        def replay():
            self.replays += 1
            for kept, new in zip(results, function(), strict=True):
                kept.copy_(new)

        return replay, results


def graphed(small_data, **changes):
    architecture = changes.pop("architecture", ARCHITECTURE)
    t = trainer(small_data, dataclasses.replace(TRAINING, **changes), architecture)
    t.static_shapes = True
    capture = Capture()
    outcome = graph_checked(t, capture)
    assert outcome.graphed and "agrees with eager" in outcome.reason and isinstance(t.micro_step, GraphedMicroStep)
    assert (capture.captures, capture.replays) == (1, 1)
    return t, capture


@pytest.mark.parametrize("changes", [
    {},
    {"dropout": True},
    {"architecture": dataclasses.replace(ARCHITECTURE, document_attention=True)},
    {"masking_rate": 0.3, "masking_rate_final": 0.1},
    {"batch_ramp": 1.0},
    {"first_window": 2, "window_growth": 0.9},
], ids=str)  # fmt: skip
def test_steps_give_the_same_bits_as_without(small_data, changes):
    """Several micro-batches a step, whose number, masking rate and window change from step to step."""
    t, capture = graphed(small_data, **changes)
    changes = dict(changes)
    plain = trainer(small_data, architecture=changes.pop("architecture", ARCHITECTURE),
                    training=dataclasses.replace(TRAINING, **changes))  # fmt: skip
    plain.static_shapes = True
    for fraction in (0.1, 0.5, 0.5, 0.9):
        results = [x.train_step(x.plan(fraction), never) for x in (t, plain)]
        assert all(torch.equal(getattr(results[0], f), getattr(results[1], f)) for f in ("loss", "gradient_norm"))
    assert torch.equal(weights(t), weights(plain)) and t.rows == plain.rows
    plans = [t.plan(fraction) for fraction in (0.0, 0.1, 0.5, 0.9)]
    assert capture.captures == len({(plan.masking.masked, plan.window) for plan in plans})


def test_an_interrupted_step_leaves_no_gradient_behind(small_data):
    t, _ = graphed(small_data)
    plain = trainer(small_data)
    answers = iter([None, "interrupt"])
    assert t.train_step(t.plan(0.5), lambda: next(answers)) is None
    for x in (t, plain):
        x.train_step(x.plan(0.5), never)
    assert torch.equal(weights(t), weights(plain))


def refuses(function):
    raise RuntimeError("operation not permitted when stream is capturing\nmore words")


def goes_wrong(function):
    replay, results = Capture()(function)

    def wrong():
        replay()
        results[0].mul_(1.01)

    return wrong, results


@pytest.mark.parametrize(("capture", "words"), [
    (refuses, "no CUDA graph: RuntimeError: operation not permitted when stream is capturing"),
    (goes_wrong, "no CUDA graph: its loss differs from eager's"),
])  # fmt: skip
def test_a_capture_that_fails_or_errs_is_not_used(small_data, capture, words):
    t, plain = trainer(small_data), trainer(small_data)
    outcome = graph_checked(t, capture)
    assert not outcome.graphed and outcome.reason.startswith(words) and "more words" not in outcome.reason
    assert t.micro_step == t.eager_micro_step and all(p.grad is None for p in t.model.parameters())
    for x in (t, plain):
        x.train_step(x.plan(0.5), never)
    assert torch.equal(weights(t), weights(plain))


def test_out_of_memory_is_no_reason_to_go_on_without(small_data):
    """A smaller micro-batch is the remedy, which is the caller's to choose."""

    def full(function):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        graph_checked(trainer(small_data), full)


def test_smaller_micro_batches_until_one_fits(small_data):
    t = trainer(small_data)
    capture = Capture()

    def small_card(function):
        if t.micro_rows > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return capture(function)

    is_graphed, reasons = graph_that_fits(t, small_card)
    assert is_graphed and t.micro_rows == 1 and len(reasons) == 3 and "agrees with eager" in reasons[-1]
    assert "micro-batches of 2 rows instead of 4" in reasons[0]
    assert t.train_step(t.plan(0.5), never).rows == 16


def test_shapes_do_not_depend_on_the_documents(small_data):
    t = trainer(small_data, architecture=dataclasses.replace(ARCHITECTURE, document_attention=True))
    t.static_shapes = True
    plan = t.plan(0.5)
    for number in range(3):
        (ids_T, _, _, cu_seqlens, max_seqlen), _ = t.micro_batch_inputs(plan, number)
        assert cu_seqlens.shape == (ids_T.shape[0] + 1,) and int(cu_seqlens[-1]) == ids_T.shape[0] and max_seqlen == 32
        assert (cu_seqlens.diff() >= 0).all()
