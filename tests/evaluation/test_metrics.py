"""Metrics against values worked out by hand, and on degenerate predictions."""

import math

import numpy as np
import pytest

from cramming_train.evaluation.metrics import METRICS, score

LABELS = np.array([1, 1, 1, 0, 0, 1, 0, 1])
PREDICTIONS = np.array([1, 0, 1, 0, 1, 1, 0, 1])  # tp 4, fn 1, fp 1, tn 2


def test_accuracy():
    assert METRICS["accuracy"](PREDICTIONS, LABELS) == pytest.approx(6 / 8)


def test_f1_is_of_class_one():
    assert METRICS["f1"](PREDICTIONS, LABELS) == pytest.approx(2 * 4 / (2 * 4 + 1 + 1))
    flipped = METRICS["f1"](1 - PREDICTIONS, 1 - LABELS)
    assert flipped == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))


def test_matthews_correlation():
    by_hand = (4 * 2 - 1 * 1) / math.sqrt(5 * 5 * 3 * 3)
    assert METRICS["matthews_correlation"](PREDICTIONS, LABELS) == pytest.approx(by_hand)
    assert METRICS["matthews_correlation"](1 - LABELS, LABELS) == pytest.approx(-1.0)


def test_pearson():
    predictions = np.array([0.5, 2.0, 1.0, 4.5], dtype=np.float32)
    labels = np.array([1.0, 2.0, 3.0, 5.0], dtype=np.float32)
    p, y = predictions - predictions.mean(), labels - labels.mean()
    by_hand = (p * y).sum() / math.sqrt((p**2).sum() * (y**2).sum())
    assert METRICS["pearson"](predictions, labels) == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize(
    ("metric", "predictions", "expected"),
    [
        ("matthews_correlation", np.ones(8, dtype=np.int64), 0.0),
        ("f1", np.zeros(8, dtype=np.int64), 0.0),
        ("f1", np.ones(8, dtype=np.int64), 2 * 5 / (2 * 5 + 3)),
        ("pearson", np.full(8, 2.5, dtype=np.float32), 0.0),
    ],
)
def test_constant_predictions_are_scored_with_a_remark(metric, predictions, expected):
    values, note = score([metric], predictions, LABELS)
    assert values == {metric: pytest.approx(expected)}
    assert "every prediction is" in note


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_diverged_predictions_score_zero(bad):
    predictions = np.array([0.5, bad, 1.0], dtype=np.float32)
    values, note = score(["pearson", "spearman"], predictions, np.array([1.0, 2.0, 3.0], dtype=np.float32))
    assert values == {"pearson": 0.0, "spearman": 0.0}
    assert "diverged" in note


def test_as_good_as_constant_predictions_have_no_nan():
    predictions = np.array([1.0, 1.0, np.nextafter(np.float32(1), np.float32(2))], dtype=np.float32)
    values, _ = score(["pearson"], predictions, np.array([1.0, 2.0, 3.0], dtype=np.float32))
    assert math.isfinite(values["pearson"])


def test_good_predictions_have_no_remark():
    assert score(["accuracy"], PREDICTIONS, LABELS) == ({"accuracy": pytest.approx(0.75)}, None)


def test_macro_f1_weighs_classes_alike():
    """CB's: classes with F1 of 1, 2/3 and 0, the last one never predicted."""
    labels, predictions = np.array([0, 0, 0, 0, 1, 2]), np.array([0, 0, 0, 0, 1, 1])
    assert METRICS["f1_macro"](predictions, labels) == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_spearman_is_of_ranks():
    labels = np.array([1.0, 2.0, 3.0, 4.0], dtype=np.float32)
    assert METRICS["spearman"](np.exp(5 * labels), labels) == pytest.approx(1.0)
    assert METRICS["spearman"](np.array([1.0, 2.0, 4.0, 3.0]), labels) == pytest.approx(1 - 6 * 2 / (4 * 15))


def test_multirc_questions_count_when_all_their_answers_are_right():
    """Three questions, their answers not in one piece; F1a is over all answers."""
    questions = [(0, 0), (0, 1), (0, 0), (1, 0), (0, 1)]
    labels, predictions = np.array([1, 0, 1, 1, 1]), np.array([1, 0, 0, 1, 1])
    values, _ = score(["f1", "exact_questions"], predictions, labels, questions)
    assert values == {"f1": pytest.approx(2 * 3 / (2 * 3 + 0 + 1)), "exact_questions": pytest.approx(2 / 3)}


def test_record_compares_texts_as_squad_does():
    """Case, articles and punctuation do not count; of several answers the closest counts."""
    references = [
        (("The Beatles", "Ringo"), ("beatles.",)),
        (("Ann", "Bob Smith", "Eve"), ("Smith", "Bob J. Smith")),
        (("x", "y"), ("x",)),
    ]
    values, _ = score(["record_f1", "record_exact"], np.array([0, 1, 1]), np.zeros(3, dtype=int), references)
    best = max(2 * 1 / (2 + 1), 2 * 2 / (2 + 3))
    assert values == {"record_f1": pytest.approx((1 + best + 0) / 3), "record_exact": pytest.approx(1 / 3)}
