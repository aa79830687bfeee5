"""Evaluation recipes: one set of fine-tuning hyperparameters for all tasks of a suite."""

from __future__ import annotations

from dataclasses import dataclass

from cramming_train.recipes.checks import (
    check_betas,
    check_choice,
    check_not_negative,
    check_positive,
    check_positive_or_none,
    check_share,
)


@dataclass(frozen=True)
class Evaluation:
    """How a trained model is fine-tuned and judged."""

    name: str
    learning_rate: float = 4e-5
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup: float = 0.1  # fraction of the task's own optimizer steps
    warmup_steps: int | None = None  # so many steps for every task instead, whatever its length
    batch_size: int = 16
    epochs: int = 5
    max_length: int = 128  # tokens
    max_train_rows: int | None = None  # of a training set; the scores are then labelled as capped
    dropout: float = 0.1  # in the encoder (hidden, attention, embedding) and before the classifier
    classifier_hidden: int = 1024
    pooling: str = "cls"  # the classifier reads the state of <cls>, or ("mean") the mean of all states
    seeds: int = 5

    def __post_init__(self) -> None:
        check_choice(self, schedule=("cosine", "linear"), pooling=("cls", "mean"))
        check_positive(self, "learning_rate", "eps", "batch_size", "epochs", "max_length", "classifier_hidden", "seeds")
        check_positive_or_none(self, "warmup_steps", "max_train_rows")
        check_share(self, "warmup", "dropout")
        check_betas(self)
        check_not_negative(self, "weight_decay")


# Those of the original project (its config/eval), but for lengths of 128 tokens instead of 1024 outside GLUE_sane: no
# more positions are trained.
EVALUATIONS = {
    e.name: e
    for e in (
        Evaluation("glue-sane"),
        # The original turns its warm-up share into a number of steps at the first task and keeps that number: the 267
        # of CoLA (a tenth of 5 x 534) for all tasks, of which RTE has 775 steps, MNLI 122,715. Its published scores are
        # made so.
        Evaluation("glue-sane-original", warmup_steps=267),
        Evaluation(
            "glue",
            learning_rate=2e-5,
            weight_decay=0.1,
            schedule="linear",
            warmup=0.06,
            batch_size=32,
            epochs=10,
            pooling="mean",
        ),
        Evaluation("superglue", learning_rate=1e-5, epochs=10),
        Evaluation("swag", learning_rate=1e-5, weight_decay=0.1),
        Evaluation("race", learning_rate=1e-5, weight_decay=0.1),
    )
}
