"""Fine-tuning on packed examples against the same examples padded to 128 tokens, in turns, on one thread of a CPU.

Both are ``fine_tune`` of cramming_train with crammed-bert-mini: an epoch over some examples of each task, then their
validation. Padded, each sequence has 128 tokens; the mask of the padding, which would cost more, is left out. Texts are
those of the real GLUE files where they lie beside the checkout, in a WordPiece vocabulary of 4096 trained on them (a
larger one makes shorter sequences); otherwise lengths are drawn, and the result says so.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cramming_train.data.cleaning import cleaner
from cramming_train.data.special_tokens import CLS_ID, PAD_ID
from cramming_train.data.tokenizer import train_tokenizer
from cramming_train.evaluation.encoding import Encoded, encode
from cramming_train.evaluation.finetune import TaskData, fine_tune
from cramming_train.evaluation.sources import Folder, load_train
from cramming_train.evaluation.suites import GLUE
from cramming_train.evaluation.tasks import Task
from cramming_train.model import build_model
from cramming_train.recipes import EVALUATIONS, get_recipe

PADDED, VOCABULARY = 128, 4096
ROWS = 48  # examples of a task
LEAST = 2.0  # times the padded examples a second, all tasks together
GLUE_FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "glue"
SETTINGS = dataclasses.replace(EVALUATIONS["glue-sane"], epochs=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of the CPU")
def test_packed_against_padded(benchmark, device):
    """Processor time over all tasks, the two in turns task by task."""
    model = build_model(get_recipe("crammed-bert-mini").architecture, VOCABULARY, seed=0)
    real = GLUE_FOLDER.is_dir()
    splits = real_splits(GLUE_FOLDER) if real else drawn_splits()
    seconds: dict[str, dict[str, float]] = {}

    def taken(name: str, encoded: Encoded) -> float:
        data = TaskData(GLUE.tasks[name], encoded, {name: encoded})
        started = time.process_time()
        fine_tune(model, data, SETTINGS, seed=0, device=device.torch, precision="fp32")
        return time.process_time() - started

    def one_pass() -> None:
        for name, split in splits.items():
            seconds[name] = {"packed": taken(name, split), "padded": taken(name, padded(split))}

    for warm_up in (splits["cola"], padded(splits["cola"])):  # the first call of a process imports and allocates
        taken("cola", warm_up)
    benchmark.pedantic(one_pass, rounds=1)
    total = {way: sum(ways[way] for ways in seconds.values()) for way in ("packed", "padded")}
    figures = {
        "examples_per_second": {way: round(ROWS * len(splits) / taken, 2) for way, taken in total.items()},
        "packed_over_padded": round(total["padded"] / total["packed"], 3),
        "by_task": {name: round(ways["padded"] / ways["packed"], 2) for name, ways in seconds.items()},
        "mean_tokens": {name: round(len(split.ids) / len(split), 1) for name, split in splits.items()},
        "lengths": "real GLUE texts" if real else "drawn",
    }
    benchmark.extra_info.update(figures)
    assert figures["packed_over_padded"] >= LEAST


def padded(split: Encoded) -> Encoded:
    """Every sequence filled up to 128 tokens."""
    ids = np.full((len(split), PADDED), PAD_ID, dtype=np.int32)
    for row, length in enumerate(split.lengths):
        ids[row, :length] = split.ids[split.offsets[row] : split.offsets[row + 1]]
    return Encoded(ids.reshape(-1), np.arange(len(split) + 1) * PADDED, split.labels)


def real_splits(folder: Path) -> dict[str, Encoded]:
    """The same random choice of each task's training rows, tokenised."""
    clean, examples = cleaner("ascii"), {}
    for task in GLUE.tasks.values():
        examples[task.name], _ = load_train(Folder(folder, GLUE), task, ROWS)
    texts = [clean(text) for name in examples for text in texts_of(folder, GLUE.tasks[name])]
    tokenizer = train_tokenizer(texts, VOCABULARY, "ascii")
    return {name: encode(tokenizer, clean, rows, PADDED) for name, rows in examples.items()}


def texts_of(folder: Path, task: Task, rows: int = 600) -> list[str]:
    """Texts to train the vocabulary on."""
    examples, _ = load_train(Folder(folder, GLUE), task, rows)
    return [text for sequence in examples.sequences for text in sequence]


def drawn_splits() -> dict[str, Encoded]:
    """Lengths of 8 to 72 tokens."""
    rng = np.random.default_rng(0)
    splits = {}
    for task in GLUE.tasks.values():
        lengths = rng.integers(8, 73, ROWS)
        ids = rng.integers(7, VOCABULARY, lengths.sum()).astype(np.int32)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        ids[offsets[:-1]] = CLS_ID
        labels = rng.integers(0, max(len(task.labels), 1), ROWS)
        splits[task.name] = Encoded(ids, offsets, labels.astype(np.float32 if task.regression else np.int64))
    return splits
