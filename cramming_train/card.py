"""The model card of a run, as the Hugging Face hub wants it: README.md with YAML front matter."""

from __future__ import annotations

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from cramming_train.certificate import STATES, started_from
from cramming_train.data.hub import PILE_ROWS
from cramming_train.display import duration
from cramming_train.errors import RunError
from cramming_train.evaluation.metrics import METRICS
from cramming_train.evaluation.results import glue_scores
from cramming_train.evaluation.suites import GLUE
from cramming_train.runs import Run

LICENSE = "apache-2.0"  # this program's; whoever publishes weights may have to give another
LANGUAGES = {"ascii": "en", "unicode": "multilingual"}  # of data.clean
PAPER = "arXiv:2212.14034"


def model_card(run: Run) -> str:
    """The text of README.md.

    Raises:
        RunError: the run has not ended.
    """
    summary = run.summary
    if summary is None:
        raise RunError(f"{run.name}: the run has not ended; a model card needs its results")
    scores = glue_scores(run.path)
    blocks = [
        f"---\n{_front_matter(run, summary, scores)}\n---",
        f"# {run.name}",
        _what_it_is(run, summary),
        _results(summary),
        *([_glue(run, scores)] if scores is not None else []),
        _rules(summary),
        _loading(run),
        _limitations(run, summary, scores),
    ]
    return "\n\n".join(blocks) + "\n"


def _front_matter(run: Run, summary: dict[str, Any], scores: dict[str, Any] | None) -> str:
    results = _eval_results(scores) if scores is not None else []
    return ModelCardData(
        language=LANGUAGES.get(run.recipe.data.clean),
        license=LICENSE,
        library_name="transformers",
        pipeline_tag="fill-mask",
        mask_token="<mask>",
        tags=["fill-mask", "masked-lm", "bert", "cramming"],
        datasets=_hub_datasets(summary["data"]),
        model_name=run.name if results else None,
        eval_results=results or None,
    ).to_yaml()


def _hub_datasets(data: dict[str, Any]) -> list[str] | None:
    """Names of hub data sets among the sources."""
    if data["source_kind"] == "hub" or data["source"] == PILE_ROWS:
        return [data["source"].partition(":")[0]]
    return None


def _eval_results(scores: dict[str, Any]) -> list[EvalResult]:
    """Medians of the tasks whose data are complete."""
    found = [(*GLUE.rows[row], entry) for row, entry in scores["tasks"].items() if entry["complete"]]
    return [
        EvalResult(
            task_type="text-classification", dataset_type=GLUE.repository, dataset_name=f"GLUE {split.label}",
            dataset_config=task.name, dataset_split=split.name, metric_type=entry["metric"],
            metric_value=round(entry["median"], 4),
        )
        for task, split, entry in found
    ]  # fmt: skip


def _what_it_is(run: Run, summary: dict[str, Any]) -> str:
    architecture = run.recipe.architecture
    origin = started_from(summary)
    how = "pretrained from scratch with masked language modelling" if origin is None else f"that started from {origin}"
    shape = (
        f"{architecture.layers} layers, hidden size {architecture.hidden}, {architecture.heads} heads, "
        f"{run.recipe.data.vocab_size:,} tokens in its vocabulary, sequences of up to {architecture.max_length} tokens"
    )
    lines = [
        f"A transformer encoder of {summary['parameters']:,} parameters (architecture `{architecture.name}`) {how}: "
        f"{shape}."
    ]
    if summary.get("train_seconds") is not None:
        lines.append(
            f"Its budget was {_budget(summary)} on one machine ({summary['device']}); it used "
            f"{duration(summary['train_seconds'])} for {summary['tokens']:,} tokens of {summary['data']['source']}. "
            f"The idea and the rules are those of Cramming ({PAPER}): how far does one GPU come in one day?"
        )
    return "\n\n".join(lines)


def _budget(summary: dict[str, Any]) -> str:
    if summary.get("budget_tokens") is not None:
        return f"{summary['budget_tokens']:,} tokens"
    return f"{summary['budget_seconds'] / 3600:,.4g} hours"


def _results(summary: dict[str, Any]) -> str:
    rows = [
        ("held-out masked-LM loss", summary.get("validation_loss"), "{:.4f} nats"),
        ("held-out accuracy", summary.get("validation_accuracy"), "{:.2%}"),
        ("unigram model's loss on the same rows", summary["data"].get("unigram_loss"), "{:.4f} nats"),
        ("training loss at the end", summary.get("train_loss"), "{:.4f} nats"),
        ("tokens", summary.get("tokens"), "{:,}"),
        ("epochs", summary.get("epochs"), "{:.2f}"),
        ("optimizer steps", summary.get("optimizer_steps"), "{:,}"),
        ("tokens a second", summary.get("tokens_per_second"), "{:,.0f}"),
        ("model FLOPs, of the measured GEMM rate", summary.get("model_flops_utilization"), "{:.1%}"),
    ]
    table = [f"| {label} | {pattern.format(value)} |" for label, value, pattern in rows if value is not None]
    return "\n".join(["## Pretraining", "", "| | |", "|---|---|", *table])


def _glue(run: Run, scores: dict[str, Any]) -> str:
    lines = [
        "## GLUE",
        "",
        f"| | metric | {run.name} | {' | '.join(GLUE.published)} |",
        "|---" * (3 + len(GLUE.published)) + "|",
    ]
    for row, entry in scores["tasks"].items():
        mark = "" if entry["complete"] else "*"
        published = [f"{columns[row]:.1f}" if row in columns else "" for columns in GLUE.published.values()]
        own = f"{100 * entry['median']:.1f}{mark}"
        lines.append(
            f"| {GLUE.rows[row][1].label} | {METRICS[entry['metric']].label} | {own} | {' | '.join(published)} |"
        )
    if scores["mean"] is not None:
        published = [f"{columns['mean']:.1f}" for columns in GLUE.published.values()]
        lines.append(f"| mean | | {100 * scores['mean']:.1f} | {' | '.join(published)} |")
    seeds = max(len(entry["values"]) for entry in scores["tasks"].values())
    recipe = scores["recipe"]
    lines += ["", f"Development sets, in percent, median of {seeds} seeds; fine-tuned by `{recipe['name']}`, "
              f"the same for all tasks: {recipe['epochs']} epochs, learning rate {recipe['learning_rate']:g}, "
              f"batch {recipe['batch_size']}."]  # fmt: skip
    if not all(entry["complete"] for entry in scores["tasks"].values()):
        lines.append("\\* Not the whole official data: not comparable with the published scores.")
    return "\n".join(lines)


def _rules(summary: dict[str, Any]) -> str:
    lines = ["## The rules of Cramming", ""]
    for number, rule in enumerate(summary["rules"], start=1):
        lines.append(f"{number}. **{STATES[rule['kept']]}**: {rule['rule']} ({rule['why']})")
    return "\n".join(lines)


def _loading(run: Run) -> str:
    return f"""## How to load it

Write a folder for `transformers` with `python -m cramming_train.export --run {run.name} --to FOLDER`, then, with the
folder's path or its name on the hub:

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForMaskedLM.from_pretrained("FOLDER")
```

An architecture that no class of `transformers` has is exported with `--custom-code`, and loaded with
`trust_remote_code=True`."""


def _limitations(run: Run, summary: dict[str, Any], scores: dict[str, Any] | None) -> str:
    architecture, clean = run.recipe.architecture, run.recipe.data.clean
    text = {
        "ascii": "It reads lower-case English: its tokenizer lower-cases text and drops what is not ASCII.",
        "unicode": "It reads lower-case text: its tokenizer lower-cases. It knows the languages of its training text.",
    }.get(clean)
    lines = [
        *([text] if text else []),
        f"It has seen sequences of {run.recipe.data.row_length} tokens, and takes at most {architecture.max_length}.",
        "It fills masks and is made to be fine-tuned; it does not generate text.",
        "It was trained on unfiltered text and repeats the errors and prejudices that stand there.",
        *summary["data"]["notices"],
    ]
    missing = [GLUE.rows[row][1].label for row in GLUE.headline if scores is None or row not in scores["tasks"]]
    if missing:
        lines.append(f"It was not evaluated on {', '.join(missing)}.")
    lines.append(f"The licence named above ({LICENSE}) is the training program's: check that the text allows it.")
    return "\n".join(["## Limitations", "", *(f"- {line}" for line in lines)])
