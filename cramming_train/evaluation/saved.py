"""A fine-tuned model on disk: safetensors, JSON and the tokenizer, all that predictions for new text need."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import tokenizers
import torch

from cramming_train.data.tokenizer import load_tokenizer
from cramming_train.errors import RunError, UsageError
from cramming_train.evaluation.classifier import Classifier
from cramming_train.evaluation.finetune import Outcome, TaskData
from cramming_train.evaluation.results import write_bytes, write_json
from cramming_train.evaluation.subject import Subject, TextPipeline
from cramming_train.evaluation.tasks import Task
from cramming_train.model import build_model
from cramming_train.recipes import Architecture, Evaluation

MODEL_FILE, DESCRIPTION_FILE, TOKENIZER_FILE = "model.safetensors", "model.json", "tokenizer.json"
FORMAT = 1
TASK_FIELDS = ("name", "columns", "labels", "metrics", "label_column", "label_scale", "regression")  # what is saved
EMBEDDING = "encoder.embedding.tokens.weight"


@dataclass(frozen=True)
class SavedClassifier:
    """What a folder holds. ``classifier`` takes ids of the tokenizer, has dropout off, and is on the CPU."""

    classifier: Classifier
    task: Task
    text: TextPipeline
    max_length: int


class BestModel:
    """Keeps the model of the seed with the best validation score in a folder, as the fine-tunings come."""

    def __init__(self, folder: Path, subject: Subject, settings: Evaluation):
        self._folder, self._subject, self._settings = folder, subject, settings

    def kept(self, data: TaskData, seed: int, mark: str, line: dict[str, Any]) -> bool:
        """Whether a model of the same settings and data is there that is at least as good as this fine-tuning's."""
        best = self._present(mark)
        return best is not None and (best["seed"] == seed or best["score"] >= line["values"][data.task.name])

    def keep(self, data: TaskData, seed: int, mark: str, outcome: Outcome) -> None:
        """Write the model, unless a better one is there."""
        score = outcome.values[data.task.name]
        best = self._present(mark)
        if best is not None and best["score"] > score:
            return
        tensors = _full_tensors(outcome, self._subject, seed)
        content = safetensors.torch.save(tensors)
        write_bytes(self._folder / MODEL_FILE, content)
        write_bytes(self._folder / TOKENIZER_FILE, self._subject.text.tokenizer.to_str(pretty=True).encode())
        description = {
            "format": FORMAT, "run": self._subject.name, "seed": seed, "score": score, "mark": mark,
            "task": {field: getattr(data.task, field) for field in TASK_FIELDS},
            "clean": self._subject.text.clean_name,
            "architecture": dataclasses.asdict(self._subject.model(seed).architecture),
            "vocab_size": tensors[EMBEDDING].shape[0],
            "recipe": dataclasses.asdict(self._settings),
            "sha256": hashlib.sha256(content).hexdigest(),
        }  # fmt: skip
        write_json(self._folder / DESCRIPTION_FILE, description)

    def _present(self, mark: str) -> dict[str, Any] | None:
        try:
            description = json.loads((self._folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
            content = (self._folder / MODEL_FILE).read_bytes()
            whole = hashlib.sha256(content).hexdigest() == description["sha256"]
            return description if whole and description["mark"] == mark else None
        except (OSError, ValueError, KeyError):
            return None


def _full_tensors(outcome: Outcome, subject: Subject, seed: int) -> dict[str, torch.Tensor]:
    """The classifier's weights, with the whole vocabulary: tokens that no example has keep their pretrained rows."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in outcome.classifier.state_dict().items()}
    embedding = subject.model(seed).encoder.embedding.tokens.weight.detach().cpu().clone()
    embedding[torch.from_numpy(outcome.vocabulary)] = tensors[EMBEDDING]
    return {**tensors, EMBEDDING: embedding}


def load_classifier(folder: Path) -> SavedClassifier:
    """Read what :class:`BestModel` wrote.

    Raises:
        UsageError: not such a folder. RunError: damaged, or of another version.
    """
    path = folder / DESCRIPTION_FILE
    if not path.is_file():
        raise UsageError(f"--model {folder}: no {DESCRIPTION_FILE} in it; want a folder RUN/evaluation/TASK that "
                         "evaluate --task-files made")  # fmt: skip
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        if description["format"] != FORMAT:
            raise RunError(f"{path}: made by another version of this program; fine-tune again")
        settings = Evaluation(**description["recipe"])
        task = _task(description["task"])
        model = build_model(Architecture(**description["architecture"]), description["vocab_size"], seed=0)
        content = (folder / MODEL_FILE).read_bytes()
        if hashlib.sha256(content).hexdigest() != description["sha256"]:
            raise RunError(f"{folder / MODEL_FILE}: damaged, its checksum differs; fine-tune again")
        classifier = Classifier(
            model, np.arange(description["vocab_size"]), task.outputs, settings.classifier_hidden, settings.dropout,
            0, settings.pooling,
        )  # fmt: skip
        classifier.load_state_dict(safetensors.torch.load(content))
        text = TextPipeline(description["clean"], _tokenizer(folder))
    except FileNotFoundError as error:
        raise RunError(f"{error.filename}: the file is missing; fine-tune again") from None
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise RunError(f"{path}: damaged ({type(error).__name__}: {error}); fine-tune again") from None
    return SavedClassifier(classifier.eval(), task, text, settings.max_length)


def _tokenizer(folder: Path) -> tokenizers.Tokenizer:
    if not (folder / TOKENIZER_FILE).exists():
        raise FileNotFoundError(2, "missing", str(folder / TOKENIZER_FILE))
    return load_tokenizer(folder / TOKENIZER_FILE)


def _task(content: dict[str, Any]) -> Task:
    bounds = (-np.inf, np.inf) if content["regression"] else None
    return Task(
        content["name"], tuple(content["columns"]), tuple(content["labels"]), tuple(content["metrics"]), None, (),
        label_column=content["label_column"], label_range=bounds, label_scale=tuple(content["label_scale"]),
        numbered=False,
    )  # fmt: skip
