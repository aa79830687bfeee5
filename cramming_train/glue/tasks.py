"""The GLUE tasks as data: columns, labels, metrics, splits, official sizes, published scores."""

from __future__ import annotations

from dataclasses import dataclass

TRAIN_SPLIT = "train"


@dataclass(frozen=True)
class Task:
    """One fine-tuning task.

    Attributes:
        columns: the text columns, one or two.
        classes: number of classes; 1 is regression (mean squared error).
        metric: a key of :data:`cramming_train.glue.metrics.METRICS`.
        splits: row of the score table -> the validation split that it is measured on.
        official: split -> rows in the official release; another number of rows gives another score.
        label_range: of a regression target.
    """

    name: str
    columns: tuple[str, ...]
    classes: int
    metric: str
    splits: dict[str, str]
    official: dict[str, int]
    label_range: tuple[float, float] | None = None


def _task(
    name: str,
    columns: tuple[str, ...],
    metric: str,
    train: int,
    validation: int,
    *,
    classes: int = 2,
    **extra,
) -> Task:
    return Task(
        name,
        columns,
        classes,
        metric,
        {name: "validation"},
        {TRAIN_SPLIT: train, "validation": validation},
        **extra,
    )


# Sizes: Wang et al. 2019 (GLUE), as in the hub's nyu-mll/glue.
TASKS = {
    task.name: task
    for task in (
        _task("cola", ("sentence",), "matthews_correlation", 8551, 1043),
        _task("sst2", ("sentence",), "accuracy", 67349, 872),
        _task("mrpc", ("sentence1", "sentence2"), "f1", 3668, 408),
        _task("qqp", ("question1", "question2"), "f1", 363846, 40430),
        _task("stsb", ("sentence1", "sentence2"), "pearson", 5749, 1500, classes=1, label_range=(0.0, 5.0)),
        Task(
            "mnli",
            ("premise", "hypothesis"),
            3,
            "accuracy",
            {"mnli": "validation_matched", "mnli_mm": "validation_mismatched"},
            {TRAIN_SPLIT: 392702, "validation_matched": 9815, "validation_mismatched": 9832},
        ),
        _task("qnli", ("question", "sentence"), "accuracy", 104743, 5463),
        _task("rte", ("sentence1", "sentence2"), "accuracy", 2490, 277),
        _task("wnli", ("sentence1", "sentence2"), "accuracy", 635, 71),
    )
}

# WNLI is left out of the headline, as is the custom since BERT: its validation set contradicts its training.
DEFAULT_TASKS = tuple(name for name in TASKS if name != "wnli")
HEADLINE_ROWS = tuple(row for name in DEFAULT_TASKS for row in TASKS[name].splits)

# Published validation scores in percent, arXiv 2212.14034 and its code, for orientation only.
PUBLISHED = {
    "BERT-base, fully trained (published)": {
        "mnli": 83.2, "mnli_mm": 83.4, "sst2": 91.9, "stsb": 86.7, "rte": 59.2, "qnli": 90.6, "qqp": 87.7,
        "mrpc": 89.3, "cola": 56.5, "mean": 80.9,
    },
    "crammed BERT, 24 h on an A6000 (published)": {
        "mnli": 83.9, "mnli_mm": 84.1, "sst2": 92.2, "stsb": 84.6, "rte": 53.8, "qnli": 89.5, "qqp": 87.3,
        "mrpc": 87.5, "cola": 44.5, "mean": 78.6,
    },
    "no pretraining (published)": {
        "mnli": 34.1, "mnli_mm": 34.1, "sst2": 79.9, "stsb": 17.8, "rte": 47.3, "qnli": 50.0, "qqp": 68.6,
        "mrpc": 77.9, "cola": 0.0, "mean": 45.5,
    },
}  # fmt: skip
