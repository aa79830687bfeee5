"""Evaluation recipes: one set of fine-tuning hyperparameters for all tasks."""

from __future__ import annotations

from dataclasses import dataclass

from cramming_train.recipes.checks import check_betas, check_choice, check_not_negative, check_positive, check_share


@dataclass(frozen=True)
class Evaluation:
    """How a trained model is fine-tuned and judged on GLUE."""

    name: str
    learning_rate: float = 4e-5
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup: float = 0.1  # fraction of the task's own optimizer steps
    batch_size: int = 16
    epochs: int = 5
    max_length: int = 128  # tokens
    dropout: float = 0.1  # in the encoder (hidden, attention, embedding) and before the classifier
    classifier_hidden: int = 1024
    seeds: int = 5

    def __post_init__(self) -> None:
        check_choice(self, schedule=("cosine", "linear"))
        check_positive(self, "learning_rate", "eps", "batch_size", "epochs", "max_length", "classifier_hidden", "seeds")
        check_share(self, "warmup", "dropout")
        check_betas(self)
        check_not_negative(self, "weight_decay")


EVALUATIONS = {
    e.name: e
    for e in (
        Evaluation("glue-sane"),
        # the original's GLUE setting
        Evaluation("glue", learning_rate=2e-5, schedule="linear", warmup=0.06, batch_size=32, epochs=10),
    )
}
