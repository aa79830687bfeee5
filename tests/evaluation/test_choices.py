"""Choices: one score each, a softmax over those of a row, whatever their number; and it learns."""

import dataclasses

import numpy as np
import pytest
import torch

from cramming_train.evaluation.classifier import Classifier, by_choice, loss_of, predictions_of
from cramming_train.evaluation.encoding import Encoded, compact_vocabulary, encode, pack, validation_batches
from cramming_train.evaluation.finetune import TaskData, fine_tune, predict
from cramming_train.evaluation.framing import Use
from cramming_train.evaluation.sources import frame_rows
from cramming_train.evaluation.subject import fine_tuning_architecture
from cramming_train.evaluation.suites import SUPERGLUE
from cramming_train.model import build_model
from cramming_train.precision import Precision
from tests.evaluation.conftest import WORDS

CPU = torch.device("cpu")


def random_choices(rng, counts):
    """Examples with so many sequences each."""
    lengths = rng.integers(2, 12, sum(counts))
    ids = rng.integers(4, 67, lengths.sum()).astype(np.int32)
    labels = np.array([rng.integers(0, count) for count in counts])
    return Encoded(ids, np.concatenate([[0], np.cumsum(lengths)]), labels, np.array(counts))


@pytest.fixture
def model(recipe, tokenizer):
    architecture = fine_tuning_architecture(recipe.architecture, recipe.evaluation)
    return build_model(architecture, tokenizer.get_vocab_size(), seed=3)


def test_rows_of_scores_and_their_gradient():
    scores = torch.tensor([[1.0], [2.0], [0.5], [3.0], [-1.0], [4.0]], requires_grad=True)
    rows = by_choice(scores, (1, 3, 2))
    inf = -torch.inf
    assert rows.tolist() == [[1.0, inf, inf], [2.0, 0.5, 3.0], [-1.0, 4.0, inf]]
    assert predictions_of(rows, regression=False).tolist() == [0, 2, 1]
    labels = torch.tensor([0, 1, 1])
    loss_of(rows, labels).backward()
    expected = [torch.softmax(torch.tensor(part), 0) for part in ([1.0], [2.0, 0.5, 3.0], [-1.0, 4.0])]
    by_hand = -sum(torch.log(p[label]) for p, label in zip(expected, labels, strict=True)) / 3
    assert loss_of(rows, labels).item() == pytest.approx(by_hand.item(), rel=1e-6)
    for p, label in zip(expected, labels, strict=True):
        p[label] -= 1
    torch.testing.assert_close(scores.grad.squeeze(1), torch.cat(expected) / 3)


def test_a_batch_scores_each_sequence_as_it_is_scored_alone(model):
    split = random_choices(np.random.default_rng(0), [3, 1, 4, 2, 5])
    vocabulary, (split,) = compact_vocabulary([split])
    classifier = Classifier(model, vocabulary, 1, 32, 0.1, seed=0)
    rows = np.array([4, 0, 2])
    together = classifier(pack(split, rows))
    assert together.shape == (3, 5)
    single = Encoded(split.ids, split.offsets, np.zeros(15, dtype=np.int64))
    for place, row in enumerate(rows):
        first, count = split.firsts[row], split.counts[row]
        alone = [classifier(pack(single, np.array([first + n]))).item() for n in range(count)]
        assert together[place, :count].tolist() == pytest.approx(alone, rel=1e-4, abs=1e-6)
        assert torch.isinf(together[place, count:]).all()


def test_validation_covers_every_example_once_with_all_its_choices():
    split = random_choices(np.random.default_rng(1), np.random.default_rng(2).integers(1, 6, 57).tolist())
    rows, sequences = [], 0
    for batch_rows, batch in validation_batches(split, tokens=100):
        rows += batch_rows.tolist()
        sequences += len(batch.cu_seqlens) - 1
        assert sum(batch.choices) == len(batch.positions_S) and list(batch.choices) == split.counts[batch_rows].tolist()
    assert sorted(rows) == list(range(57)) and sequences == split.counts.sum()


def test_a_lone_choice_is_chosen(model):
    """Where each example has but one choice the scores look like a regression's, and are none."""
    split = random_choices(np.random.default_rng(3), [1, 1, 1])
    classifier = Classifier(model, np.arange(67), 1, 32, 0.1, seed=0)
    assert predict(classifier, split, Precision("fp32", CPU)).tolist() == [0, 0, 0]


def test_learns_to_choose(model, recipe, tokenizer):
    """Queries whose right entity is a word of the first half, among two to four; chance is about a third."""
    rng, task = np.random.default_rng(4), SUPERGLUE.tasks["record"]

    def rows(number):
        for row in range(number):
            wrong = rng.choice(WORDS[30:], rng.integers(1, 4), replace=False).tolist()
            right = str(rng.choice(WORDS[:30]))
            entities = rng.permutation([right, *wrong]).tolist()
            query = f"{rng.choice(WORDS)} @placeholder"
            yield str(row), {"query": query, "passage": WORDS[5], "entities": entities, "answers": [right]}

    def split(number, training):
        return encode(tokenizer, str.lower, frame_rows(task, rows(number), Use(task.columns, training=training)), 32)

    data = TaskData(task, split(160, True), {"record": split(60, False)})
    outcome = fine_tune(
        model, data, dataclasses.replace(recipe.evaluation, epochs=6), seed=0, device=CPU, precision="fp32"
    )
    assert outcome.metrics["record"]["record_exact"] > 0.8
    assert outcome.values["record"] == pytest.approx(sum(outcome.metrics["record"].values()) / 2)
