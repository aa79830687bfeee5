"""``python -m cramming_train.prepare``: turn text into rows of tokens, ready to train on.

Pretraining does the same by itself; preparing first is for large corpora, or to train on one machine what another
prepared.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cramming_train.data.prepare import AUTO, default_cache_dir, prepare_data
from cramming_train.errors import UsageError, command
from cramming_train.recipes import DEFAULT_RECIPE, apply_overrides, get_recipe
from cramming_train.signals import terminate_by_exception


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="python -m cramming_train.prepare", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--data", nargs="+", default=[AUTO], metavar="SOURCE",
        help="text files (.txt .jsonl .csv .parquet, plain, .gz or .zst), folders, globs, hub data sets "
        "(name or name:config), ready-made token rows, 'embedded', or 'auto' (default)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="make this folder (default: one in the cache)")
    parser.add_argument("--recipe", help="bundle whose data recipe is used (default: pretrain's)")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--text-column", default="text", help="column of .jsonl, .csv, .parquet and hub sources")
    parser.add_argument("--processes", type=int, help="worker processes (default: one a core)")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    arguments = build_parser().parse_args(argv)
    if arguments.processes is not None and arguments.processes < 1:
        raise UsageError(f"--processes: got {arguments.processes}, want at least 1")
    recipe = apply_overrides(get_recipe(arguments.recipe or DEFAULT_RECIPE), arguments.overrides).data
    print(json.dumps({"data": dataclasses.asdict(recipe)}, indent=2))
    with terminate_by_exception():
        prepared = prepare_data(
            arguments.data,
            recipe,
            cache_dir=default_cache_dir(),
            out=arguments.out,
            text_column=arguments.text_column,
            processes=arguments.processes,
        )
    shown = ("source", "documents", "characters_read", "characters_dropped", "repeats_cut", "characters_cut",
             "documents_filtered", "rows", "validation_rows", "tokens", "unigram_loss")  # fmt: skip
    for key in shown:
        if key in prepared.metadata:
            value = prepared.metadata[key]
            print(f"{key:<20} {value:,}" if isinstance(value, int) else f"{key:<20} {value}")
    print(f"prepared: {prepared.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
