"""Fine-tuning on one task with one seed: the whole of the recipe's procedure in one place."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from cramming_train.glue.classifier import Classifier, loss_of, predictions_of
from cramming_train.glue.encoding import (
    Encoded,
    batches_per_epoch,
    compact_vocabulary,
    training_batches,
    validation_batches,
)
from cramming_train.glue.metrics import score
from cramming_train.glue.tasks import Task
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
        validation: row of the score table -> its validation split.
    """

    task: Task
    train: Encoded
    validation: dict[str, Encoded]

    def tokens(self, epochs: int) -> int:
        """Work of one fine-tuning in token passes: three for a trained token, one for another."""
        return 3 * epochs * len(self.train.ids) + sum(len(split.ids) for split in self.validation.values())


@dataclass
class Outcome:
    """What one fine-tuning gave. Values are fractions, by row of the score table."""

    steps: int
    seconds: float
    train_loss: float | None  # mean over the last epoch; None where it is not finite
    values: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def learning_rates(settings: Evaluation, train_rows: int) -> list[float]:
    """The learning rate of every step, from the task's own number of steps.

    As in the original (transformers' schedule with warm-up): step i of w warm-up steps has i / w of the peak,
    so the first one has none; w is the warm-up share of THIS task's steps, rounded down.
    """
    steps = settings.epochs * batches_per_epoch(train_rows, settings.batch_size)
    warmup_steps = int(settings.warmup * steps)
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
    """Fine-tune a copy of ``model`` for all epochs and score it on every validation split after the last one.

    Args:
        seed: of the head, the order of the examples and dropout.
        precision: "fp32", "fp16" or "bf16", see :class:`Precision`.
        on_tokens: told about token passes done (see :meth:`TaskData.tokens`), and where in the task that was.
    """
    started = time.monotonic()
    vocabulary, splits = compact_vocabulary([data.train, *data.validation.values()])
    train, validation = splits[0], dict(zip(data.validation, splits[1:], strict=True))
    classifier = Classifier(
        model, vocabulary, data.task.classes, settings.classifier_hidden, settings.dropout, seed
    ).to(device)
    numbers = Precision(precision, device)
    train_loss = _train(classifier, train, settings, numbers, on_tokens)
    outcome = Outcome(
        steps=settings.epochs * batches_per_epoch(len(train), settings.batch_size),
        seconds=0.0,
        train_loss=train_loss if math.isfinite(train_loss) else None,
    )
    for row, split in validation.items():
        predictions = predict(classifier, split, numbers)
        outcome.values[row], note = score(data.task.metric, predictions, split.labels)
        if note:
            outcome.notes.append(f"{row}, seed {seed}: {note}")
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
            set_learning_rate(optimizer, rates[step])
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


@torch.no_grad()
def predict(classifier: Classifier, split: Encoded, numbers: Precision) -> np.ndarray:
    """Class numbers or regression values for every example of a split, in its order; dropout off."""
    classifier.eval()
    rows, predictions = [], []
    for batch_rows, batch in validation_batches(split, VALIDATION_TOKENS):
        with numbers.autocast():
            logits_BK = classifier(batch.to(numbers.device))
        rows.append(batch_rows)
        predictions.append(predictions_of(logits_BK))
    values = torch.cat(predictions).cpu().numpy()
    ordered = np.empty_like(values)
    ordered[np.concatenate(rows)] = values
    return ordered
