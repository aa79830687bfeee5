"""What a run's vectors tell of a sentence before any fine-tuning: ``python -m benchmarks.linear_probe --runs A B``.

Logistic regression on SST-2, from the mean over a sentence's tokens of the embedding's rows and of the last hidden
states; on as many training rows as asked for, drawn as ``evaluate --max-train-rows`` draws them, and judged on the
validation split. The L2 penalty is the best of PENALTIES by five folds of the training rows. Beside each run stands
its own architecture without training.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit

import cramming_train
from cramming_train.errors import UsageError, command
from cramming_train.evaluation.sources import Folder, load_split, load_train
from cramming_train.evaluation.suites import GLUE
from cramming_train.language_model import LanguageModel
from cramming_train.model import build_model

PENALTIES = tuple(10.0**power for power in range(-4, 2))  # of half the squared weights, beside the mean loss
FOLDS = 5


def fit(x_RN: np.ndarray, y_R: np.ndarray, penalty: float) -> np.ndarray:
    """Weights [N + 1], the last without a feature, that minimise mean cross-entropy and half the penalty."""
    signs = 2.0 * y_R - 1.0

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs * (x_RN @ w[:-1] + w[-1])
        slopes = -signs * expit(-margins) / len(x_RN)
        value = np.logaddexp(0.0, -margins).mean() + penalty / 2 * w[:-1] @ w[:-1]
        return value, np.append(x_RN.T @ slopes + penalty * w[:-1], slopes.sum())

    return minimize(loss, np.zeros(x_RN.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x


def accuracy(w: np.ndarray, x_RN: np.ndarray, y_R: np.ndarray) -> float:
    """Of the sign, in percent."""
    return 100.0 * float((((x_RN @ w[:-1] + w[-1]) > 0) == (y_R > 0)).mean())


def probe(train: tuple[np.ndarray, np.ndarray], validation: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """(accuracy on the validation rows, penalty chosen); features are scaled to unit variance of the training rows."""
    (x_RN, y_R), (other_RN, other_R) = train, validation
    mean, deviation = x_RN.mean(0), x_RN.std(0) + 1e-12
    x_RN, other_RN = (x_RN - mean) / deviation, (other_RN - mean) / deviation
    fold = np.arange(len(x_RN)) % FOLDS
    scores = [
        sum(accuracy(fit(x_RN[fold != f], y_R[fold != f], p), x_RN[fold == f], y_R[fold == f]) for f in range(FOLDS))
        for p in PENALTIES
    ]
    penalty = PENALTIES[int(np.argmax(scores))]
    return accuracy(fit(x_RN, y_R, penalty), other_RN, other_R), penalty


def vectors(model: LanguageModel, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """[texts, hidden] of each kind."""
    rows = model.model.encoder.embedding.tokens.weight.detach()
    words = torch.stack([rows[model.encode(text)].mean(0) for text in texts])
    return {"embedding": words.double().numpy(), "last states": model.embed(texts).double().numpy()}


def examples(folder: Path, max_train_rows: int) -> list[tuple[list[str], np.ndarray]]:
    """(sentences, labels) of SST-2: training rows, validation rows.

    Raises:
        UsageError: a split is missing.
    """
    source, task = Folder(folder, GLUE), GLUE.tasks["sst2"]
    splits = [load_train(source, task, max_train_rows)[0], load_split(source, task, task.splits[0], labelled=True)]
    if None in splits:
        raise UsageError(f"--task-dir {folder}: no sst2/train or sst2/validation in it")
    return [([text for (text,) in split.sequences], split.labels) for split in splits if split is not None]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", required=True, help="folders of runs")
    parser.add_argument("--task-dir", type=Path, required=True, help="folder with sst2/train.tsv and the like")
    parser.add_argument("--max-train-rows", type=int, default=2000)
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines")
    arguments = parser.parse_args(argv)
    (texts, labels), (other_texts, other_labels) = examples(arguments.task_dir, arguments.max_train_rows)
    lines = []
    for run in arguments.runs:
        trained, fresh = cramming_train.load(run), cramming_train.load(run)
        fresh.model = build_model(fresh.model.architecture, fresh.model.vocab_size, seed=0).eval()
        for trained_as, model in (("pretrained", trained), ("fresh", fresh)):
            train, validation = vectors(model, texts), vectors(model, other_texts)
            for kind in train:
                found, penalty = probe((train[kind], labels), (validation[kind], other_labels))
                line = {"run": Path(run).name, "weights": trained_as, "vectors": kind, "rows": len(texts)}
                lines.append(line | {"accuracy": round(found, 2), "penalty": penalty})
                print(f"{line['run']}, {trained_as}, {kind}: {found:.1f} %")
    arguments.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
