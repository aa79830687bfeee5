"""python -m cramming_train.predict: label new rows with a model that evaluate --task-files has fine-tuned."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cramming_train.errors import UsageError, command
from cramming_train.evaluate import pick_device
from cramming_train.evaluation.encoding import encode
from cramming_train.evaluation.finetune import predicted
from cramming_train.evaluation.framing import Use
from cramming_train.evaluation.rows import SUFFIXES, read_rows
from cramming_train.evaluation.saved import SavedClassifier, load_classifier
from cramming_train.evaluation.sources import frame_rows
from cramming_train.precision import Precision

CHUNK = 4096  # rows in memory at once
OUTPUTS = (".jsonl", ".tsv")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m cramming_train.predict", description=__doc__.partition(": ")[2])
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="the fine-tuned model: RUN/evaluation/TASK")
    add("file", type=Path, metavar="FILE", help=f"rows with the task's text columns: {' '.join(SUFFIXES)}")
    add("--out", type=Path, metavar="OUT", help="file to write, .jsonl or .tsv (default: JSON lines to the screen)")
    add("--device", help="such as cpu or cuda (default: cuda where there is one)")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    arguments = build_parser().parse_args(argv)
    device = pick_device(arguments.device)
    out: Path | None = arguments.out
    if out is not None and out.suffix not in OUTPUTS:
        raise UsageError(f"--out {out}: want a name that ends in {' or '.join(OUTPUTS)}")
    saved = load_classifier(arguments.model)
    lines = written(saved, predictions(saved, arguments.file, device), tabs=out is not None and out.suffix == ".tsv")
    if out is None:
        for line in lines:
            print(line)
        return 0
    temporary = out.with_name(out.name + ".writing")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"written to {out}")
    return 0


def predictions(saved: SavedClassifier, file: Path, device: torch.device) -> Iterator[np.ndarray]:
    """For each row of the file, in its order, the probabilities of the classes [K], or the value [1]; in fp32."""
    classifier, numbers = saved.classifier.to(device), Precision("fp32", device)
    rows = read_rows(file)
    while chunk := list(islice(rows, CHUNK)):
        examples = frame_rows(saved.task, chunk, Use(saved.task.columns, labelled=False))
        split = encode(saved.text.tokenizer, saved.text.clean, examples, saved.max_length)
        if saved.task.regression:
            mean, deviation = saved.task.label_scale
            yield from predicted(classifier, split, numbers, lambda logits: logits.float()) * deviation + mean
        else:
            yield from predicted(classifier, split, numbers, lambda logits: logits.float().softmax(dim=1))


def written(saved: SavedClassifier, rows: Iterator[np.ndarray], *, tabs: bool) -> Iterator[str]:
    """A line for each row: JSON, or with ``tabs`` cells under a header. Rows are counted from 0."""
    labels, regression = saved.task.labels, saved.task.regression
    if tabs:
        names = [" ".join(label.split()) for label in labels]
        yield "\t".join(["index", "value"] if regression else ["index", "label", *(f"p({name})" for name in names)])
    for index, row in enumerate(rows):
        answer: dict[str, Any] = {"index": index}
        if regression:
            answer["value"] = float(row[0])
        else:
            answer["label"] = labels[int(row.argmax())]
            answer["probabilities"] = {label: round(float(p), 6) for label, p in zip(labels, row, strict=True)}
        yield _cells(answer) if tabs else json.dumps(answer)


def _cells(answer: dict[str, Any]) -> str:
    if "value" in answer:
        return f"{answer['index']}\t{answer['value']:.6g}"
    probabilities = "\t".join(f"{p:.6f}" for p in answer["probabilities"].values())
    return f"{answer['index']}\t{' '.join(answer['label'].split())}\t{probabilities}"


if __name__ == "__main__":
    sys.exit(main())
