"""Fine-tuning: the recipe's schedule, packed batches, exactness of the shortcuts, and that it learns."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from cramming_train.evaluation.classifier import Classifier, loss_of, predictions_of
from cramming_train.evaluation.encoding import Encoded, compact_vocabulary, encode, pack
from cramming_train.evaluation.finetune import TaskData, fine_tune, learning_rates
from cramming_train.evaluation.sources import Folder, load_split, load_train
from cramming_train.evaluation.subject import fine_tuning_architecture
from cramming_train.evaluation.suites import GLUE
from cramming_train.model import build_model
from cramming_train.recipes import EVALUATIONS

SANE = EVALUATIONS["glue-sane"]
CPU = torch.device("cpu")


def task_data(name, folder, tokenizer):
    task, source = GLUE.tasks[name], Folder(folder, GLUE)
    train, _ = load_train(source, task, None)
    splits = {split.key: load_split(source, task, split, labelled=True) for split in task.splits}
    validation = {row: encode(tokenizer, str.lower, examples, 32) for row, examples in splits.items()}
    return TaskData(task, encode(tokenizer, str.lower, train, 32), validation)


@pytest.fixture
def model(recipe, tokenizer):
    architecture = fine_tuning_architecture(recipe.architecture, recipe.evaluation)
    return build_model(architecture, tokenizer.get_vocab_size(), seed=3)


def cosine_with_warmup(step, steps, warmup_steps):
    """transformers.get_cosine_schedule_with_warmup, from its documentation."""
    if step < warmup_steps:
        return step / max(1, warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


@pytest.mark.parametrize(("name", "warmup_steps"), [("cola", 267), ("mrpc", 114), ("rte", 77), ("sst2", 2104)])
def test_every_task_warms_up_over_a_tenth_of_its_own_steps(name, warmup_steps):
    """The original kept the first task's 267 warm-up steps for all later tasks."""
    rows = GLUE.tasks[name].train_rows
    rates = learning_rates(SANE, rows)
    steps = 5 * (rows // 16)
    assert len(rates) == steps
    assert rates[0] == 0.0 and np.argmax(rates) == warmup_steps and rates[warmup_steps] == 4e-5
    expected = [4e-5 * cosine_with_warmup(step, steps, warmup_steps) for step in range(steps)]
    assert rates == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("name", ["cola", "rte", "sst2"])
def test_the_faithful_recipe_warms_up_over_colas_steps(name):
    """As the original's published scores were made: 267 steps, whether a task has 775 or 21,045."""
    rows = GLUE.tasks[name].train_rows
    rates = learning_rates(EVALUATIONS["glue-sane-original"], rows)
    steps = 5 * (rows // 16)
    expected = [4e-5 * cosine_with_warmup(step, steps, 267) for step in range(steps)]
    assert rates == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert (rates == pytest.approx(learning_rates(SANE, rows))) == (name == "cola")


def test_a_task_shorter_than_the_warm_up_never_leaves_it():
    rates = learning_rates(EVALUATIONS["glue-sane-original"], 635)
    assert len(rates) == 195 and rates == pytest.approx([4e-5 * step / 267 for step in range(195)])


def test_the_other_recipe_is_linear():
    rates = learning_rates(EVALUATIONS["glue"], 3200)
    assert len(rates) == 1000 and np.argmax(rates) == 60 and max(rates) == 2e-5
    assert np.diff(rates[60:]) == pytest.approx(-2e-5 / 940)


def random_split(rows=11, vocabulary=67, longest=20):
    rng = np.random.default_rng(5)
    lengths = rng.integers(2, longest, rows)
    ids = rng.integers(4, vocabulary, lengths.sum()).astype(np.int32)
    return Encoded(ids, np.concatenate([[0], np.cumsum(lengths)]), rng.integers(0, 2, rows))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_packed_examples_do_not_see_each_other(model, pooling):
    """A batch gives each example the logits that it gets alone."""
    split = random_split()
    vocabulary, (split,) = compact_vocabulary([split])
    classifier = Classifier(model, vocabulary, 3, 32, 0.1, seed=0, pooling=pooling)
    together = classifier(pack(split, np.arange(11)))
    alone = torch.cat([classifier(pack(split, np.array([row]))) for row in range(11)])
    assert together.shape == (11, 3) and together.std(dim=0).min() > 1e-4
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_classifier_is_a_state_through_the_head(model, pooling):
    """Against the plain definition on the whole encoder's output: the first state of a sequence, or the mean of all."""
    split = random_split()
    classifier = Classifier(model, np.arange(67), 2, 32, 0.1, seed=0, pooling=pooling)
    batch = pack(split, np.array([3, 8]))
    hidden_TN = model.encoder(batch.ids_T, batch.cu_seqlens, batch.max_seqlen)
    states = hidden_TN.split(batch.cu_seqlens.diff().tolist())
    states_BN = torch.stack([state_LN[0] if pooling == "cls" else state_LN.mean(dim=0) for state_LN in states])
    pooled_BC = torch.tanh(states_BN @ classifier.pooler.weight.T + classifier.pooler.bias)
    expected = pooled_BC @ classifier.output.weight.T + classifier.output.bias
    torch.testing.assert_close(classifier(batch), expected, rtol=1e-5, atol=1e-6)


def test_dropout_is_on_in_training_and_a_function_of_the_step(model):
    classifier = Classifier(model, np.arange(67), 2, 32, 0.1, seed=0)
    batch = pack(random_split(), np.arange(4))
    off, first, second = classifier(batch), classifier(batch, 0), classifier(batch, 1)
    assert not torch.equal(off, first) and not torch.equal(first, second)
    assert torch.equal(first, classifier(batch, 0)) and torch.equal(off, classifier(batch))
    other = Classifier(model, np.arange(67), 2, 32, 0.1, seed=1)
    other.load_state_dict(classifier.state_dict())
    assert not torch.equal(first, other(batch, 0)), "the masks have to depend on the seed"


def test_the_head_alone_drops_out_too(recipe, tokenizer):
    """With the encoder's dropout at zero the head still has its own, and keeps the mean."""
    quiet = dataclasses.replace(recipe.evaluation, dropout=0.0)
    model = build_model(fine_tuning_architecture(recipe.architecture, quiet), tokenizer.get_vocab_size(), seed=3)
    classifier = Classifier(model, np.arange(67), 1, 4096, 0.25, seed=0)
    ones = torch.ones(2, 4096)
    dropped = classifier._drop(ones, 0)
    assert sorted(dropped.unique().tolist()) == pytest.approx([0.0, 1 / 0.75])
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.03)


def test_losses():
    logits = torch.tensor([[1.0], [3.0]])
    assert loss_of(logits, torch.tensor([2.0, 0.0])).item() == pytest.approx((1 + 9) / 2)
    assert predictions_of(logits, regression=True).tolist() == [1.0, 3.0]
    logits = torch.tensor([[0.0, 2.0], [1.0, -1.0]])
    by_hand = (math.log(1 + math.exp(-2.0)) + math.log(1 + math.exp(2.0))) / 2
    assert loss_of(logits, torch.tensor([1, 1])).item() == pytest.approx(by_hand)
    assert predictions_of(logits, regression=False).tolist() == [1, 0]


def test_a_compact_vocabulary_changes_no_result(model, recipe, toy_glue, tokenizer, monkeypatch):
    data = task_data("stsb", toy_glue, tokenizer)
    settings = dataclasses.replace(recipe.evaluation, epochs=1, weight_decay=0.1)
    compact = fine_tune(model, data, settings, seed=1, device=CPU, precision="fp32")
    monkeypatch.setattr(
        "cramming_train.evaluation.finetune.compact_vocabulary", lambda splits: (np.arange(67), list(splits))
    )
    whole = fine_tune(model, data, settings, seed=1, device=CPU, precision="fp32")
    assert compact.train_loss == pytest.approx(whole.train_loss, rel=1e-5)
    assert compact.values == pytest.approx(whole.values, abs=1e-5)


def test_learns_above_chance_and_not_from_shuffled_labels(model, recipe, toy_glue, tokenizer):
    data = task_data("cola", toy_glue, tokenizer)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    learned = fine_tune(model, data, recipe.evaluation, seed=0, device=CPU, precision="fp32")
    assert learned.steps == 5 * 25
    assert learned.values["cola"] > 0.8
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    labels = np.random.default_rng(1).permutation(data.train.labels)
    shuffled = dataclasses.replace(data, train=dataclasses.replace(data.train, labels=labels))
    chance = fine_tune(model, shuffled, recipe.evaluation, seed=0, device=CPU, precision="fp32")
    assert abs(chance.values["cola"]) < 0.4


def test_learns_regression(model, recipe, toy_glue, tokenizer):
    data = task_data("stsb", toy_glue, tokenizer)
    settings = dataclasses.replace(recipe.evaluation, epochs=15)  # the first five only find the mean
    outcome = fine_tune(model, data, settings, seed=0, device=CPU, precision="fp32")
    assert outcome.values["stsb"] > 0.5


def test_same_seed_same_numbers(model, recipe, toy_glue, tokenizer):
    data = task_data("stsb", toy_glue, tokenizer)
    settings = dataclasses.replace(recipe.evaluation, epochs=1)
    first, again, other = (
        fine_tune(model, data, settings, seed=seed, device=CPU, precision="fp32") for seed in (0, 0, 1)
    )
    assert (first.values, first.train_loss) == (again.values, again.train_loss)
    assert first.train_loss != other.train_loss


def test_a_fine_tuning_that_diverges_is_a_zero_with_a_note(model, recipe, toy_glue, tokenizer):
    data = task_data("stsb", toy_glue, tokenizer)
    settings = dataclasses.replace(recipe.evaluation, learning_rate=1e30, epochs=1)
    outcome = fine_tune(model, data, settings, seed=0, device=CPU, precision="fp32")
    assert outcome.values == {"stsb": 0.0} and "diverged" in outcome.notes[0]
    assert outcome.train_loss is None or math.isfinite(outcome.train_loss)


def test_progress_adds_up(model, recipe, toy_glue, tokenizer):
    """All rows of the toy train set fill batches, so every announced token pass is reported."""
    data = task_data("cola", toy_glue, tokenizer)
    seen = []
    settings = dataclasses.replace(recipe.evaluation, epochs=2)
    fine_tune(
        model,
        data,
        settings,
        seed=0,
        device=CPU,
        precision="fp32",
        on_tokens=lambda n, where: seen.append((n, where)),
    )
    assert sum(tokens for tokens, _ in seen) == data.tokens(2)
    assert {where for _, where in seen} == {"epoch 1/2", "epoch 2/2", "validation"}
