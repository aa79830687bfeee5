"""Fine-tuning on one task with one seed: the whole of the recipe's procedure in one place."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from cramming_train.evaluation.classifier import Classifier, loss_of, predictions_of
from cramming_train.evaluation.encoding import (
    Encoded,
    batches_per_epoch,
    compact_vocabulary,
    training_batches,
    validation_batches,
)
from cramming_train.evaluation.metrics import score
from cramming_train.evaluation.tasks import TRAIN_SPLIT, Task
from cramming_train.model import MaskedLM
from cramming_train.optim.optimizer import decays, set_learning_rate
from cramming_train.optim.schedules import learning_rate_factor
from cramming_train.precision import Precision
from cramming_train.recipes import Evaluation
from cramming_train.seeds import derive_seed

VALIDATION_TOKENS = 4096  # of one validation batch


@dataclass(frozen=True)
class TaskData:
    """A task's encoded examples.

    Attributes:
        validation: row of the score table -> its labelled split.
        test: file of predictions -> its unlabelled split.
        capped_from: rows of the whole training set, where ``train`` is only a part of it.
    """

    task: Task
    train: Encoded
    validation: dict[str, Encoded]
    test: dict[str, Encoded] = field(default_factory=dict)
    capped_from: int | None = None

    def tokens(self, epochs: int) -> int:
        """Work of one fine-tuning in token passes: three for a trained token, one for another."""
        others = (*self.validation.values(), *self.test.values())
        return 3 * epochs * len(self.train.ids) + sum(len(split.ids) for split in others)

    @property
    def row_counts(self) -> dict[str, int]:
        """Examples by "train" and by row of the score table."""
        return {TRAIN_SPLIT: len(self.train), **{row: len(split) for row, split in self.validation.items()}}


@dataclass
class Outcome:
    """What one fine-tuning gave.

    Attributes:
        train_loss: mean over the last epoch; None where it is not finite.
        metrics: row of the score table -> metric -> value, a fraction.
        predictions: file -> a prediction for each example of that test split.
        classifier: the fine-tuned model; its embedding has the rows ``vocabulary`` of the pretrained one's.
    """

    steps: int
    seconds: float
    train_loss: float | None
    classifier: Classifier
    vocabulary: np.ndarray
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def values(self) -> dict[str, float]:
        """Row of the score table -> the mean of its metrics."""
        return {row: sum(metrics.values()) / len(metrics) for row, metrics in self.metrics.items()}


def learning_rates(settings: Evaluation, train_rows: int) -> list[float]:
    """The learning rate of every step, from the task's own number of steps.

    As in the original (transformers' schedule with warm-up): step i of w warm-up steps has i / w of the peak,
    so the first one has none; w is the warm-up share of THIS task's steps, rounded down, or the recipe's own number.
    """
    steps = settings.epochs * batches_per_epoch(train_rows, settings.batch_size)
    warmup_steps = int(settings.warmup * steps) if settings.warmup_steps is None else settings.warmup_steps
    return [
        settings.learning_rate * learning_rate_factor(settings.schedule, step / steps, warmup_steps / steps)
        for step in range(steps)
    ]


def fine_tune(
    model: MaskedLM,
    data: TaskData,
    settings: Evaluation,
    *,
    seed: int,
    device: torch.device,
    precision: str,
    on_tokens: Callable[[int, str], None] = lambda tokens, where: None,
) -> Outcome:
    """Fine-tune a copy of ``model`` for all epochs; after the last one score and predict every other split.

    Args:
        seed: of the head, the order of the examples and dropout.
        precision: "fp32", "fp16" or "bf16", see :class:`Precision`.
        on_tokens: told about token passes done (see :meth:`TaskData.tokens`), and where in the task that was.
    """
    started = time.monotonic()
    vocabulary, (train, *others) = compact_vocabulary([data.train, *data.validation.values(), *data.test.values()])
    splits = dict(zip([*data.validation, *data.test], others, strict=True))
    classifier = Classifier(
        model, vocabulary, data.task.outputs, settings.classifier_hidden, settings.dropout, seed, settings.pooling
    ).to(device)
    numbers = Precision(precision, device)
    train_loss = _train(classifier, train, settings, numbers, on_tokens)
    outcome = Outcome(
        steps=settings.epochs * batches_per_epoch(len(train), settings.batch_size),
        seconds=0.0,
        train_loss=train_loss if math.isfinite(train_loss) else None,
        classifier=classifier,
        vocabulary=vocabulary,
    )
    for key, split in splits.items():
        predictions = predict(classifier, split, numbers)
        if key in data.test:
            outcome.predictions[key] = predictions
        else:
            metrics = data.task.rows[key].metrics or data.task.metrics
            outcome.metrics[key], note = score(metrics, predictions, split.labels, split.references)
            outcome.notes += [f"{key}, seed {seed}: {note}"] if note else []
        on_tokens(len(split.ids), "validation")
    outcome.seconds = time.monotonic() - started
    return outcome


def _train(
    classifier: Classifier,
    train: Encoded,
    settings: Evaluation,
    numbers: Precision,
    on_tokens: Callable[[int, str], None],
) -> float:
    """All epochs; returns the mean loss of the last one."""
    optimizer = _build_optimizer(classifier, settings)
    rates = learning_rates(settings, len(train))
    classifier.train()
    step = 0
    for epoch in range(settings.epochs):
        loss_sum = torch.zeros((), device=numbers.device)
        order_seed = derive_seed(classifier.seed, "order", epoch)
        for batch in training_batches(train, settings.batch_size, order_seed):
            batch = batch.to(numbers.device)
            with numbers.autocast():
                logits_BK = classifier(batch, step)
            loss = loss_of(logits_BK, batch.labels_B)
            numbers.scaled(loss).backward()
            set_learning_rate(optimizer, rates[step], step)
            numbers.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
            loss_sum += loss.detach()
            step += 1
            on_tokens(3 * len(batch.ids_T), f"epoch {epoch + 1}/{settings.epochs}")
    return float(loss_sum) / batches_per_epoch(len(train), settings.batch_size)


def _build_optimizer(classifier: Classifier, settings: Evaluation) -> torch.optim.AdamW:
    named = list(classifier.named_parameters())
    groups = [
        {"params": [p for name, p in named if decays(name)], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in named if not decays(name)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, fused=True)


def predict(classifier: Classifier, split: Encoded, numbers: Precision) -> np.ndarray:
    """Class numbers, numbers of the chosen sequences or values, one for each example of a split, in its order."""
    regression = np.issubdtype(split.labels.dtype, np.floating)
    return predicted(classifier, split, numbers, lambda logits: predictions_of(logits, regression=regression))


@torch.no_grad()
def predicted(
    classifier: Classifier, split: Encoded, numbers: Precision, read: Callable[[torch.Tensor], torch.Tensor]
) -> np.ndarray:
    """What ``read`` makes of the logits [B, K], for every example of a split, in its order; dropout off."""
    classifier.eval()
    rows, answers = [], []
    for batch_rows, batch in validation_batches(split, VALIDATION_TOKENS):
        with numbers.autocast():
            logits_BK = classifier(batch.to(numbers.device))
        rows.append(batch_rows)
        answers.append(read(logits_BK))
    values = torch.cat(answers).cpu().numpy()
    ordered = np.empty_like(values)
    ordered[np.concatenate(rows)] = values
    return ordered
