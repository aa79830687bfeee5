"""python -m cramming_train.evaluate: judge a run on GLUE, or by its held-out masked-LM loss."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from cramming_train import report
from cramming_train.certificate import revise
from cramming_train.data import open_prepared
from cramming_train.errors import UsageError, command
from cramming_train.glue.hub import Hub
from cramming_train.glue.reading import Folder
from cramming_train.glue.results import EVALUATION_FOLDER, Scores, write_json
from cramming_train.glue.subject import Subject, TextPipeline, pretrained_subject, random_subject
from cramming_train.glue.suite import load_tasks, run_glue
from cramming_train.glue.table import comparison_lines, recipe_lines, score_lines, summary_lines
from cramming_train.glue.tasks import DEFAULT_TASKS, TASKS
from cramming_train.precision import Precision
from cramming_train.recipes import Evaluation, Recipe, apply_overrides, default_recipe, get_recipe
from cramming_train.runs import DEFAULT_RUNS_DIR, Run, find_run, list_runs
from cramming_train.validation import held_out_loss

NO_RUN = "none"
MAX_EPOCHS = 5  # of the fifth rule


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m cramming_train.evaluate", description=__doc__.partition(": ")[2])
    add = parser.add_argument
    add(
        "--run",
        default="latest",
        help="latest, a run's name or folder, or 'none': no pretraining, as the floor",
    )
    add("--out", type=Path, default=DEFAULT_RUNS_DIR, help="folder of the runs (default: %(default)s)")
    add(
        "--suite",
        choices=("glue", "mlm"),
        default="glue",
        help="fine-tuning on GLUE, or the held-out masked-LM loss",
    )
    add(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help=f"GLUE tasks (default: {' '.join(DEFAULT_TASKS)}; also: wnli)",
    )
    add("--glue-dir", type=Path, help="local files TASK/SPLIT.tsv[.gz]; without it GLUE comes from the hub")
    add("--seeds", type=int, help="fine-tunings a task, whose median counts (default: the recipe's)")
    add("--epochs", type=int, help="epochs of fine-tuning (default: the recipe's)")
    add("--device", help="such as cpu or cuda (default: cuda where there is one)")
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="other changes of the evaluation recipe",
    )
    add("--recipe", help="with --run none: whose architecture (default: the latest run's)")
    add(
        "--data",
        type=Path,
        help="with --run none: prepared data whose tokenizer to use (default: the latest run's)",
    )
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    arguments = build_parser().parse_args(argv)
    device = pick_device(arguments.device)
    if arguments.run != NO_RUN and (arguments.recipe or arguments.data):
        raise UsageError("--recipe and --data go with --run none; a run brings its own")
    if arguments.suite == "mlm":
        return evaluate_mlm(arguments, device)
    return evaluate_glue(arguments, device)


def evaluate_glue(arguments: argparse.Namespace, device: torch.device) -> int:
    """Fine-tune, score, print the table."""
    names = parse_tasks(arguments.tasks)
    source = Folder(arguments.glue_dir) if arguments.glue_dir else Hub()
    subject, recipe, folder = find_subject(arguments, device)
    settings = recipe.evaluation
    precision = Precision(recipe.training.precision, device).name
    print(f"GLUE for {subject.name}, on {device} in {precision}, from {source.name}")
    print("\n".join(recipe_lines(settings)), flush=True)
    tasks = load_tasks(subject.text, source, names, settings.max_length, print)
    scores = run_glue(subject, tasks, settings, folder=folder, device=device, precision=precision)
    for block in (score_lines(scores), comparison_lines(subject.name, scores), summary_lines(scores)):
        print("\n" + "\n".join(block))
    print(f"written to {folder}")
    if arguments.run != NO_RUN:
        run = Run(folder.parent)
        kept, why = judgement(scores, settings)
        revise(run, judged={"kept": kept, "why": why})
        page = report.write_report(run)
        if page is not None:
            print(f"report: {page}")
    return 0


def judgement(scores: Scores, settings: Evaluation) -> tuple[bool | None, str]:
    """Whether the fifth rule of cramming is kept, None where that is open, and why."""
    if settings.epochs > MAX_EPOCHS:
        return False, f"{settings.epochs} epochs of fine-tuning, more than {MAX_EPOCHS}"
    if scores.mean is None:
        lacking = [f"missing: {', '.join(scores.missing)}"] if scores.missing else []
        lacking += [f"incomplete data: {', '.join(scores.incomplete)}"] if scores.incomplete else []
        return None, f"judged on {', '.join(scores.rows)}; " + "; ".join(lacking or ["seeds are lacking"])
    return True, f"GLUE mean {100 * scores.mean:.1f}: recipe {settings.name}, {settings.epochs} epochs"


def find_subject(arguments: argparse.Namespace, device: torch.device) -> tuple[Subject, Recipe, Path]:
    """What to judge, the recipe with the changes asked for, and the folder of the results.

    Without pretraining there still has to be a tokenizer: that of ``--data``, otherwise that of the latest
    run, whose architecture it is then too unless ``--recipe`` names another.
    """
    if arguments.run != NO_RUN:
        run = find_run(arguments.run, arguments.out)
        recipe = changed(run.recipe, arguments)
        if dataclasses.replace(recipe, evaluation=run.recipe.evaluation) != run.recipe:
            raise UsageError("--set: the run is as it was trained; only evaluation and its fields can be changed now")
        return pretrained_subject(run, recipe.evaluation), recipe, run.path / EVALUATION_FOLDER
    if arguments.data:
        prepared = open_prepared(arguments.data)
        text = TextPipeline(prepared.metadata["recipe"]["clean"], prepared.tokenizer)
        recipe = get_recipe(arguments.recipe or default_recipe(device.type))
    else:
        runs = list_runs(arguments.out)
        if not runs:
            raise UsageError(f"--run none needs a tokenizer: give --data PREPARED (no run in {arguments.out} has one)")
        text = TextPipeline(runs[0].recipe.data.clean, runs[0].tokenizer())
        recipe = get_recipe(arguments.recipe) if arguments.recipe else runs[0].recipe
    recipe = changed(recipe, arguments)
    return (
        random_subject(recipe.architecture, text, recipe.evaluation),
        recipe,
        arguments.out / NO_RUN / EVALUATION_FOLDER,
    )


def changed(recipe: Recipe, arguments: argparse.Namespace) -> Recipe:
    """The recipe with --set, --seeds and --epochs."""
    short = {"evaluation.seeds": arguments.seeds, "evaluation.epochs": arguments.epochs}
    changes = [f"{key}={value}" for key, value in short.items() if value is not None]
    return apply_overrides(recipe, [*arguments.set, *changes])


def evaluate_mlm(arguments: argparse.Namespace, device: torch.device) -> int:
    """Held-out masked-LM loss of a run on its own validation rows."""
    if arguments.run == NO_RUN:
        raise UsageError("--suite mlm judges a trained run; --run none goes with --suite glue")
    run = find_run(arguments.run, arguments.out)
    dtype = Precision(run.recipe.training.precision, device).dtype
    model = run.load_model(device)
    result = held_out_loss(model, run.prepared().validation, device=device, autocast_dtype=dtype)
    path = write_json(run.path / EVALUATION_FOLDER / "mlm.json", {"suite": "mlm", "run": run.name, **result})
    print(
        f"{run.name}: held-out masked-LM loss {result['loss']:.4f} nats, "
        f"accuracy {100 * result['accuracy']:.2f} % "
        f"over {result['tokens']} masked tokens (15 %; 80 / 10 / 10; fixed masks)"
    )
    print(f"written to {path}")
    return 0


def parse_tasks(asked: Sequence[str] | None) -> list[str]:
    """Task names, each once, in the order given; UsageError for an unknown one."""
    for name in asked or ():
        if name not in TASKS:
            raise UsageError(f"--tasks {name}: no such task; known: {', '.join(TASKS)}")
    return list(dict.fromkeys(asked or DEFAULT_TASKS))


def pick_device(name: str | None) -> torch.device:
    """The device asked for, or the best there is; UsageError where it is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UsageError(f"--device {name}: not available here; want cpu, or cuda with a GPU") from None
    return device


if __name__ == "__main__":
    sys.exit(main())
