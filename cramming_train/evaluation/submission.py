r"""Predictions of GLUE's test sets, as gluebenchmark.com takes them: a .tsv a task, together in one .zip.

Each file has the header ``index\tprediction`` and a row for every row of the test set, counted from 0. Labels are
written as the server's sample submission has them: the names of the classes for MNLI, QNLI, RTE and the diagnostic set
AX, class numbers for the other classifications, a score from 0 to 5 for STS-B.
"""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cramming_train.evaluation.finetune import Outcome, TaskData
from cramming_train.evaluation.results import Scores, write_bytes
from cramming_train.evaluation.tasks import Split, Suite, Task

HEADER = "index\tprediction\n"


class Submission:
    """The predictions of every fine-tuning in ``FOLDER/test-predictions``; the chosen ones in ``FOLDER/submission``."""

    def __init__(self, folder: Path):
        self._drafts = folder / "test-predictions"
        self.folder = folder / "submission"
        self._marks: dict[str, str] = {}

    def kept(self, data: TaskData, seed: int, mark: str, line: dict[str, Any]) -> bool:
        """Whether the predictions of this fine-tuning are all there."""
        self._marks[data.task.name] = mark
        return all(self._draft(key, mark, seed).is_file() for key in data.test)

    def keep(self, data: TaskData, seed: int, mark: str, outcome: Outcome) -> None:
        """Write the predictions of a fine-tuning."""
        self._marks[data.task.name] = mark
        for key, predictions in outcome.predictions.items():
            write_bytes(self._draft(key, mark, seed), table(data.task, predictions).encode())

    def _draft(self, key: str, mark: str, seed: int) -> Path:
        return self._drafts / f"{key}-{mark}-seed{seed}.tsv"

    def write(self, suite: Suite, tasks: Sequence[TaskData], scores: Scores) -> list[str]:
        """Put the files of each task's median fine-tuning together; returns what there is to know, a line each."""
        said, files = [], {}
        for data in tasks:
            row = next(iter(data.validation))
            seed = median_seed(scores.rows[row]["values"])
            for key in data.test:
                files[key] = self._draft(key, self._marks[data.task.name], seed).read_bytes()
            said += [f"{key}.tsv: seed {seed}, the median on {data.task.rows[row].label}" for key in data.test]
            said += wrong_sizes(data)
        shutil.rmtree(self.folder, ignore_errors=True)  # files of an earlier evaluation
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packed:
            for key, lines in files.items():
                write_bytes(self.folder / f"{key}.tsv", lines)
                packed.writestr(f"{key}.tsv", lines)
        archive = write_bytes(self.folder.with_suffix(".zip"), content.getvalue())
        wanted = [split.key for task in suite.tasks.values() for split in task.tests]
        if lacking := [f"{key}.tsv" for key in wanted if key not in files]:
            said.append(f"not for the server yet: it wants {', '.join(lacking)} as well")
        return [*said, f"test predictions: {archive}"]


def median_seed(values: Sequence[float]) -> int:
    """The seed of the median value; of an even number, of the lower one in the middle."""
    order = sorted(range(len(values)), key=lambda seed: (values[seed], seed))
    return order[(len(order) - 1) // 2]


def wrong_sizes(data: TaskData) -> list[str]:
    """Test sets that are not of the official size, in words: the server refuses them."""
    official: dict[str, Split] = {split.key: split for split in data.task.tests}
    return [
        f"{key}.tsv: {len(split)} rows, the server wants {official[key].rows}"
        for key, split in data.test.items()
        if len(split) != official[key].rows
    ]


def table(task: Task, predictions: np.ndarray) -> str:
    """The content of one file."""
    if task.regression:
        written = [f"{value:.3f}" for value in np.clip(predictions, *task.label_range)]
    else:
        written = [task.labels[number] for number in predictions.tolist()]
    return HEADER + "".join(f"{index}\t{label}\n" for index, label in enumerate(written))
