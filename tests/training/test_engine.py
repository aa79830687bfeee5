"""One optimizer step: what is summed, averaged, clipped, given up."""

import dataclasses
import re

import pytest
import torch

import cramming_train.engine as engine
from cramming_train.compilation import compile_checked, wants_compilation
from cramming_train.distributed import World
from cramming_train.engine import Trainer
from cramming_train.loader import RowStream
from cramming_train.masking import MaskedBatch, mask_rows
from cramming_train.model import build_model
from cramming_train.precision import Precision
from cramming_train.recipes import Architecture, Training

CPU = torch.device("cpu")
ARCHITECTURE = Architecture("tiny", 2, 32, 2, 64, ffn="geglu", final_norm=True, linear_bias=False, max_length=64)
TRAINING = Training("t", batch_size=16, micro_batch_size=4, grad_clip=0.5, schedule="constant")


def trainer(small_data, training=TRAINING, architecture=ARCHITECTURE, seed=0):
    model = build_model(architecture, small_data.vocab_size, seed=seed)
    stream = RowStream(small_data.train, seed)
    return Trainer(model, stream, training, seed=seed, device=CPU, precision=Precision("fp16", CPU), world=World())


def never():
    return None


def weights(t):
    return torch.cat([p.detach().reshape(-1) for p in t.model.parameters()])


def test_accumulation_equals_one_batch_of_the_same_masks(small_data, monkeypatch):
    """Four micro-batches of 4 rows give the gradient of one of 16; masks are drawn per row for the comparison."""

    def row_by_row(ids_BS, counts, vocab_size, *, seed, index):
        rows, length = ids_BS.shape
        batches = [mask_rows(ids_BS[i : i + 1], counts, vocab_size, seed=seed, index=index + i) for i in range(rows)]
        positions_M = torch.cat([batch.positions_M + i * length for i, batch in enumerate(batches)])
        labels_M = torch.cat([batch.labels_M for batch in batches])
        return MaskedBatch(torch.cat([batch.ids_T for batch in batches]), labels_M, positions_M)

    monkeypatch.setattr(engine, "mask_rows", row_by_row)
    small = trainer(small_data)
    large = trainer(small_data, dataclasses.replace(TRAINING, micro_batch_size=16))
    assert (small.plan(0.5).micro_batches, large.plan(0.5).micro_batches) == (4, 1)
    results = [t.train_step(t.plan(0.5), never) for t in (small, large)]
    torch.testing.assert_close(results[0].loss, results[1].loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(results[0].gradient_norm, results[1].gradient_norm, rtol=1e-4, atol=1e-6)
    assert small.rows == large.rows == 16 and small.tokens == 16 * 32


def test_the_same_seed_gives_the_same_bits_and_another_does_not(small_data):
    runs = []
    for seed in (0, 0, 1):
        t = trainer(small_data, seed=seed)
        for _ in range(3):
            t.train_step(t.plan(0.3), never)
        runs.append(weights(t))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_dropout_is_reproducible_too(small_data):
    training = dataclasses.replace(TRAINING, dropout=True)
    runs = []
    for _ in range(2):
        torch.manual_seed(torch.seed() % 2**31)  # the global generator has no say
        t = trainer(small_data, training)
        t.train_step(t.plan(0.3), never)
        runs.append(weights(t))
    plain = trainer(small_data)
    plain.train_step(plain.plan(0.3), never)
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], weights(plain))


def test_an_interrupt_in_the_middle_changes_nothing(small_data):
    t = trainer(small_data)
    before = weights(t)
    answers = iter([None, "interrupt"])
    assert t.train_step(t.plan(0.5), lambda: next(answers)) is None
    assert torch.equal(weights(t), before) and (t.step, t.rows) == (0, 0)
    assert all(p.grad is None for p in t.model.parameters())


def test_a_budget_that_ends_in_the_middle_takes_the_mean_of_what_was_done(small_data):
    """Two of four micro-batches: the same step as a plan of two."""
    cut, planned = trainer(small_data), trainer(small_data, dataclasses.replace(TRAINING, batch_size=8))
    answers = iter([None, "budget"])
    result = cut.train_step(cut.plan(0.5), lambda: next(answers))
    expected = planned.train_step(planned.plan(0.5), never)
    assert result.rows == 8 == expected.rows
    torch.testing.assert_close(result.loss, expected.loss)
    torch.testing.assert_close(result.gradient_norm, expected.gradient_norm, rtol=1e-4, atol=1e-6)


def test_plans_follow_the_schedules_and_the_tokens_left(small_data):
    training = Training(
        "t", batch_size=64, micro_batch_size=8, batch_ramp=0.5, masking_rate=0.3, masking_rate_final=0.15
    )
    t = trainer(small_data, training)
    assert [t.plan(f).rows(World()) for f in (0.0, 0.1, 0.5, 1.0)] == [8, 16, 64, 64]
    assert t.plan(0.0).learning_rate == pytest.approx(0.25e-3) and t.plan(0.75).learning_rate == pytest.approx(1e-3)
    assert (t.plan(0.0).masking.masked, t.plan(1.0).masking.masked) == (10, 5)
    assert t.plan(1.0, tokens_left=3 * 8 * 32).micro_batches == 3 and t.plan(1.0, tokens_left=1).micro_batches == 1


def test_the_window_of_the_plan_reaches_attention(small_data):
    """Narrow at the start: the loss is that of the model with this window; whole rows from half of the budget on."""
    t = trainer(small_data, dataclasses.replace(TRAINING, first_window=2, window_growth=0.5))
    assert [t.plan(f).window for f in (0.0, 0.13, 0.26, 0.38, 0.5, 1.0)] == [2, 4, 8, 16, None, None]
    arguments, options = t.micro_batch_inputs(t.plan(0.0), 0)
    assert options["window"] == 2 and "window" not in t.micro_batch_inputs(t.plan(0.7), 0)[1]
    expected = t.model(*arguments, window=2).loss.detach()
    step = t.train_step(dataclasses.replace(t.plan(0.0), micro_batches=1), never)
    assert step.loss.equal(expected)


@pytest.mark.parametrize("kind", ["window", "ema"])
def test_a_mean_of_weights_changes_nothing_before_the_end(small_data, kind):
    plain, averaged = trainer(small_data), trainer(small_data, dataclasses.replace(TRAINING, averaging=kind))
    passed = []
    for _ in range(3):
        for t in (plain, averaged):
            t.train_step(t.plan(0.95), never)
        assert weights(plain).equal(weights(averaged))
        passed.append(weights(plain))
    averaged.finish()
    second, third = 1 / 1.1, 1 / 1.2
    shares = [1 / 3] * 3 if kind == "window" else [(1 - second) * (1 - third), second * (1 - third), third]
    torch.testing.assert_close(weights(averaged), torch.tensor(shares) @ torch.stack(passed))


def test_clipping_bounds_the_step_but_reports_the_norm(small_data):
    t = trainer(small_data, dataclasses.replace(TRAINING, grad_clip=1e-3))
    seen = []
    original = t.precision.step
    t.precision.step = lambda optimizer: (
        seen.append(torch.cat([p.grad.reshape(-1) for p in t.model.parameters()]).norm()), original(optimizer)
    )  # fmt: skip
    result = t.train_step(t.plan(0.5), never)
    assert result.gradient_norm > 1e-2 and float(seen[0]) == pytest.approx(1e-3, rel=1e-2)


def test_training_with_documents_kept_apart(small_data):
    t = trainer(small_data, architecture=dataclasses.replace(ARCHITECTURE, document_attention=True))
    (arguments, _), plan = t.micro_batch_inputs(t.plan(0.5), 0), t.plan(0.5)
    assert arguments[3].shape[0] >= plan.micro_rows + 1
    assert t.train_step(plan, never).is_finite(check_gradient=True)


def test_training_lowers_the_loss(small_data):
    t = trainer(small_data, dataclasses.replace(TRAINING, batch_size=8, micro_batch_size=8, peak_lr=3e-3))
    losses = [float(t.train_step(t.plan(0.5), never).loss) for _ in range(60)]
    assert sum(losses[-10:]) / 10 < sum(losses[:10]) / 10 - 0.5


def test_a_compiled_model_is_used_only_when_it_agrees(small_data):
    t = trainer(small_data)
    assert compile_checked(t, lambda model: model).compiled and t.forward is t.model

    def wrong(model):
        def forward(*arguments, **options):
            result = model(*arguments, **options)
            return result._replace(loss=result.loss * 1.01)

        return forward

    def broken(model):
        raise RuntimeError("no compiler here")

    def wrong_gradient(model):
        def forward(*arguments, **options):
            result = model(*arguments, **options)
            extra = model.encoder.blocks[0].qkv.weight.sum()
            return result._replace(loss=result.loss + extra - extra.detach())

        return forward

    for compiler, words in (
        (wrong, "loss differs"),
        (wrong_gradient, "gradient of .*qkv"),
        (broken, "no compiler here"),
    ):
        t = trainer(small_data)
        t.forward = None
        outcome = compile_checked(t, compiler)
        assert not outcome.compiled and t.forward is None
        assert re.search(words, outcome.reason)
        assert all(p.grad is None for p in t.model.parameters())


def test_when_to_compile():
    assert wants_compilation("auto", torch.device("cuda")) and not wants_compilation("auto", CPU)
    assert wants_compilation("on", CPU) and not wants_compilation("off", torch.device("cuda"))


def test_a_cpu_runs_fp32_whatever_the_recipe_says():
    precision = Precision("fp16", CPU)
    assert precision.name == "fp32" and precision.scaler is None and precision.scale is None
    with precision.autocast():
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32
