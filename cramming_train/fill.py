"""``python -m cramming_train.fill --run R "Paris is the <mask> of France."``: what a model puts for each <mask>."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cramming_train.errors import UsageError, command
from cramming_train.language_model import LanguageModel
from cramming_train.runs import DEFAULT_RUNS_DIR, find_run


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="python -m cramming_train.fill", description=__doc__.partition(": ")[2])
    parser.add_argument("text", help="the text, with one or more <mask>")
    parser.add_argument("--run", default="latest", help="latest, a run's name, or its path")
    parser.add_argument("--out", type=Path, default=DEFAULT_RUNS_DIR, help="folder of runs (default ./runs)")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="predictions for each mask (default 5)")
    parser.add_argument("--json", action="store_true", help="print JSON: for each mask a list of predictions")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    arguments = build_parser().parse_args(argv)
    if arguments.top < 1:
        raise UsageError(f"--top {arguments.top}: want a positive number")
    masks = LanguageModel(find_run(arguments.run, arguments.out)).fill(arguments.text, arguments.top)
    if arguments.json:
        print(json.dumps([[prediction._asdict() for prediction in predictions] for predictions in masks]))
        return 0
    for number, predictions in enumerate(masks, start=1):
        if len(masks) > 1:
            print(f"<mask> {number}")
        for prediction in predictions:
            print(f"{prediction.probability:7.2%}  {prediction.token}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
