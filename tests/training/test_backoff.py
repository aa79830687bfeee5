"""Out of memory in a micro-batch: the run goes on with a smaller one, and nothing is lost."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from cramming_train.backoff import MicroBatchTooLarge
from cramming_train.checkpoint import latest_checkpoint, load_checkpoint, load_state
from cramming_train.distributed import World
from cramming_train.errors import RunError
from tests.training.helpers import TINY, environment, final_tensors, run, summary
from tests.training.test_engine import TRAINING, never, trainer, weights
from tests.training.test_loop import events, make_loop

TRAINING_8 = dataclasses.replace(TRAINING, micro_batch_size=8)


def limit(t, rows, *, after_steps=0):
    """Micro-batches of more rows find no memory; what they made before is thrown away."""
    original = t.forward

    def forward(ids_T, *arguments, **options):
        if ids_T.shape[0] > rows * t.row_length and t.step >= after_steps:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return original(ids_T, *arguments, **options)

    t.forward = forward
    return t


def test_the_run_goes_on_as_one_that_had_smaller_micro_batches_all_along(small_data, tmp_path):
    exhausted = make_loop(small_data, tmp_path / "a", tokens=4000, t=limit(trainer(small_data, TRAINING_8), 2))
    smaller = make_loop(small_data, tmp_path / "b", tokens=4000, t=trainer(small_data, TRAINING_8))
    smaller.trainer.micro_rows = 2
    assert exhausted.run() == smaller.run() == "budget"
    assert torch.equal(weights(exhausted.trainer), weights(smaller.trainer))
    assert exhausted.trainer.rows == smaller.trainer.rows and exhausted.trainer.tokens >= 4000
    notices = [event["message"] for event in events(tmp_path / "a", "notice")]
    assert notices == [
        "out of memory at step 1: micro-batches of 4 rows instead of 8 from here on",
        "out of memory at step 1: micro-batches of 2 rows instead of 4 from here on",
    ]
    assert not events(tmp_path / "b", "notice")


def test_memory_that_runs_out_on_the_way_changes_what_comes_after_alone(small_data):
    t, expected = (trainer(small_data, TRAINING_8) for _ in range(2))
    limit(t, 4, after_steps=2)
    for one in (t, expected):
        for _ in range(2):
            one.train_step(one.plan(0.5), never)
    before = weights(t)
    with pytest.raises(MicroBatchTooLarge):
        t.train_step(t.plan(0.5), never)
    assert torch.equal(weights(t), before) and (t.step, t.rows) == (2, 32)
    t.micro_rows = expected.micro_rows = 4
    t.optimizer.zero_grad()
    results = [one.train_step(one.plan(0.5), never) for one in (t, expected)]
    assert results[0].rows == results[1].rows == 16 and torch.equal(weights(t), weights(expected))


def test_the_gradients_of_the_failed_step_are_dropped(small_data, tmp_path):
    """The second micro-batch fails: the first one's gradients must not count twice."""
    t, calls = trainer(small_data, TRAINING_8), []
    original = t.forward

    def forward(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        return original(*arguments, **options)

    t.forward = forward
    make_loop(small_data, tmp_path / "a", tokens=1500, t=t).run()
    smaller = trainer(small_data, TRAINING_8)
    smaller.micro_rows = 4
    make_loop(small_data, tmp_path / "b", tokens=1500, t=smaller).run()
    assert t.micro_rows == 4 and len(calls) > 4 and torch.equal(weights(t), weights(smaller))


def test_a_resumed_run_keeps_the_smaller_micro_batch(small_data, tmp_path):
    whole = make_loop(small_data, tmp_path / "a", tokens=4000, t=limit(trainer(small_data, TRAINING_8), 4))
    whole.run()
    first = make_loop(small_data, tmp_path / "b", tokens=4000, t=limit(trainer(small_data, TRAINING_8), 4))
    answers, original = iter([None] * 12), first._stop
    first._stop = lambda: next(answers, "interrupt") or original()
    assert first.run() == "interrupt"
    checkpoint = latest_checkpoint(tmp_path / "b" / "checkpoints")
    assert load_state(checkpoint)["micro_rows"] == 4
    second = make_loop(small_data, tmp_path / "b", tokens=4000, t=trainer(small_data, TRAINING_8))  # no limit any more
    t = second.trainer
    t.restore(load_checkpoint(checkpoint, t.model, t.optimizer))
    second.budget.tokens_used = t.tokens
    assert 0 < t.step < whole.trainer.step
    second.run()
    assert torch.equal(weights(t), weights(whole.trainer))


def test_a_recovery_does_not_bring_the_larger_micro_batch_back(small_data, tmp_path):
    loop = make_loop(small_data, tmp_path, tokens=16 * 32 * 6, t=limit(trainer(small_data, TRAINING_8), 4))
    t, original, broken = loop.trainer, loop.trainer.train_step, []

    def breaking(plan, stop):
        result = original(plan, stop)
        if t.step == 2 and not broken:
            broken.append(True)
            return type(result)(result.loss * float("nan"), result.accuracy, result.gradient_norm, result.rows)
        return result

    t.train_step = breaking
    loop.run()
    assert broken and len(events(tmp_path, "recovery")) == 1 and t.micro_rows == 4
    assert len(events(tmp_path, "notice")) == 1  # the checkpoint gone back to was of 8 rows; they are not tried again


def test_no_memory_for_one_row_is_an_error_that_says_what_to_do(small_data, tmp_path):
    loop = make_loop(small_data, tmp_path, tokens=4000, t=limit(trainer(small_data, TRAINING_8), 0))
    with pytest.raises(RunError, match=r"step 1 with a micro-batch of one row: free memory.*--set data.row_length"):
        loop.run()
    assert len(events(tmp_path, "notice")) == 3 and loop.trainer.rows == 0


def test_no_memory_in_the_update_is_an_error_too(small_data, tmp_path):
    loop = make_loop(small_data, tmp_path, tokens=4000)

    def update(plan, rescale):
        raise torch.OutOfMemoryError

    loop.trainer._update = update
    with pytest.raises(RunError, match="in the update of step 1: free memory"):
        loop.run()


def test_one_process_without_memory_is_enough(small_data):
    class Other(World):
        """Another process of the group ran out of memory."""

        def any(self, flag, device):
            assert flag is False
            return True

    t = trainer(small_data)
    t.world = Other()
    with pytest.raises(MicroBatchTooLarge):
        t.train_step(t.plan(0.5), never)


LIMITED = """
import sys, torch
from cramming_train.model import MaskedLM
original = MaskedLM.forward
def forward(self, ids_T, *arguments, **options):
    if self.training and ids_T.shape[0] > 4 * 32 and torch.distributed.is_initialized() <= bool(RANK):
        raise torch.OutOfMemoryError("CUDA out of memory")
    return original(self, ids_T, *arguments, **options)
MaskedLM.forward = forward
from cramming_train.pretrain import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One cache of prepared data for both."""
    return tmp_path_factory.mktemp("place")


def test_the_command_survives_and_says_so(small_data, place):
    """A limit of 4 rows on a recipe of 8; and a run that was given 4 has the same weights."""
    arguments = ["--tokens", "8000", "--data", str(small_data.path), "--set", *TINY]
    script = LIMITED.replace("RANK", "1")
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments, "--name", "limited"], env=environment(place), cwd=place,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "out of memory at step 1: micro-batches of 4 rows instead of 8" in result.stderr
    given = run("pretrain", *arguments, "training.micro_batch_size=4", "--name", "given", tmp_path=place, report=False)
    assert given.returncode == 0, given.stderr
    limited, small = (place / "runs" / name for name in ("limited", "given"))
    assert summary(limited)["micro_batch_rows"] == summary(small)["micro_batch_rows"] == 4
    log = [json.loads(line) for line in (limited / "log.jsonl").read_text().splitlines()]
    assert [event["micro_batch_rows"] for event in log if event["event"] == "start"] == [8]
    assert summary(limited)["tokens"] == summary(small)["tokens"] and final_tensors(limited) == final_tensors(small)


@pytest.mark.exhaustive
def test_processes_agree(small_data, place):
    """Two of them; memory runs out in the second alone."""
    (place / "limited.py").write_text(LIMITED.replace("RANK", "torch.distributed.get_rank()"))
    arguments = ["--tokens", "8000", "--data", str(small_data.path), "--name", "pair", "--set", *TINY]
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29541", "limited.py",
         *arguments, "training.batch_size=16"],
        env=environment(place), cwd=place, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    content = summary(place / "runs" / "pair")
    assert content["processes"] == 2 and content["micro_batch_rows"] == 4 and content["tokens"] >= 8000
