"""The folder of a run without the run: a log as training writes it, a summary, scores."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from cramming_train.certificate import rules
from cramming_train.machine import hardware, software
from cramming_train.recipes import get_recipe
from cramming_train.runs import Run
from cramming_train.tracking import RunLog

SUMMARY = {
    "recipe": "crammed-bert-mini", "device": "a machine", "processes": 1, "seed": 5, "budget_seconds": 90.0,
    "budget_tokens": None, "train_seconds": 89.5, "tokens": 1234567, "epochs": 2.5, "optimizer_steps": 40,
    "micro_batch_rows": 32, "tokens_per_second": 13794.0, "model_flops_utilization": 0.4321, "parameters": 11015169,
    "gemm_flops_per_second": 1.5e11, "train_loss": 5.4321, "validation_loss": 5.6789, "validation_accuracy": 0.1234,
    "validation_rows": 128, "kernels": {"attention": "reference", "geglu": "triton"},
    "hardware": hardware(torch.device("cpu")), "versions": software(), "finished": "2030-01-01T00:00:00+0000",
    "data": {"source": "books", "source_kind": "files", "fingerprint": "f1e2d3", "sha256": {"train": "ab" * 32},
             "rows": 98765, "notices": ["mind the rows"], "unigram_loss": 7.5},
}  # fmt: skip


def make_run(
    folder: Path, *, steps: int = 40, validations: int = 2, summary: bool = True, seconds: float = 88.0
) -> Run:
    """A run of so many steps in so many seconds; the loss of step 7 is not finite."""
    folder.mkdir(parents=True)
    settings = {"recipe": get_recipe("crammed-bert-mini").to_dict(), "seed": 5, "hours": 0.025, "tokens": None,
                "text_column": "text", "data": {"fingerprint": "f1e2d3", "path": "gone"}}  # fmt: skip
    (folder / "recipe.json").write_text(json.dumps(settings))
    now = [0.0]
    log = RunLog(folder / "log.jsonl", lambda: now[0])
    log.write("start", recipe="x")
    for step in range(1, steps + 1):
        share = step / steps
        now[0] = seconds * share
        noise = math.sin(step * 12.9898) * math.cos(step * 4.1414)
        loss = 2 + 8.4 * math.exp(-6 * share) + 0.08 * noise - 0.3 * share
        log.write(
            "step", step=step, tokens=step * 4096, rows=step * 32, epoch=0, loss=loss if step != 7 else math.nan,
            accuracy=0.1, grad_norm=0.4 + 2 * math.exp(-20 * share) + 0.1 * noise, masking_rate=0.3 - 0.15 * share,
            learning_rate=1e-3 * min(0.25 + share, 4 - 4 * share), batch_rows=32 * (1 + int(20 * min(share, 0.6))),
            attention_window=4 << int(10 * share) if share < 0.5 else None,
            fraction=share, tokens_per_second=14000.0 + 300 * noise, model_flops_utilization=0.43 + 0.01 * noise,
        )  # fmt: skip
        if validations and step % (steps // validations) == 0:
            log.write("validation", step=step, loss=loss + 0.1, accuracy=0.1, rows=9, tokens=step * 4096)
    log.close()
    if summary:
        content = {**SUMMARY, "name": folder.name}
        (folder / "summary.json").write_text(json.dumps({**content, "rules": rules(content)}))
    return Run(folder)


def add_scores(run: Run, *, mean: float | None = None, **tasks: tuple[float, bool]) -> None:
    """glue.json with tasks of (median, complete) and three seeds around it."""
    entries = {
        name: {"metric": "accuracy", "median": median, "values": [median - 0.01, median, median + 0.02],
               "train_rows": 2490, "validation_rows": 277, "complete": complete}
        for name, (median, complete) in tasks.items()
    }  # fmt: skip
    (run.path / "evaluation").mkdir(exist_ok=True)
    recipe = {"name": "glue-sane", "epochs": 5, "learning_rate": 4e-5, "batch_size": 16}
    (run.path / "evaluation" / "glue.json").write_text(json.dumps({"tasks": entries, "mean": mean, "recipe": recipe}))
