"""``python -m cramming_train.report``: a run as one page with pictures: loss, learning rate, throughput, GLUE."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cramming_train.errors import command
from cramming_train.evaluation.suites import GLUE
from cramming_train.runs import DEFAULT_RUNS_DIR, Run, find_run, read_json
from cramming_train.tracking import effective_events

OURS, REFERENCE, ACCENT = "#1f5fa8", "#b9c3cf", "#d2642a"
SHOWN = (  # of summary.json
    "recipe", "device", "seed", "budget_seconds", "train_seconds", "tokens", "optimizer_steps", "tokens_per_second",
    "model_flops_utilization", "parameters", "train_loss", "validation_loss", "validation_accuracy",
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="python -m cramming_train.report", description=__doc__)
    parser.add_argument("--run", default="latest", help="latest, a run's name, or its path")
    parser.add_argument("--out", type=Path, default=DEFAULT_RUNS_DIR, help="folder of runs (default ./runs)")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    arguments = build_parser().parse_args(argv)
    path = write_report(find_run(arguments.run, arguments.out))
    if path is None:
        return 1
    print(path)
    return 0


def write_report(run: Run) -> Path | None:
    """Write RUN/report/report.md and its pictures; None (with a notice) where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("no report: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
        return None
    matplotlib.use("Agg")
    folder = run.path / "report"
    folder.mkdir(exist_ok=True)
    events = effective_events(run.log)
    steps = [event for event in events if event["event"] == "step"]
    validations = [event for event in events if event["event"] == "validation"]
    pictures = []
    if steps:
        pictures.append(("Loss", _loss_picture(folder, steps, validations, run.summary)))
        pictures.append(("Learning rate and batch", _schedule_picture(folder, steps)))
        pictures.append(("Throughput", _throughput_picture(folder, steps)))
    scores = _glue_scores(run)
    if scores is not None and any(row in scores["tasks"] for row in GLUE.headline):
        pictures.append(("GLUE", _glue_picture(folder, scores, run.name)))
    page = folder / "report.md"
    page.write_text(_page(run, pictures, scores), encoding="utf-8")
    return page


def _figure(rows: int = 1):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, 1, figsize=(8, 1.2 + 2.8 * rows), sharex=rows > 1, layout="constrained")
    for axis in [axes] if rows == 1 else axes:
        axis.grid(True, color="#e6e9ed", linewidth=0.8)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return figure, axes


def _save(figure, path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _minutes(events: list[dict[str, Any]]) -> list[float]:
    return [event["elapsed"] / 60 for event in events]


def _values(events: list[dict[str, Any]], key: str) -> list[float]:
    return [float("nan") if event[key] is None else event[key] for event in events]


def _loss_picture(folder: Path, steps, validations, summary: dict[str, Any] | None) -> Path:
    figure, axis = _figure()
    axis.plot(_minutes(steps), _values(steps, "loss"), color=OURS, linewidth=1, alpha=0.7, label="training")
    if validations:
        held_out = _values(validations, "loss")
        axis.plot(_minutes(validations), held_out, "o-", color=ACCENT, markersize=4, label="held-out")
    if summary is not None:
        unigram = summary["data"]["unigram_loss"]
        axis.axhline(unigram, color=REFERENCE, linestyle="--", linewidth=1, label="unigram model")
    axis.set(xlabel="budget used (minutes)", ylabel="masked-LM loss (nats)", title="Loss")
    axis.legend(frameon=False)
    return _save(figure, folder / "loss.png")


def _schedule_picture(folder: Path, steps) -> Path:
    figure, (top, bottom) = _figure(2)
    top.plot(_minutes(steps), _values(steps, "learning_rate"), color=OURS)
    top.set(ylabel="learning rate", title="Schedule")
    bottom.plot(_minutes(steps), _values(steps, "batch_rows"), color=OURS, drawstyle="steps-post")
    bottom.set(xlabel="budget used (minutes)", ylabel="batch (rows)", ylim=(0, None))
    return _save(figure, folder / "schedule.png")


def _throughput_picture(folder: Path, steps) -> Path:
    figure, (top, bottom) = _figure(2)
    top.plot(_minutes(steps), _values(steps, "tokens_per_second"), color=OURS, linewidth=1)
    top.set(ylabel="tokens / s", ylim=(0, None), title="Throughput")
    utilization = [100 * value for value in _values(steps, "model_flops_utilization")]
    bottom.plot(_minutes(steps), utilization, color=OURS, linewidth=1)
    bottom.set(xlabel="budget used (minutes)", ylabel="model FLOPs, % of GEMM rate", ylim=(0, None))
    return _save(figure, folder / "throughput.png")


def _glue_scores(run: Run) -> dict[str, Any] | None:
    path = run.path / "evaluation" / "glue.json"
    return read_json(path) if path.exists() else None


def _glue_picture(folder: Path, scores: dict[str, Any], name: str) -> Path:
    """Bars of each task's median beside published ones; incomplete tasks are hatched."""
    tasks = [task for task in GLUE.headline if task in scores["tasks"]]
    series = [(name, [100 * scores["tasks"][task]["median"] for task in tasks], OURS)]
    for (label, values), color in zip(GLUE.published.items(), ("#5f6b78", "#8d99a6", REFERENCE), strict=False):
        series.append((label, [values[task] for task in tasks], color))
    figure, axis = _figure()
    width = 0.8 / len(series)
    for index, (label, values, color) in enumerate(series):
        places = [task + (index - (len(series) - 1) / 2) * width for task in range(len(tasks))]
        bars = axis.bar(places, values, width, color=color, label=label)
        for bar, task in zip(bars, tasks, strict=True):
            if index == 0 and not scores["tasks"][task]["complete"]:
                bar.set(hatch="///", edgecolor="white")
    labels = [task if scores["tasks"][task]["complete"] else f"{task}\n(incomplete data)" for task in tasks]
    axis.set_xticks(range(len(tasks)), labels)
    axis.set(ylabel="score (%)", title="GLUE, development sets")
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    return _save(figure, folder / "glue.png")


def _page(run: Run, pictures: list[tuple[str, Path]], scores: dict[str, Any] | None) -> str:
    lines = [f"# {run.name}", ""]
    summary = run.summary
    if summary is None:
        lines += ["The run has not ended.", ""]
    else:
        lines += ["| | |", "|---|---|", *(f"| {key} | {_number(summary[key])} |" for key in SHOWN)]
        lines += [f"| data | {summary['data']['source']} ({summary['data']['rows']:,} rows) |", ""]
        lines += [f"> **{notice}**\n" for notice in summary["data"]["notices"]]
        lines += ["## The rules", ""]
        lines += [f"{n}. {rule['rule']}: {_kept(rule)} ({rule['why']})" for n, rule in enumerate(summary["rules"], 1)]
        lines += [""]
    for title, path in pictures:
        lines += [f"## {title}", "", f"![{title}]({path.name})", ""]
    if scores is not None:
        lines += _score_table(scores)
    return "\n".join(lines) + "\n"


def _score_table(scores: dict[str, Any]) -> list[str]:
    lines = [
        "| task | metric | median (%) | min..max (%) | seeds | train rows | validation rows |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, entry in scores["tasks"].items():
        lack = "capped training set" if "capped_from" in entry else "incomplete data"
        mark = "" if entry["complete"] else f" ({lack})"
        values = [100 * value for value in entry["values"]]
        spread = f"{min(values):.1f}..{max(values):.1f}"
        lines.append(f"| {name}{mark} | {entry['metric']} | {100 * entry['median']:.1f} | {spread} | {len(values)} "
                     f"| {entry['train_rows']:,} | {entry['validation_rows']:,} |")  # fmt: skip
    mean = scores["mean"]
    headline = "none: it takes all nine values, complete" if mean is None else f"{100 * mean:.1f}"
    if scores.get("mean_range"):
        headline += " (of single seeds {:.1f}..{:.1f})".format(*(100 * value for value in scores["mean_range"]))
    return [*lines, "", f"Mean of the nine values: {headline}"]


def _kept(rule: dict[str, Any]) -> str:
    return "kept" if rule["kept"] else "not kept"


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main())
