"""The metrics, from scipy and scikit-learn where they have them, defined for degenerate predictions as well.

These are imported where they are called: they take seconds, and pretraining needs none of them.
"""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


def matthews_correlation(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Matthews' correlation in [-1, 1]; 0 where the predictions, or the labels, are all of one class."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of equal entries."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """F1 of class 1; 0 where class 1 is never predicted rightly. Over MultiRC's answers: its F1a."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0.0))


def f1_macro(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The mean F1 of all classes that occur, each weighing the same."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Pearson's correlation in [-1, 1]; 0 where either side is constant, for which it is not defined."""
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    from scipy.stats import pearsonr

    return float(pearsonr(predictions.astype(np.float64), labels.astype(np.float64)).statistic)


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Spearman's rank correlation in [-1, 1]; 0 where either side is constant."""
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    from scipy.stats import spearmanr

    return float(spearmanr(predictions, labels).statistic)


def exact_questions(predictions: np.ndarray, labels: np.ndarray, questions: Sequence[Any]) -> float:
    """Share of MultiRC's questions all of whose answers are judged rightly."""
    right: dict[Any, bool] = defaultdict(lambda: True)
    for question, prediction, label in zip(questions, predictions.tolist(), labels.tolist(), strict=True):
        right[question] &= prediction == label
    return sum(right.values()) / len(right)


def record_exact(predictions: np.ndarray, labels: np.ndarray, references: Sequence[Any]) -> float:
    """Share of ReCoRD's queries whose chosen entity is an accepted answer, as SQuAD compares texts."""
    return _best_over_answers(predictions, references, lambda a, b: float(_plain_words(a) == _plain_words(b)))


def record_f1(predictions: np.ndarray, labels: np.ndarray, references: Sequence[Any]) -> float:
    """Mean F1 of the chosen entity's words against the closest accepted answer's."""
    return _best_over_answers(predictions, references, _word_f1)


def _best_over_answers(
    predictions: np.ndarray, references: Sequence[Any], compare: Callable[[str, str], float]
) -> float:
    scores = [
        max(compare(entities[chosen], answer) for answer in answers)
        for chosen, (entities, answers) in zip(predictions.tolist(), references, strict=True)
    ]
    return float(np.mean(scores))


def _plain_words(text: str) -> list[str]:
    """Words without case, punctuation and articles: the evaluation script of SQuAD (Rajpurkar et al. 2016)."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _word_f1(prediction: str, answer: str) -> float:
    predicted, wanted = _plain_words(prediction), _plain_words(answer)
    common = sum((Counter(predicted) & Counter(wanted)).values())
    if common == 0:
        return 0.0
    return 2 * common / (len(predicted) + len(wanted))


@dataclass(frozen=True)
class Metric:
    """A metric, better where larger; ``label`` is how tables print it.

    Called with predictions (class numbers, numbers of the chosen sequences, or values), labels of the same shape, and
    the references of :class:`Examples`, which most do without.
    """

    label: str
    function: Callable[..., float]
    needs_references: bool = False
    of_values: bool = field(default=False, kw_only=True)

    def __call__(self, predictions: np.ndarray, labels: np.ndarray, references: Sequence[Any] = ()) -> float:
        """The score as a fraction."""
        more = (references,) if self.needs_references else ()
        return self.function(predictions, labels, *more)


METRICS = {
    "accuracy": Metric("acc", accuracy),
    "f1": Metric("F1", f1),
    "f1_macro": Metric("macro F1", f1_macro),
    "matthews_correlation": Metric("MCC", matthews_correlation),
    "pearson": Metric("Pearson", pearson, of_values=True),
    "spearman": Metric("Spearman", spearman, of_values=True),
    "exact_questions": Metric("EM", exact_questions, True),
    "record_f1": Metric("F1", record_f1, True),
    "record_exact": Metric("EM", record_exact, True),
}


def score(
    metrics: Sequence[str], predictions: np.ndarray, labels: np.ndarray, references: Sequence[Any] = ()
) -> tuple[dict[str, float], str | None]:
    """Each metric, a finite number, and a remark where the predictions are degenerate.

    Args:
        predictions: one per example. Not finite is a score of 0 with a remark: a fine-tuning that diverged has
            predicted nothing.
    """
    if not np.isfinite(predictions).all():
        return dict.fromkeys(metrics, 0.0), "fine-tuning diverged: predictions are not finite; scored 0"
    values = {metric: METRICS[metric](predictions, labels, references) for metric in metrics}
    if not all(np.isfinite(value) for value in values.values()):  # so small a spread that the correlation underflows
        return dict.fromkeys(metrics, 0.0), "the predictions are as good as constant; scored 0"
    constant = len(predictions) > 1 and bool(np.ptp(predictions) == 0)
    return values, f"every prediction is {predictions[0]:g}" if constant else None
