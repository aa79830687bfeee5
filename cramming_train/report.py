"""``python -m cramming_train.report``: a run as one page with its pictures in it, and as a model card."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cramming_train import pictures
from cramming_train.card import model_card
from cramming_train.checkpoint import write_text_atomically
from cramming_train.errors import command
from cramming_train.evaluation.results import glue_scores
from cramming_train.evaluation.suites import GLUE
from cramming_train.page import page
from cramming_train.runs import DEFAULT_RUNS_DIR, Run, find_run
from cramming_train.tracking import effective_events

PAGE, CARD = "report.html", "README.md"


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="python -m cramming_train.report", description=__doc__.split(": ", 1)[1])
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
    """Write RUN/report/report.html, and README.md where the run has ended.

    Returns:
        the page's path; None, with a notice, where matplotlib is not installed.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        print(f"no report: {error.name} is not installed (pip install {error.name})", file=sys.stderr)
        return None
    folder = run.path / "report"
    folder.mkdir(exist_ok=True)
    events = effective_events(run.log)
    scores = glue_scores(run.path)
    if run.summary is not None:
        write_text_atomically(folder / CARD, model_card(run))
    drawn = draw(run, events, scores)
    write_text_atomically(folder / PAGE, page(run, events, drawn, scores))
    return folder / PAGE


def draw(run: Run, events: Sequence[dict[str, Any]], scores: dict[str, Any] | None) -> list[pictures.Picture]:
    """The pictures that the run has numbers for."""
    steps = [event for event in events if event["event"] == "step"]
    validations = [event for event in events if event["event"] == "validation"]
    summary = run.summary
    drawn = []
    if steps:
        unigram = None if summary is None else summary["data"].get("unigram_loss")
        drawn.append(pictures.loss_picture(steps, validations, unigram))
        drawn.append(pictures.schedule_picture(steps))
        drawn.append(pictures.throughput_picture(steps))
        drawn.append(pictures.gradient_picture(steps, run.recipe.training.grad_clip))
    if scores is not None and any(row in scores["tasks"] for row in GLUE.headline):
        drawn.append(pictures.glue_picture(scores, run.name))
    return drawn


if __name__ == "__main__":
    sys.exit(main())
