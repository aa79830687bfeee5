"""The metrics of GLUE, from scipy and scikit-learn, defined for degenerate predictions as well."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


def matthews_correlation(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Matthews' correlation in [-1, 1]; 0 where the predictions, or the labels, are all of one class."""
    return float(matthews_corrcoef(labels, predictions))


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of equal entries."""
    return float(accuracy_score(labels, predictions))


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """F1 of class 1; 0 where class 1 is never predicted rightly."""
    return float(f1_score(labels, predictions, zero_division=0.0))


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Pearson's correlation in [-1, 1]; 0 where either side is constant, for which it is not defined."""
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(pearsonr(predictions.astype(np.float64), labels.astype(np.float64)).statistic)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "matthews_correlation": matthews_correlation,
    "accuracy": accuracy,
    "f1": f1,
    "pearson": pearson,
}


def score(metric: str, predictions: np.ndarray, labels: np.ndarray) -> tuple[float, str | None]:
    """The metric, a finite number, and a remark where the predictions are degenerate.

    Args:
        predictions: class numbers (int) or regression values (float), one per example. Not finite is a score
            of 0 with a remark: a fine-tuning that diverged has predicted nothing.
        labels: the same shape.
    """
    if not np.isfinite(predictions).all():
        return 0.0, "fine-tuning diverged: predictions are not finite; scored 0"
    value = METRICS[metric](predictions, labels)
    if not np.isfinite(value):  # so small a spread that the correlation underflows
        return 0.0, "the predictions are as good as constant; scored 0"
    constant = len(predictions) > 1 and bool(np.ptp(predictions) == 0)
    return value, f"every prediction is {predictions[0]:g}" if constant else None
