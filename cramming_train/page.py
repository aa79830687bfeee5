"""What the page of a run says: figures, rules, scores and facts as plain values for the template report.html."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cramming_train.certificate import CERTIFICATE_FILE, STATES, started_from
from cramming_train.display import compact, duration
from cramming_train.evaluation.metrics import METRICS
from cramming_train.evaluation.suites import GLUE
from cramming_train.pictures import Picture
from cramming_train.runs import Run

TEMPLATE = Path(__file__).with_name("report.html")
HAPPENINGS = ("notice", "resume", "recovery", "non_finite", "interrupt")
MOST_HAPPENINGS = 20
SHORT_LABELS = ("BERT-base", "crammed, A6000", "no pretraining")  # of PUBLISHED
Fact = tuple[str, Any]


def page(run: Run, events: Sequence[dict[str, Any]], pictures: Sequence[Picture], scores: dict[str, Any] | None) -> str:
    """The whole page as HTML. The pictures are shown in their order, that of GLUE beside its table."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["sentence"] = sentence
    summary = run.summary
    settings = run.settings
    ended = summary is not None
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=run.name,
        subtitle=_subtitle(settings, summary),
        figures=_figures(summary, scores) if ended else [],
        notices=summary["data"]["notices"] if ended else ["The run has not ended."],
        rules=[{**rule, "state": STATES[rule["kept"]]} for rule in summary["rules"]] if ended else [],
        glue_picture=next((picture for picture in pictures if picture.title == "GLUE"), None),
        pictures=[picture for picture in pictures if picture.title != "GLUE"],
        scores=None if scores is None else _scores(scores),
        happened=_happened(events),
        facts=_facts(summary) if ended else [],
        recipe=json.dumps(settings["recipe"], indent=2),
        footer=f"Made by python -m cramming_train.report from the run's own files; {CERTIFICATE_FILE} beside them says "
        "the same to programs.",
    )


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."


def _subtitle(settings: dict[str, Any], summary: dict[str, Any] | None) -> str:
    if summary is None:
        return settings["recipe"]["name"]
    model = f"{summary['recipe']}, {summary['parameters'] / 1e6:,.1f} M parameters"
    origin, seconds = started_from(summary), summary.get("train_seconds")
    if seconds is None:
        return f"{model}, from {origin}"
    how = "pretrained from scratch" if origin is None else f"trained on from {origin}"
    return f"{model}, {how} in {duration(seconds)} on {summary['device']}"


def _figures(summary: dict[str, Any], scores: dict[str, Any] | None) -> list[dict[str, str]]:
    """The few numbers that a reader looks for first."""
    shown = []
    if scores is not None and scores["mean"] is not None:
        shown.append(("GLUE mean", f"{100 * scores['mean']:.1f}", "nine values, development sets"))
    loss = summary.get("validation_loss")
    if loss is not None:
        shown += [
            ("held-out loss", f"{loss:.3f}", f"unigram model {summary['data']['unigram_loss']:.3f}"),
            ("held-out accuracy", f"{100 * summary['validation_accuracy']:.1f} %", f"perplexity {_perplexity(loss)}"),
            ("tokens", compact(summary["tokens"]), f"{summary['epochs']:.2f} epochs"),
            ("throughput", f"{compact(summary['tokens_per_second'])}/s",
             f"MFU {100 * summary['model_flops_utilization']:.1f} %"),
        ]  # fmt: skip
    return [{"label": label, "value": value, "note": note} for label, value, note in shown]


def _perplexity(loss: float) -> str:
    return f"{math.exp(min(loss, 50)):,.1f}"


def _scores(scores: dict[str, Any]) -> dict[str, Any]:
    """The table of tasks beside published scores, in percent."""
    rows = []
    for row, entry in scores["tasks"].items():
        values = [100 * value for value in entry["values"]]
        spread = f"{min(values):.1f}–{max(values):.1f}" if len(values) > 1 else "one seed"
        published = [f"{columns[row]:.1f}" if row in columns else "–" for columns in GLUE.published.values()]
        mark = "" if entry["complete"] else "*"
        cells = [f"{100 * entry['median']:.1f}{mark}", spread, *published]
        rows.append({"label": GLUE.rows[row][1].label, "metric": METRICS[entry["metric"]].label, "cells": cells})
    if scores["mean"] is not None:
        published = [f"{columns['mean']:.1f}" for columns in GLUE.published.values()]
        rows.append({"label": "mean", "metric": "", "cells": [f"{100 * scores['mean']:.1f}", "", *published]})
    lines = []
    incomplete = [
        f"{GLUE.rows[row][1].label} {entry['train_rows']:,} training and {entry['validation_rows']:,} validation rows"
        for row, entry in scores["tasks"].items()
        if not entry["complete"]
    ]
    if incomplete:
        lines.append(f"* Incomplete data, not comparable with published scores: {'; '.join(incomplete)}.")
    missing = [GLUE.rows[row][1].label for row in GLUE.headline if row not in scores["tasks"]]
    if missing:
        lines.append(f"Missing: {', '.join(missing)}.")
    if scores["mean"] is None:
        lines.append("Mean of the nine values: none; it takes all of them, complete, with all seeds.")
    lines.append("Medians over seeds on the development sets, in percent; published scores: arXiv 2212.14034.")
    return {"columns": ["this run", "seeds", *SHORT_LABELS], "rows": rows, "lines": lines}


def _happened(events: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Notices, resumes and recoveries, the last of them."""
    lines = []
    for event in events:
        if event["event"] in HAPPENINGS:
            word = event["event"].replace("_", "-")
            what = event.get("message") or f"{word} at step {event['step']:,}"
            what = f"{word} at step {event['step']:,}: {what}" if event["event"] == "non_finite" else what
            lines.append({"when": f"after {duration(event['elapsed'])}", "what": sentence(what)})
    left_out = len(lines) - MOST_HAPPENINGS
    if left_out > 0:
        lines = [{"when": "before", "what": f"{left_out} earlier events are in log.jsonl."}, *lines[left_out:]]
    return lines


def _facts(summary: dict[str, Any]) -> list[tuple[str, list[Fact]]]:
    """Everything else, block by block; what is not known is left out."""
    blocks = [
        ("Training", _training_facts(summary)),
        ("Data", _data_facts(summary["data"])),
        ("Machine", _machine_facts(summary)),
        ("Software", [*summary.get("versions", {}).items(), *_kernel_facts(summary.get("kernels", {}))]),
    ]
    known = [(title, [(label, value) for label, value in lines if value is not None]) for title, lines in blocks]
    return [(title, lines) for title, lines in known if lines]


def _training_facts(summary: dict[str, Any]) -> list[Fact]:
    tokens, seconds = summary.get("budget_tokens"), summary.get("budget_seconds")
    hours = _shown("{:,.4g} hours", seconds and seconds / 3600)
    held_out = _shown("{:.4f}", summary.get("validation_loss"))
    return [
        ("budget", hours if tokens is None else f"{tokens:,} tokens, at most {hours}"),
        ("used", _shown("{:,.1f} seconds", summary.get("train_seconds"))),
        ("tokens", _shown("{:,}", summary.get("tokens"))),
        ("optimizer steps", _shown("{:,}", summary.get("optimizer_steps"))),
        ("micro-batch", _shown("{:,} rows", summary.get("micro_batch_rows"))),
        ("seed", summary.get("seed")),
        ("parameters", f"{summary['parameters']:,}"),
        ("training loss", _shown("{:.4f} nats", summary.get("train_loss"))),
        ("held-out loss", held_out and f"{held_out} nats over {summary['validation_rows']:,} rows"),
        ("finished", summary["finished"]),
    ]


def _data_facts(data: dict[str, Any]) -> list[Fact]:
    return [
        ("source", data["source"]),
        ("rows", f"{data['rows']:,}"),
        ("fingerprint", data["fingerprint"]),
        ("rows, SHA-256", (data.get("sha256") or {}).get("train")),
    ]


def _machine_facts(summary: dict[str, Any]) -> list[Fact]:
    hardware = summary.get("hardware", {})
    card = hardware.get("gpu", {})
    rate = summary.get("gemm_flops_per_second")
    return [
        ("device", summary.get("device")),
        ("processes", summary.get("processes")),
        ("processor", hardware.get("processor")),
        ("cores", hardware.get("cores")),
        ("memory", _gibibytes(hardware.get("memory_bytes"))),
        ("GPU memory", _gibibytes(card.get("memory_bytes"))),
        ("compute capability", card.get("compute_capability")),
        ("driver", card.get("driver")),
        ("system", hardware.get("system")),
        ("GEMM rate, measured", _shown("{:,.3g} TFLOP/s", rate and rate / 1e12)),
    ]


def _kernel_facts(kernels: dict[str, str]) -> list[Fact]:
    """The operations that each backend served."""
    return [
        (f"kernels: {backend}", ", ".join(op for op, by in kernels.items() if by == backend))
        for backend in sorted(set(kernels.values()))
    ]


def _shown(pattern: str, value: Any) -> str | None:
    return None if value is None else pattern.format(value)


def _gibibytes(count: int | None) -> str | None:
    return None if count is None else f"{count / 2**30:,.1f} GiB"
