"""The GLUE suite: load and encode the tasks, fine-tune what is not done yet, keep the scores up to date."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cramming_train.errors import UsageError
from cramming_train.glue.encoding import Encoded, encode
from cramming_train.glue.finetune import Outcome, TaskData, fine_tune
from cramming_train.glue.progress import Progress
from cramming_train.glue.reading import Source
from cramming_train.glue.results import ResultLines, Scores, aggregate, fingerprint, shortfalls, write_scores
from cramming_train.glue.subject import Subject, TextPipeline
from cramming_train.glue.tasks import TASKS, TRAIN_SPLIT
from cramming_train.recipes import Evaluation


def load_tasks(
    text: TextPipeline, source: Source, names: Sequence[str], max_length: int, say: Callable[[str], None]
) -> list[TaskData]:
    """Read and encode tasks. What the source lacks is said; UsageError where it has none of the tasks."""
    loaded = []
    for name in names:
        task = TASKS[name]
        splits: dict[str, Encoded] = {}
        for split in (TRAIN_SPLIT, *task.splits.values()):
            examples = source.load(task, split)
            if examples is None:
                say(f"missing: {name} {split} is not in {source.name}")
            else:
                splits[split] = encode(text.tokenizer, text.clean, examples, max_length)
        validation = {row: splits[split] for row, split in task.splits.items() if split in splits}
        if TRAIN_SPLIT in splits and validation:
            loaded.append(TaskData(task, splits[TRAIN_SPLIT], validation))
            for shortfall in shortfalls(task, _row_counts(loaded[-1])):
                say(f"incomplete: {shortfall}")
    if not loaded:
        raise UsageError(f"{source.name} has none of the tasks asked for: {', '.join(names)}")
    return loaded


def run_glue(
    subject: Subject,
    tasks: Sequence[TaskData],
    settings: Evaluation,
    *,
    folder: Path,
    device: torch.device,
    precision: str,
) -> Scores:
    """Fine-tune every task with seeds 0 to ``settings.seeds`` - 1; glue.jsonl and glue.json go to ``folder``.

    Fine-tunings that the folder already has with the same weights, tokenizer, recipe, precision and data are
    not repeated; the scores also hold those of other tasks with the same settings.
    """
    seeds = settings.seeds
    recipe = dataclasses.asdict(settings)
    decisive = {key: value for key, value in recipe.items() if key not in ("name", "seeds")}
    mark = fingerprint({"recipe": decisive, "subject": subject.identity, "precision": precision})
    lines = ResultLines(folder, mark)
    marks = {data.task.name: _data_mark(data) for data in tasks}
    left = [
        (data, seed)
        for data in tasks
        for seed in range(seeds)
        if lines.get(data.task.name, seed, marks[data.task.name]) is None
    ]
    head = {"run": subject.name, "recipe": recipe, "precision": precision}
    progress = Progress(sum(data.tokens(settings.epochs) for data, _ in left))
    done = len(tasks) * seeds - len(left)
    if done:
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
            lines.append(_line(data, seed, marks[name], outcome))
            write_scores(folder, aggregate(lines.up_to(seeds), seeds), head)
            progress.say(_spoken(name, seed, seeds, outcome) + f"; {progress.left()} left")
    finally:
        progress.close()
    scores = aggregate(lines.up_to(seeds), seeds)
    write_scores(folder, scores, head)
    return scores


def _line(data: TaskData, seed: int, mark: str, outcome: Outcome) -> dict[str, Any]:
    return {
        "task": data.task.name,
        "seed": seed,
        "data": mark,
        "rows": _row_counts(data),
        "values": outcome.values,
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


def _row_counts(data: TaskData) -> dict[str, int]:
    splits = {data.task.splits[row]: len(split) for row, split in data.validation.items()}
    return {TRAIN_SPLIT: len(data.train), **splits}


def _data_mark(data: TaskData) -> str:
    """A short name for the encoded examples and labels of a task."""
    digest = hashlib.blake2b(digest_size=8)
    for split in (data.train, *data.validation.values()):
        for array in (split.ids, split.offsets, split.labels):
            digest.update(array.tobytes())
    return digest.hexdigest()
