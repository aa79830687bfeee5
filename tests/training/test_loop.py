"""What happens between steps: budget, saving, recovery, interruption."""

import dataclasses
import errno
import signal

import pytest
import torch

import cramming_train.loop as loop_module
from cramming_train.budget import Budget
from cramming_train.checkpoint import latest_checkpoint, load_checkpoint, load_state
from cramming_train.display import Display
from cramming_train.errors import RunError
from cramming_train.loop import Loop
from cramming_train.signals import StopRequest
from cramming_train.tracking import RunLog, read_log
from tests.training.test_engine import TRAINING, trainer, weights


class Clock:
    """Moves by ``tick`` seconds at every micro-batch."""

    def __init__(self, tick):
        self.now, self.tick = 0.0, tick

    def __call__(self):
        return self.now


def make_loop(small_data, folder, *, seconds=1000.0, tokens=None, tick=1.0, t=None):
    clock = Clock(tick)
    budget = Budget(seconds, tokens=tokens, clock=clock)
    t = t or trainer(small_data)
    original = t._micro_batch

    def ticking(plan, number):
        clock.now += clock.tick
        return original(plan, number)

    t._micro_batch = ticking
    folder.mkdir(parents=True, exist_ok=True)
    log = RunLog(folder / "log.jsonl", lambda: budget.elapsed)
    return Loop(
        trainer=t, budget=budget, log=log, display=Display(False), checkpoints=folder / "checkpoints",
        validation=small_data.validation, stop_request=StopRequest(), gemm_rate=1e9,
    )  # fmt: skip


def events(folder, name):
    return [event for event in read_log(folder / "log.jsonl") if event["event"] == name]


def test_a_wall_clock_budget_ends_within_one_micro_batch_with_a_saved_model(small_data, tmp_path):
    loop = make_loop(small_data, tmp_path, seconds=30.5)
    assert loop.run() == "budget"
    assert 29.5 <= loop.budget.elapsed <= 30.5 + loop.budget.seconds * 0.05
    checkpoint = latest_checkpoint(tmp_path / "checkpoints")
    assert load_state(checkpoint)["rows"] == loop.trainer.rows
    assert events(tmp_path, "end")


def test_a_token_budget_ends_at_its_tokens(small_data, tmp_path):
    loop = make_loop(small_data, tmp_path, tokens=3000)
    loop.run()
    assert 3000 <= loop.trainer.tokens < 3000 + 4 * 32


def test_validation_comes_at_every_tenth(small_data, tmp_path):
    loop = make_loop(small_data, tmp_path, tokens=16 * 32 * 20)
    loop.run()
    found = events(tmp_path, "validation")
    assert len(found) == 9 and all(0 <= event["accuracy"] < 1 for event in found)
    assert 0 < found[-1]["loss"] < found[0]["loss"]
    assert [event["tokens"] for event in found] == sorted(event["tokens"] for event in found)


@pytest.mark.parametrize("averaging", ["none", "ema", "window"])
def test_resumed_equals_uninterrupted(small_data, tmp_path, averaging):
    training = dataclasses.replace(TRAINING, averaging=averaging, averaging_share=0.9)

    def make(name):
        return make_loop(small_data, tmp_path / name, tokens=8000, t=trainer(small_data, training))

    whole = make("a")
    whole.run()
    first = make("b")
    answers = iter([None] * 9)
    original = first._stop
    first._stop = lambda: next(answers, "interrupt") or original()
    assert first.run() == "interrupt"
    second = make("b")
    t = second.trainer
    for parameter in t.model.parameters():  # nothing of a fresh start may survive
        parameter.data.normal_()
    t.restore(load_checkpoint(latest_checkpoint(tmp_path / "b" / "checkpoints"), t.model, t.optimizer))
    second.budget.tokens_used = t.tokens
    assert 0 < t.step < whole.trainer.step
    second.run()
    assert t.step == whole.trainer.step and torch.equal(weights(t), weights(whole.trainer))


@pytest.mark.parametrize("where", ["weights", "loss"])
def test_a_non_finite_loss_is_named_and_recovered_from(small_data, tmp_path, where):
    loop = make_loop(small_data, tmp_path, tokens=16 * 32 * 12)
    t, original, state = loop.trainer, loop.trainer.train_step, {"broken": False}

    def breaking(plan, stop):
        if t.step == 5 and not state["broken"]:
            state["broken"] = True
            if where == "weights":
                t.model.encoder.blocks[1].ffn_in.weight.data[0, 0] = float("nan")
        result = original(plan, stop)
        if where == "loss" and state["broken"] and t.step == 6 and t.rows < 16 * 7:
            return type(result)(result.loss * float("nan"), result.accuracy, result.gradient_norm, result.rows)
        return result

    t.train_step = breaking
    loop.run()
    (bad,) = events(tmp_path, "non_finite")
    assert bad["first"].startswith("weights of" if where == "weights" else "the loss")
    assert len(events(tmp_path, "recovery")) == 1
    assert torch.isfinite(weights(t)).all() and t.tokens >= 16 * 32 * 12


def test_training_that_stays_broken_stops_with_the_good_checkpoint(small_data, tmp_path):
    loop = make_loop(small_data, tmp_path, tokens=10**6)
    original = loop.trainer.train_step

    def breaking(plan, stop):
        result = original(plan, stop)
        return type(result)(result.loss * float("inf"), result.accuracy, result.gradient_norm, result.rows)

    loop.trainer.train_step = breaking
    with pytest.raises(RunError, match=r"diverged.*peak_lr"):
        loop.run()
    t = trainer(small_data, seed=3)
    load_checkpoint(latest_checkpoint(tmp_path / "checkpoints"), t.model, t.optimizer)
    assert torch.isfinite(weights(t)).all()


def test_a_full_disk_during_training_is_survived_and_at_the_end_reported(small_data, tmp_path, monkeypatch):
    saves, real = [], loop_module.save_checkpoint

    def sometimes_full(folder, step, *rest):
        saves.append(step)
        if step > 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        return real(folder, step, *rest)

    monkeypatch.setattr(loop_module, "save_checkpoint", sometimes_full)
    monkeypatch.setattr(loop_module, "MIN_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop_module, "CHECKPOINT_SHARE", 1e9)
    loop = make_loop(small_data, tmp_path, tokens=5000)
    with pytest.raises(RunError, match="disk full"):
        loop.run()
    assert loop.trainer.tokens >= 5000 and len(saves) > 3
    assert events(tmp_path, "notice") and latest_checkpoint(tmp_path / "checkpoints").name == "step-00000000"


def test_a_signal_stops_at_a_safe_place(small_data, tmp_path):
    loop = make_loop(small_data, tmp_path, tokens=10**7)
    original, count = loop.trainer._micro_batch, []

    def signalling(plan, number):
        count.append(1)
        if len(count) == 10:
            signal.raise_signal(signal.SIGTERM)
        return original(plan, number)

    loop.trainer._micro_batch = signalling
    with loop.stop_request:
        assert loop.run() == "interrupt"
    assert loop.stop_request.received == signal.SIGTERM
    state = load_state(latest_checkpoint(tmp_path / "checkpoints"))
    assert state["rows"] == loop.trainer.rows == 32  # two whole steps; the third was given up
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_log_of_a_step_has_all_its_numbers(small_data, tmp_path):
    loop = make_loop(small_data, tmp_path, tokens=2000)
    loop.run()
    step = events(tmp_path, "step")[0]
    for key in ("step", "tokens", "rows", "epoch", "loss", "accuracy", "grad_norm", "learning_rate", "batch_rows",
                "masking_rate", "fraction", "tokens_per_second", "model_flops_utilization"):  # fmt: skip
        assert isinstance(step[key], int | float), key
    assert step["attention_window"] is None
