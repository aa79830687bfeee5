"""The score table as text."""

from __future__ import annotations

from cramming_train.glue.results import Scores
from cramming_train.glue.tasks import HEADLINE_ROWS, PUBLISHED
from cramming_train.recipes import Evaluation

LABELS = {
    "mnli": "MNLI-m", "mnli_mm": "MNLI-mm", "sst2": "SST-2", "stsb": "STS-B", "rte": "RTE", "qnli": "QNLI",
    "qqp": "QQP", "mrpc": "MRPC", "cola": "CoLA", "wnli": "WNLI", "mean": "mean",
}  # fmt: skip
METRIC_LABELS = {"matthews_correlation": "MCC", "accuracy": "acc", "f1": "F1", "pearson": "Pearson"}


def recipe_lines(settings: Evaluation) -> list[str]:
    """The whole fine-tuning recipe in words and numbers."""
    s = settings
    return [
        f"recipe {s.name}: the same for all tasks; score of the last epoch; median of {s.seeds} seeds",
        f"  AdamW: learning rate {s.learning_rate:g}, betas {s.betas[0]:g} and {s.betas[1]:g}, "
        f"eps {s.eps:g}, weight decay {s.weight_decay:g}, no clipping",
        f"  schedule: {s.schedule} to zero, warm-up over {100 * s.warmup:g} % of each task's own steps",
        f"  {s.epochs} epochs, batch {s.batch_size}, shuffled each epoch, incomplete last batch left out",
        f"  input: <cls> A <sep> or <cls> A <sep> B <sep>, at most {s.max_length} tokens, longest cut first",
        f"  head: <cls> state -> Linear {s.classifier_hidden} -> Tanh -> Dropout {s.dropout:g} -> Linear; "
        f"dropout {s.dropout:g} in the encoder",
        "  loss: cross-entropy; STS-B mean squared error",
    ]


def score_lines(scores: Scores) -> list[str]:
    """One line per row with metric, median, spread and data; in percent."""
    lines = [f"{'':8} {'metric':8} {'median':>7} {'min':>7} {'max':>7}  {'seeds':>5}  train / validation rows"]
    for row, entry in scores.rows.items():
        values = entry["values"]
        numbers = " ".join(f"{100 * value:7.1f}" for value in (entry["median"], min(values), max(values)))
        data = f"{entry['train_rows']} / {entry['validation_rows']}" + ("" if entry["complete"] else "  INCOMPLETE")
        lines.append(f"{LABELS[row]:8} {METRIC_LABELS[entry['metric']]:8} {numbers}  {len(values):5}  {data}")
    return lines


def comparison_lines(name: str, scores: Scores) -> list[str]:
    """The run's medians above published ones, in percent; a dash where there is none."""
    own: dict[str, float] = {row: 100 * entry["median"] for row, entry in scores.rows.items()}
    if scores.mean is not None:
        own["mean"] = 100 * scores.mean
    rows = {name: own, **PUBLISHED}
    columns = [row for row in LABELS if row in HEADLINE_ROWS or row == "mean"]
    width = max(len(label) for label in rows)
    lines = [" " * width + "".join(f"{LABELS[column]:>8}" for column in columns)]
    for label, values in rows.items():
        cells = (f"{values[column]:8.1f}" if column in values else f"{'-':>8}" for column in columns)
        lines.append(f"{label:{width}}" + "".join(cells))
    return lines


def summary_lines(scores: Scores) -> list[str]:
    """The headline and what it lacks, in words."""
    lines = []
    if scores.missing:
        lines.append("missing: " + ", ".join(scores.missing))
    if scores.incomplete:
        lines.append("incomplete (not the official data; not comparable with published scores): "
                     + ", ".join(scores.incomplete))  # fmt: skip
    if scores.mean is None:
        lines.append("GLUE mean: none; it takes all nine rows, complete, with all seeds")
    else:
        lines.append(f"GLUE mean: {100 * scores.mean:.1f}")
    return lines + [f"note: {note}" for note in scores.notes]
