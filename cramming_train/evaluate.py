"""python -m cramming_train.evaluate: judge a run on GLUE or other suites, a task of yours, or by its loss on text."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from cramming_train import report
from cramming_train.allocator import keep_freed_memory
from cramming_train.certificate import revise
from cramming_train.data import open_prepared
from cramming_train.errors import UsageError, command
from cramming_train.evaluation.finetune import TaskData
from cramming_train.evaluation.hub import Hub
from cramming_train.evaluation.metrics import METRICS
from cramming_train.evaluation.own_task import Files, own_suite
from cramming_train.evaluation.results import EVALUATION_FOLDER, Scores, write_json
from cramming_train.evaluation.runner import Keeper, load_tasks, run_suite
from cramming_train.evaluation.saved import BestModel
from cramming_train.evaluation.sources import Folder, Source
from cramming_train.evaluation.subject import Subject, TextPipeline, pretrained_subject, random_subject
from cramming_train.evaluation.submission import Submission
from cramming_train.evaluation.suites import GLUE, SUITES
from cramming_train.evaluation.table import comparison_lines, recipe_lines, score_lines, summary_lines
from cramming_train.evaluation.tasks import Suite, Task
from cramming_train.evaluation.text_loss import text_loss
from cramming_train.precision import Precision
from cramming_train.recipes import Evaluation, Recipe, apply_overrides, get_recipe
from cramming_train.runs import DEFAULT_RUNS_DIR, Run, find_run, list_runs
from cramming_train.signals import terminate_by_exception
from cramming_train.validation import held_out_loss

NO_RUN, MLM = "none", "mlm"
OF_NO_RUN = "cram-mini"  # the architecture where no run names one
MAX_EPOCHS = 5  # of the fifth rule
OWN_TASK_OPTIONS = ("label_column", "metric")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m cramming_train.evaluate", description=__doc__.partition(": ")[2])
    add = parser.add_argument
    add("--run", default="latest",
        help="latest, a run's name or folder, or 'none': no pretraining, as the floor")  # fmt: skip
    add("--out", type=Path, default=DEFAULT_RUNS_DIR, help="folder of the runs (default: %(default)s)")
    add(
        "--suite", choices=(*SUITES, MLM), help="tasks to fine-tune on (default: glue), or mlm: held-out masked-LM loss"
    )
    add("--tasks", nargs="+", metavar="TASK", help="some tasks of the suite (default: all; of GLUE all but wnli)")
    add("--task-dir", type=Path, metavar="DIR",
        help="local files DIR/TASK/SPLIT, .tsv, .csv or .jsonl, plain or .gz (default: the hub)")  # fmt: skip
    add("--task-files", nargs=2, type=Path, metavar=("TRAIN", "VALID"),
        help="a task of your own from two such files; its model is kept, for cramming_train.predict")  # fmt: skip
    add("--text-columns", metavar="A[,B]", help="columns with the text, of --task-files or --data (default: text)")
    add("--label-column", metavar="Y", help="column with the label, of --task-files (default: label)")
    add("--metric", help="of --task-files (default: accuracy; pearson where labels are numbers with a decimal point)")
    add("--seeds", type=int, help="fine-tunings a task, whose median counts (default: the recipe's)")
    add("--epochs", type=int, help="epochs of fine-tuning (default: the recipe's)")
    add("--max-train-rows", type=int, metavar="N", help="train on N rows of each task at most: quick, not comparable")
    add("--predict-test", action="store_true", help="also write predictions of GLUE's test sets, for its server")
    add("--device", help="such as cpu or cuda (default: cuda where there is one)")
    add("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="other changes of the evaluation recipe")  # fmt: skip
    add(
        "--recipe",
        help="with --run none: whose architecture (default: the latest run's; with --data that of cram-mini)",
    )
    add("--data", nargs="+", metavar="PATH",
        help="with --suite mlm: text files to judge on (default: the run's held-out rows); with --run none: prepared "
        "data whose tokenizer to use (default: the latest run's)")  # fmt: skip
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    arguments = build_parser().parse_args(argv)
    device = pick_device(arguments.device)
    check_combinations(arguments)
    keep_freed_memory()
    with terminate_by_exception():
        if arguments.suite == MLM:
            return evaluate_mlm(arguments, device)
        if arguments.task_files:
            return evaluate_own_task(arguments, device)
        return evaluate_suite(arguments, device)


def check_combinations(arguments: argparse.Namespace) -> None:
    """UsageError where options do not go together."""
    mlm, own = arguments.suite == MLM, bool(arguments.task_files)
    if mlm and arguments.run == NO_RUN:
        raise UsageError("--suite mlm judges a trained run; --run none goes with fine-tuning")
    if arguments.run != NO_RUN and (arguments.recipe or (arguments.data and not mlm)):
        raise UsageError("--recipe and --data go with --run none (--data with --suite mlm, too); a run brings its own")
    if own and (arguments.suite or arguments.task_dir or arguments.tasks):
        raise UsageError("--task-files is a task of its own; leave out --suite, --tasks and --task-dir")
    if mlm and (arguments.task_dir or arguments.tasks):
        raise UsageError("--suite mlm has no tasks; leave out --tasks and --task-dir, and give text with --data")
    for option in OWN_TASK_OPTIONS:
        if getattr(arguments, option) and not own:
            raise UsageError(f"--{option.replace('_', '-')} goes with --task-files")
    if arguments.text_columns and not own and not (mlm and arguments.data):
        raise UsageError("--text-columns goes with --task-files, or with --suite mlm --data")
    if arguments.predict_test and (own or arguments.suite not in (None, GLUE.name)):
        raise UsageError("--predict-test writes what GLUE's server takes; it goes with --suite glue alone")


def evaluate_suite(arguments: argparse.Namespace, device: torch.device) -> int:
    """Fine-tune on a suite of tasks, score, print the tables."""
    suite = SUITES[arguments.suite or GLUE.name]
    names = parse_tasks(suite, arguments.tasks, everything=arguments.predict_test)
    tasks = [suite.tasks[name] for name in names]
    source = Folder(arguments.task_dir, suite) if arguments.task_dir else Hub(suite)
    subject, recipe, folder = find_subject(arguments, device, suite)
    submission = Submission(folder) if arguments.predict_test else None
    data, scores = fine_tune_all(subject, recipe, suite, tasks, source, folder, device, submission)
    print_scores(suite, recipe.evaluation, scores)
    if submission is not None:
        print("\n" + "\n".join(submission.write(suite, data, scores)))
    print(f"written to {folder}")
    if arguments.run != NO_RUN and suite is GLUE:
        run = Run(folder.parent)
        kept, why = judgement(scores, recipe.evaluation)
        revise(run, judged={"kept": kept, "why": why})
        page = report.write_report(run)
        if page is not None:
            print(f"report: {page}")
    return 0


def evaluate_own_task(arguments: argparse.Namespace, device: torch.device) -> int:
    """Fine-tune on a task from two files, score, keep the best model."""
    train, validation = arguments.task_files
    columns = split_columns(arguments.text_columns)
    suite = own_suite(train, columns, arguments.label_column or "label", arguments.metric)
    (task,) = suite.tasks.values()
    subject, recipe, folder = find_subject(arguments, device, suite)
    folder = folder / task.name
    kind = f"{len(task.labels)} classes" if task.labels else "regression"
    print(f"task {task.name}: {kind}, {METRICS[task.metrics[0]].label}, from {', '.join(columns)}")
    keeper = BestModel(folder, subject, recipe.evaluation)
    _, scores = fine_tune_all(subject, recipe, suite, [task], Files(train, validation), folder, device, keeper)
    print_scores(suite, recipe.evaluation, scores)
    print(
        f"written to {folder}, with the model of the best seed: python -m cramming_train.predict --model {folder} FILE"
    )
    return 0


def fine_tune_all(
    subject: Subject, recipe: Recipe, suite: Suite, tasks: Sequence[Task], source: Source, folder: Path,
    device: torch.device, keeper: Keeper | None,
) -> tuple[list[TaskData], Scores]:  # fmt: skip
    """Print what is going to be done, load the tasks, and do it."""
    settings = recipe.evaluation
    precision = Precision(recipe.training.precision, device).name
    print(f"{suite.title} for {subject.name}, on {device} in {precision}, from {source.name}")
    print("\n".join(recipe_lines(settings, tasks)), flush=True)
    data = load_tasks(subject.text, source, tasks, settings, print, with_tests=isinstance(keeper, Submission))
    scores = run_suite(subject, suite, data, settings, folder=folder, device=device, precision=precision, keeper=keeper)
    return data, scores


def print_scores(suite: Suite, settings: Evaluation, scores: Scores) -> None:
    """The tables, and the headline in words."""
    blocks = [score_lines(suite, scores), summary_lines(suite, scores, settings.name)]
    if suite.published:
        blocks.insert(1, comparison_lines(suite, scores))
    for block in filter(None, blocks):
        print("\n" + "\n".join(block))


def judgement(scores: Scores, settings: Evaluation) -> tuple[bool | None, str]:
    """Whether the fifth rule of cramming is kept, None where that is open, and why."""
    if settings.epochs > MAX_EPOCHS:
        return False, f"{settings.epochs} epochs of fine-tuning, more than {MAX_EPOCHS}"
    if scores.mean is None:
        lacking = [f"missing: {', '.join(scores.missing)}"] if scores.missing else []
        lacking += [f"incomplete data: {', '.join(scores.incomplete)}"] if scores.incomplete else []
        return None, f"judged on {', '.join(scores.rows)}; " + "; ".join(lacking or ["seeds are lacking"])
    return True, f"GLUE mean {100 * scores.mean:.1f}: recipe {settings.name}, {settings.epochs} epochs"


def find_subject(arguments: argparse.Namespace, device: torch.device, suite: Suite) -> tuple[Subject, Recipe, Path]:
    """What to judge, the recipe with the changes asked for, and the folder of the results.

    Without pretraining there still has to be a tokenizer: that of ``--data``, otherwise that of the latest
    run, whose architecture it is then too unless ``--recipe`` names another.
    """
    if arguments.run != NO_RUN:
        run = find_run(arguments.run, arguments.out)
        recipe = changed(run.recipe, arguments, suite)
        if dataclasses.replace(recipe, evaluation=run.recipe.evaluation) != run.recipe:
            raise UsageError("--set: the run is as it was trained; only evaluation and its fields can be changed now")
        return pretrained_subject(run, recipe.evaluation), recipe, run.path / EVALUATION_FOLDER
    if arguments.data:
        if len(arguments.data) > 1:
            raise UsageError("--data: with --run none give one folder of prepared data")
        prepared = open_prepared(Path(arguments.data[0]))
        text = TextPipeline(prepared.metadata["recipe"]["clean"], prepared.tokenizer)
        recipe = get_recipe(arguments.recipe or OF_NO_RUN)
    else:
        runs = list_runs(arguments.out)
        if not runs:
            raise UsageError(f"--run none needs a tokenizer: give --data PREPARED (no run in {arguments.out} has one)")
        text = TextPipeline(runs[0].recipe.data.clean, runs[0].tokenizer())
        recipe = get_recipe(arguments.recipe) if arguments.recipe else runs[0].recipe
    recipe = changed(recipe, arguments, suite)
    return (
        random_subject(recipe.architecture, text, recipe.evaluation),
        recipe,
        arguments.out / NO_RUN / EVALUATION_FOLDER,
    )


def changed(recipe: Recipe, arguments: argparse.Namespace, suite: Suite) -> Recipe:
    """The recipe with the suite's evaluation, --set, --seeds, --epochs and --max-train-rows."""
    own = [f"evaluation={suite.recipe}"] if suite.recipe else []
    short = {
        "evaluation.seeds": arguments.seeds,
        "evaluation.epochs": arguments.epochs,
        "evaluation.max_train_rows": arguments.max_train_rows,
    }
    changes = [f"{key}={value}" for key, value in short.items() if value is not None]
    return apply_overrides(recipe, [*own, *arguments.set, *changes])


def evaluate_mlm(arguments: argparse.Namespace, device: torch.device) -> int:
    """Held-out masked-LM loss of a run, on its own validation rows or on text files."""
    run = find_run(arguments.run, arguments.out)
    if arguments.data:
        columns = split_columns(arguments.text_columns)
        if len(columns) > 1:
            raise UsageError("--text-columns: with --suite mlm give one column")
        result, file = text_loss(run, arguments.data, columns[0], device), "mlm-text.json"
    else:
        dtype = Precision(run.recipe.training.precision, device).dtype
        model = run.load_model(device)
        result = held_out_loss(model, run.prepared().validation, device=device, autocast_dtype=dtype)
        file = "mlm.json"
    path = write_json(run.path / EVALUATION_FOLDER / file, {"suite": MLM, "run": run.name, **result})
    bits = f", {result['bits_per_character']:.3f} bits per character" if arguments.data else ""
    print(
        f"{run.name}: held-out masked-LM loss {result['loss']:.4f} nats per token{bits}, "
        f"accuracy {100 * result['accuracy']:.2f} % "
        f"over {result['tokens']} masked tokens (15 %; 80 / 10 / 10; fixed masks)"
    )
    print(f"written to {path}")
    return 0


def split_columns(text: str | None) -> list[str]:
    """Names of columns from A,B."""
    columns = [column.strip() for column in (text or "text").split(",")]
    if not all(columns):
        raise UsageError(f"--text-columns {text}: want names, such as premise,hypothesis")
    return columns


def parse_tasks(suite: Suite, asked: Sequence[str] | None, *, everything: bool) -> list[str]:
    """Task names, each once, in the order given; a row of the score table stands for its task.

    Raises:
        UsageError: an unknown one.
    """
    names = []
    for name in asked or (suite.tasks if everything else suite.default_tasks):
        if name not in suite.tasks and name not in suite.rows:
            known = ", ".join(dict.fromkeys([*suite.tasks, *suite.rows]))
            raise UsageError(f"--tasks {name}: no such task in {suite.title}; known: {known}")
        names.append(name if name in suite.tasks else suite.rows[name][0].name)
    return list(dict.fromkeys(names))


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
