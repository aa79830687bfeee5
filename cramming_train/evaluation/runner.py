"""Running a suite: load and encode the tasks, fine-tune what is not done yet, keep the scores up to date."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from cramming_train.errors import UsageError
from cramming_train.evaluation.encoding import Encoded, encode
from cramming_train.evaluation.finetune import Outcome, TaskData, fine_tune
from cramming_train.evaluation.progress import Progress
from cramming_train.evaluation.results import ResultLines, Scores, aggregate, fingerprint, shortfalls, write_scores
from cramming_train.evaluation.sources import Source, load_split, load_train
from cramming_train.evaluation.subject import Subject, TextPipeline
from cramming_train.evaluation.tasks import TRAIN_SPLIT, Split, Suite, Task
from cramming_train.recipes import Evaluation

LINE_FORMAT = 2  # of SUITE.jsonl


class Keeper(Protocol):
    """What is to be kept of each fine-tuning beside its scores: predictions, or the model."""

    def kept(self, data: TaskData, seed: int, mark: str, line: dict[str, Any]) -> bool:
        """Is it there, from a fine-tuning of the same settings and data (``mark``)?"""

    def keep(self, data: TaskData, seed: int, mark: str, outcome: Outcome) -> None:
        """Write it."""


def load_tasks(
    text: TextPipeline,
    source: Source,
    tasks: Sequence[Task],
    settings: Evaluation,
    say: Callable[[str], None],
    *,
    with_tests: bool = False,
) -> list[TaskData]:
    """Read and encode tasks. What the source lacks is said; UsageError where it has none of the tasks, or no tests."""
    loaded = []
    for task in tasks:
        examples, whole = load_train(source, task, settings.max_train_rows)
        if examples is None:
            say(f"missing: {task.name} {TRAIN_SPLIT} is not in {source.name}")
            continue
        validation = _load_splits(text, source, task, task.splits, settings, say, labelled=True)
        if not validation:
            continue
        tests = _load_splits(text, source, task, task.tests, settings, say, labelled=False) if with_tests else {}
        train = encode(text.tokenizer, text.clean, examples, settings.max_length)
        loaded.append(TaskData(task, train, validation, tests, whole if whole > len(train) else None))
        for shortfall in shortfalls(task, loaded[-1].row_counts):
            say(f"incomplete: {shortfall}")
    if not loaded:
        names = ", ".join(task.name for task in tasks)
        raise UsageError(f"{source.name} has none of the tasks asked for: {names}")
    if with_tests and not any(data.test for data in loaded):
        raise UsageError(f"{source.name} has no test split of the tasks asked for: nothing to predict")
    return loaded


def _load_splits(
    text: TextPipeline, source: Source, task: Task, splits: Sequence[Split], settings: Evaluation,
    say: Callable[[str], None], *, labelled: bool,
) -> dict[str, Encoded]:  # fmt: skip
    found = {}
    for split in splits:
        examples = load_split(source, task, split, labelled=labelled)
        if examples is None:
            say(f"missing: {split.config or task.name} {split.name} is not in {source.name}")
        else:
            found[split.key] = encode(text.tokenizer, text.clean, examples, settings.max_length)
    return found


def run_suite(
    subject: Subject,
    suite: Suite,
    tasks: Sequence[TaskData],
    settings: Evaluation,
    *,
    folder: Path,
    device: torch.device,
    precision: str,
    keeper: Keeper | None = None,
) -> Scores:
    """Fine-tune every task with seeds 0 to ``settings.seeds`` - 1; SUITE.jsonl and SUITE.json go to ``folder``.

    Fine-tunings that the folder already has with the same weights, tokenizer, recipe, precision and data are
    not repeated, unless the keeper lacks its part; the scores also hold those of other tasks with the same settings.
    """
    seeds = settings.seeds
    recipe = dataclasses.asdict(settings)
    decisive = {key: value for key, value in recipe.items() if key not in ("name", "seeds")}
    settled = {"recipe": decisive, "subject": subject.identity, "precision": precision, "format": LINE_FORMAT}
    ledger = _Ledger(folder, suite, fingerprint(settled), tasks, keeper)
    head = {"run": subject.name, "recipe": recipe, "precision": precision}
    left = [(data, seed) for data in tasks for seed in range(seeds) if not ledger.has(data, seed)]
    progress = Progress(sum(data.tokens(settings.epochs) for data, _ in left))
    if done := len(tasks) * seeds - len(left):
        progress.say(f"{done} of {len(tasks) * seeds} fine-tunings are already in {folder}")
    try:
        for data, seed in left:
            name = data.task.name
            outcome = fine_tune(
                subject.model(seed),
                data,
                settings,
                seed=seed,
                device=device,
                precision=precision,
                on_tokens=lambda tokens, where, label=f"{name} seed {seed}": progress.advance(
                    tokens, f"{label} {where}"
                ),
            )
            ledger.add(data, seed, outcome)
            write_scores(folder, suite, ledger.scores(seeds), head)
            progress.say(_spoken(name, seed, seeds, outcome) + f"; {progress.left()} left")
    finally:
        progress.close()
    scores = ledger.scores(seeds)
    write_scores(folder, suite, scores, head)
    return scores


class _Ledger:
    """Which fine-tunings of these settings and tasks are done: their lines, and what the keeper has of them."""

    def __init__(self, folder: Path, suite: Suite, settings: str, tasks: Sequence[TaskData], keeper: Keeper | None):
        self._suite, self._keeper = suite, keeper
        self._lines = ResultLines(folder, suite, settings)
        self._marks = {data.task.name: _task_mark(data) for data in tasks}
        self._kept_marks = {
            data.task.name: fingerprint([settings, self._marks[data.task.name], _data_mark(data.test.values())])
            for data in tasks
        }

    def has(self, data: TaskData, seed: int) -> bool:
        """Is the fine-tuning done, and all that is to be kept of it there?"""
        name = data.task.name
        line = self._lines.get(name, seed, self._marks[name])
        if line is None or self._keeper is None:
            return line is not None
        return self._keeper.kept(data, seed, self._kept_marks[name], line)

    def add(self, data: TaskData, seed: int, outcome: Outcome) -> None:
        """Note a fine-tuning; its line comes last, so that what has a line has all the rest."""
        if self._keeper is not None:
            self._keeper.keep(data, seed, self._kept_marks[data.task.name], outcome)
        self._lines.append(_line(data, seed, self._marks[data.task.name], outcome))

    def scores(self, seeds: int) -> Scores:
        """Of all that is there."""
        return aggregate(self._suite, self._lines.up_to(seeds), seeds)


def _line(data: TaskData, seed: int, mark: str, outcome: Outcome) -> dict[str, Any]:
    return {
        "task": data.task.name,
        "seed": seed,
        "data": mark,
        "rows": data.row_counts,
        "capped_from": data.capped_from,
        "values": outcome.values,
        "metrics": outcome.metrics,
        "steps": outcome.steps,
        "train_loss": outcome.train_loss,
        "seconds": round(outcome.seconds, 2),
        "notes": outcome.notes,
    }


def _spoken(name: str, seed: int, seeds: int, outcome: Outcome) -> str:
    values = ", ".join(f"{row} {100 * value:.1f}" for row, value in outcome.values.items())
    loss = "not finite" if outcome.train_loss is None else f"{outcome.train_loss:.3f}"
    effort = f"{outcome.steps} steps, train loss {loss}, {outcome.seconds:.0f} s"
    return f"{name} seed {seed + 1}/{seeds}: {values} ({effort})"


def _task_mark(data: TaskData) -> str:
    """A short name for what a fine-tuning learns and is measured by."""
    task = data.task
    metrics = [split.metrics or task.metrics for split in task.splits]
    return fingerprint([_data_mark([data.train, *data.validation.values()]), metrics, task.labels, task.label_scale])


def _data_mark(splits: Iterable[Encoded]) -> str:
    """A short name for the encoded examples and labels of these splits."""
    digest = hashlib.blake2b(digest_size=8)
    for split in splits:
        for array in (split.ids, split.offsets, split.labels, split.counts):
            digest.update(b"" if array is None else array.tobytes())
        digest.update(repr(split.references).encode() if split.references else b"")
    return digest.hexdigest()
