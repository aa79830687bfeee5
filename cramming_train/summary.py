"""summary.json: what a run was, what came of it, and which of the five rules it kept."""

from __future__ import annotations

import platform
from typing import Any

import torch

from cramkernels import backend_for
from cramkernels.dispatch import OPERATIONS
from cramming_train.checkpoint import write_json_atomically
from cramming_train.runs import SUMMARY_FILE, Run

DAY_SECONDS = 24 * 3600
RULES = (
    "a transformer trained with masked language modelling, from scratch",
    "no pretrained model in any part of the pipeline",
    "any raw text except downstream data",
    "one GPU, 24 hours",
    "judged on GLUE, one set of hyperparameters, at most 5 epochs",
)


def kernels_used(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Operation -> backend."""
    return {op: backend_for(op, dtype=dtype, device=device).backend for op in OPERATIONS}


def device_name(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()} ({torch.get_num_threads()} threads)"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def rules(summary: dict[str, Any], metadata: dict[str, Any], evaluated: bool) -> list[dict[str, Any]]:
    """The five rules of cramming, each kept or not, and why.

    Of ``imported`` weights none is known to be kept, and a run that started from another's weights (``init_from``)
    breaks the first two.
    """
    judged = "evaluated on GLUE" if evaluated else "not yet: run python -m cramming_train.evaluate --suite glue"
    if summary.get("imported"):
        why = f"outside the rules: weights imported from {summary['imported']}, trained elsewhere"
        return [*(_rule(rule, False, why) for rule in RULES[:4]), _rule(RULES[4], evaluated, judged)]
    epochs = summary["epochs"]
    repeats = f"; the rows were used {epochs:.1f} times" if epochs > 1 else ""
    source = metadata["source"]
    tokenizer_why = "the tokenizer was trained on the same text"
    text_kept, text_why = True, f"raw text from {source}; not compared with the GLUE sets{repeats}"
    if metadata["source_kind"] == "embedded":
        text_why = f"documentation text of this machine's Python packages: demonstration data{repeats}"
    if metadata["source_kind"] == "rows":
        text_why = f"rows prepared by others ({source}), taken at their word{repeats}"
        tokenizer_why = "the rows' own tokenizer, taken at its makers' word"
    world, seconds = summary["processes"], summary["train_seconds"]
    over_time = seconds > DAY_SECONDS
    hardware = f"{world} process(es) on {summary['device']}, {seconds:,.0f} seconds"
    init_from, start_why = summary.get("init_from"), "random initialisation"
    if init_from:
        start_why = f"outside the rules: started from the weights of {init_from}"
        tokenizer_why = f"the weights of {init_from} are a part"
    return [
        _rule(RULES[0], not init_from, start_why),
        _rule(RULES[1], not init_from, tokenizer_why),
        _rule(RULES[2], text_kept, text_why),
        _rule(RULES[3], world == 1 and not over_time, hardware),
        _rule(RULES[4], evaluated, judged),
    ]


def _rule(rule: str, kept: bool, why: str) -> dict[str, Any]:
    return {"rule": rule, "kept": kept, "why": why}


def write_summary(run: Run, summary: dict[str, Any]) -> None:
    """Write summary.json."""
    write_json_atomically(run.path / SUMMARY_FILE, summary)


def note_evaluation(run: Run, within_rules: bool, why: str) -> None:
    """Record in the fifth rule that the run was evaluated."""
    summary = run.summary
    if summary is None:
        return
    summary["rules"][4].update(kept=within_rules, why=why)
    write_summary(run, summary)
