"""What a task and a suite of tasks are, as data. The tables themselves: :mod:`cramming_train.evaluation.suites`."""

from __future__ import annotations

from dataclasses import dataclass, field

TRAIN_SPLIT = "train"


@dataclass(frozen=True)
class Split:
    """A split that fine-tuned models are scored on (a row of the score table), or that they predict (a file).

    Attributes:
        key: of the row in the results, or the file's name without its ending.
        label: how tables print it.
        name: of the split where it lies.
        rows: in the official release; another number of rows gives another score. None: there is none.
        config: where it lies, if not with its task (the diagnostic sets).
        columns: its text columns, where they differ from the task's.
        metrics: likewise.
    """

    key: str
    label: str
    name: str
    rows: int | None
    config: str | None = None
    columns: tuple[str, ...] | None = None
    metrics: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Task:
    """One fine-tuning task.

    Attributes:
        columns: the text columns, in the order in which the encoder reads them.
        labels: the names of the classes, by class number; empty where the task is a regression.
        metrics: keys of :data:`cramming_train.evaluation.metrics.METRICS`; the score is their mean.
        train_rows: in the official release; None where there is none.
        splits: labelled splits that it is scored on.
        tests: splits without labels, predicted for the benchmark's server.
        framing: a key of :data:`cramming_train.evaluation.framing.FRAMINGS`.
        choices: columns that hold the choices, one each, or one column with a list of them.
        label_column: where the label is.
        label_range: of a regression target.
        label_scale: (mean, standard deviation) that a regression's targets are measured in while they are learned.
        numbered: labels may be given as class numbers.
        config: its name on the hub, where that differs.
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    train_rows: int | None
    splits: tuple[Split, ...]
    tests: tuple[Split, ...] = ()
    framing: str = "text"
    choices: tuple[str, ...] = ()
    label_column: str = "label"
    label_range: tuple[float, float] | None = None
    label_scale: tuple[float, float] = (0.0, 1.0)
    numbered: bool = True
    config: str | None = None

    @property
    def regression(self) -> bool:
        """The target is a number (mean squared error)."""
        return self.label_range is not None

    @property
    def outputs(self) -> int:
        """Outputs of the head: one a class; one alone where it is a value, or the score of a choice."""
        return 1 if self.regression or self.framing in ("choice", "record") else len(self.labels)

    @property
    def rows(self) -> dict[str, Split]:
        """Row of the score table -> its split."""
        return {split.key: split for split in self.splits}


@dataclass(frozen=True)
class Suite:
    """A table of tasks and what its headline is made of.

    Attributes:
        repository: of the hub; None where tasks come from files alone.
        revision: the branch there that holds plain data files.
        headline: rows of the score table whose mean is the suite's score.
        optional: tasks that take part only when asked for.
        recipe: the evaluation recipe that goes with it; None: the run's own.
        published: name -> row -> published validation score in percent, for orientation only.
    """

    name: str
    title: str
    tasks: dict[str, Task]
    headline: tuple[str, ...]
    repository: str | None = None
    revision: str | None = None
    optional: tuple[str, ...] = ()
    recipe: str | None = None
    published: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def rows(self) -> dict[str, tuple[Task, Split]]:
        """Row of the score table -> its task and split, in the order of the tables."""
        return {split.key: (task, split) for task in self.tasks.values() for split in task.splits}

    @property
    def default_tasks(self) -> tuple[str, ...]:
        """Tasks that are fine-tuned where none is named."""
        return tuple(name for name in self.tasks if name not in self.optional)
