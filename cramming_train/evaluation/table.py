"""The score table as text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from cramming_train.evaluation.metrics import METRICS
from cramming_train.evaluation.results import Scores
from cramming_train.evaluation.tasks import Suite, Task
from cramming_train.recipes import Evaluation


def recipe_lines(settings: Evaluation, tasks: Sequence[Task]) -> list[str]:
    """The whole fine-tuning recipe in words and numbers, 80 columns wide."""
    s = settings
    warmup = f"warm-up over {100 * s.warmup:g} % of each task's own steps"
    if s.warmup_steps is not None:
        warmup = f"warm-up over the first {s.warmup_steps} steps of every task, whatever its length"
    state = "<cls>" if s.pooling == "cls" else "mean"
    kinds = ["cross-entropy"]
    if any(task.outputs == 1 and not task.regression for task in tasks):
        kinds.append("over the choices of a row where a task has choices")
    if regressions := [task.splits[0].label for task in tasks if task.regression]:
        kinds.append(f"{', '.join(regressions)} mean squared error")
    lines = [
        f"recipe {s.name}: the same for all tasks; score of the last epoch; median of {s.seeds} seeds",
        f"  AdamW: learning rate {s.learning_rate:g}, betas {s.betas[0]:g} and {s.betas[1]:g}, "
        f"eps {s.eps:g}, weight decay {s.weight_decay:g}, no clipping",
        f"  schedule: {s.schedule} to zero, {warmup}",
        f"  {s.epochs} epochs, batch {s.batch_size}, shuffled each epoch, incomplete last batch left out",
        f"  input: <cls> A <sep> or <cls> A <sep> B <sep> (...), at most {s.max_length} tokens, longest cut first",
        f"  head: {state} state -> Linear {s.classifier_hidden} -> Tanh -> Dropout {s.dropout:g} -> Linear; "
        f"dropout {s.dropout:g} in the encoder",
        f"  loss: {'; '.join(kinds)}",
    ]
    if s.max_train_rows is not None:
        lines.append(f"  CAPPED: at most {s.max_train_rows} training rows a task, a fixed random choice")
    return [part for line in lines for part in textwrap.wrap(line, 80, subsequent_indent="    ")]


def score_lines(suite: Suite, scores: Scores) -> list[str]:
    """One line per row with metric, median, spread (min and max over the seeds) and data; in percent.

    80 columns wide. What does not fit stands in a second line under its row.
    """
    labels = {row: suite.rows[row][1].label for row in scores.rows}
    width = max([7, *map(len, labels.values())])
    lines = [
        f"{'':{width}} {'metric':14} {'median':>6} {'min':>6} {'max':>6} seeds  train / validation rows",
    ]
    for row, entry in scores.rows.items():
        metrics = " + ".join(METRICS[metric].label for metric in entry["metric"].split(" + "))
        numbers = " ".join(f"{100 * entry[key]:6.1f}" for key in ("median", "min", "max"))
        line = f"{labels[row]:{width}} {metrics:14} {numbers} {len(entry['values']):5}  "
        line += f"{entry['train_rows']} / {entry['validation_rows']}"
        below = []
        if "metrics" in entry:
            parts = (f"{METRICS[metric].label} {100 * value:.1f}" for metric, value in entry["metrics"].items())
            below.append(f"mean of {', '.join(parts)}")
        if "capped_from" in entry:
            below.append(f"CAPPED from {entry['capped_from']} training rows")
        elif not entry["complete"]:
            line += "  INCOMPLETE"
        lines += [line, *(f"{'':{width}} ({remark})" for remark in below)]
    return [*lines, "min and max are those over the seeds"]


def comparison_lines(suite: Suite, scores: Scores) -> list[str]:
    """The run's medians beside published ones, in percent; a dash where there is none. 80 columns wide."""
    own: dict[str, float] = {row: 100 * entry["median"] for row, entry in scores.rows.items()}
    if scores.mean is not None:
        own["mean"] = 100 * scores.mean
    columns = [own, *suite.published.values()]
    order = next(iter(suite.published.values()))  # as papers print them
    labels = {row: suite.rows[row][1].label if row in suite.rows else row for row in order}
    width = max(map(len, labels.values()))
    marks = [f"[{number}]" for number in range(1, len(columns))]
    lines = [f"{'':{width}} {'this run':>9}" + "".join(f"{mark:>8}" for mark in marks)]
    for row, label in labels.items():
        cells = [f"{values[row]:.1f}" if row in values else "-" for values in columns]
        lines.append(f"{label:{width}} {cells[0]:>9}" + "".join(f"{cell:>8}" for cell in cells[1:]))
    return lines + [f"{mark} {name}" for mark, name in zip(marks, suite.published, strict=True)]


def summary_lines(suite: Suite, scores: Scores, recipe: str) -> list[str]:
    """The headline of an evaluation by the recipe of that name and what it lacks, in words."""
    lines = []
    if scores.missing:
        lines.append("missing: " + ", ".join(scores.missing))
    if scores.capped:
        lines.append("capped training sets (not comparable with published scores): " + ", ".join(scores.capped))
    incomplete = [row for row in scores.incomplete if row not in scores.capped]
    if incomplete:
        lines.append("incomplete (not the official data; not comparable with published scores): "
                     + ", ".join(incomplete))  # fmt: skip
    if suite.headline and scores.mean is None:
        rows = f"all {len(suite.headline)} rows" if len(suite.headline) > 1 else "its row"
        lines.append(f"{suite.title} mean: none; it takes {rows}, complete, with all seeds")
    elif scores.mean_range is not None:
        low, high = (100 * value for value in scores.mean_range)
        lines.append(f"{suite.title} mean: {100 * scores.mean:.1f} (recipe {recipe}; of the medians; "
                     f"of single seeds {low:.1f}..{high:.1f})")  # fmt: skip
    return lines + [f"note: {note}" for note in scores.notes]
