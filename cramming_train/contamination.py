"""``python -m cramming_train.contamination``: is GLUE in the text that a model is trained on?

The sentences of GLUE are looked for in the training rows (see :mod:`cramming_train.data.overlap`). What is found is
kept beside the rows, or in the run, whose certificate states the third rule by it. It costs no budget and needs no GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cramming_train import report
from cramming_train.certificate import CONTAMINATION_FILE, revise
from cramming_train.checkpoint import write_json_atomically
from cramming_train.data import PreparedData, open_prepared
from cramming_train.data.overlap import SHORTEST, SOURCE, WORDS, Index
from cramming_train.data.progress import Progress
from cramming_train.data.without import write_without
from cramming_train.errors import RunError, UsageError, command
from cramming_train.evaluation.hub import Hub
from cramming_train.evaluation.sources import Folder, Source, load_split, load_train
from cramming_train.evaluation.suites import GLUE
from cramming_train.evaluation.tasks import TRAIN_SPLIT
from cramming_train.runs import DEFAULT_RUNS_DIR, Run, find_run

BLOCK_ROWS = 4096


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m cramming_train.contamination", description=__doc__.split(": ", 1)[1].split("\n\n")[0]
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", help="latest, a run's name, or its path: the rows that it was trained on")
    what.add_argument("--data", type=Path, metavar="PREPARED", help="a folder made by prepare, before any run")
    parser.add_argument("--out", type=Path, default=DEFAULT_RUNS_DIR, help="folder of the runs (default: %(default)s)")
    parser.add_argument("--task-dir", type=Path, help="GLUE as local files TASK/SPLIT.tsv; without it from the hub")
    parser.add_argument("--clean", type=Path, metavar="FOLDER", help="make prepared data there without those rows")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    arguments = build_parser().parse_args(argv)
    source = Folder(arguments.task_dir, GLUE) if arguments.task_dir else Hub(GLUE)
    run = find_run(arguments.run, arguments.out) if arguments.run else None
    prepared = open_prepared(arguments.data) if run is None else _rows_of(run)
    if arguments.clean is not None and arguments.clean.exists():
        raise UsageError(f"--clean {arguments.clean}: exists already; choose another folder")
    found, affected = search(prepared, source)
    print("\n".join(lines(found)))
    path = (prepared.path if run is None else run.path) / CONTAMINATION_FILE
    write_json_atomically(path, found)
    print(f"written to {path}")
    if run is not None and run.summary is not None:  # else the run finds it at its end
        revise(run, contamination=found)
        report.write_report(run)
    if arguments.clean is not None:
        clean = write_without(prepared, affected, arguments.clean, f"that overlap with GLUE ({source.name})")
        write_json_atomically(clean.path / CONTAMINATION_FILE, _of_the_rest(found, clean))
        print(f"without them: {clean.path}, {len(clean.train):,} rows")
    return 0


@dataclass(frozen=True)
class _Column:
    """Texts of one column of one split, numbered ``first`` to ``first + count - 1``."""

    name: str
    first: int
    count: int


def search(prepared: PreparedData, source: Source, *, progress: bool = True) -> tuple[dict[str, Any], np.ndarray]:
    """Look for all sentences of GLUE in the training rows: (what was found, for each row whether it is affected).

    Raises:
        UsageError: as the source says, or it holds nothing of GLUE.
    """
    columns: list[_Column] = []
    lacking: list[str] = []
    shown = Progress(progress)
    with shown.stage("read GLUE", "sentences") as stage:
        texts = _texts(source, columns, lacking, stage.add)
        index = Index(texts, prepared.tokenizer, prepared.metadata["recipe"]["clean"])
    if not columns:
        raise UsageError(f"{source.name}: holds nothing of GLUE to look for")
    rows = prepared.train
    affected = np.zeros(len(rows), dtype=bool)
    with shown.stage("look for it", "rows", total=len(rows)) as stage:
        for first in range(0, len(rows), BLOCK_ROWS):
            block = rows.read(first, min(first + BLOCK_ROWS, len(rows)))
            affected[first : first + len(block)] = index.look_in(block)
            stage.add(len(block))
    overlapping = index.overlapping()
    sets: dict[str, dict[str, int]] = {}
    for column in columns:
        entry = sets.setdefault(column.name, {"sentences": 0, "checked": 0, "overlapping": 0})
        part = slice(column.first, column.first + column.count)
        entry["sentences"] += column.count
        entry["checked"] += int(index.checked[part].sum())
        entry["overlapping"] += int(overlapping[part].sum())
    return {
        "words": WORDS,
        "shortest": SHORTEST,
        "method": SOURCE,
        "glue": source.name,
        "fingerprint": prepared.metadata["fingerprint"],
        "rows": len(rows),
        "rows_affected": int(affected.sum()),
        "sentences": sum(entry["sentences"] for entry in sets.values()),
        "checked": int(index.checked.sum()),
        "overlapping": int(overlapping.sum()),
        "sets": sets,
        "not_given": lacking,
    }, affected


def _texts(source: Source, columns: list[_Column], lacking: list[str], count) -> Iterator[str]:
    """All texts of all splits. A split that is missing, or not whole, of a task of the headline is noted as lacking."""
    first = 0
    for task in GLUE.tasks.values():
        examples = [(TRAIN_SPLIT, task.train_rows, load_train(source, task, None)[0])]
        examples += [(split.name, split.rows, load_split(source, task, split, labelled=True)) for split in task.splits]
        for split, official, found in examples:
            given = 0 if found is None else len(found)
            if given < official and any(row in GLUE.headline for row in task.rows):
                lacking.append(f"{task.name} {split}" + (f" ({given:,} of {official:,} rows)" if given else ""))
            for texts in () if found is None else zip(*found.sequences, strict=True):
                columns.append(_Column(f"{task.name} {split}", first, len(texts)))
                yield from texts
                first += len(texts)
                count(len(texts))


def lines(found: dict[str, Any]) -> list[str]:
    """What was found, for a person."""
    width = max(map(len, found["sets"]))
    shown = [f"{'':{width}}  sentences  {found['shortest']} words or more  overlapping"]
    for name, entry in found["sets"].items():
        shown.append(f"{name:{width}}  {entry['sentences']:9,}  {entry['checked']:15,}  {entry['overlapping']:11,}")
    shown += [f"not given: {name}" for name in found["not_given"]]
    shown.append(
        f"{found['overlapping']:,} of {found['checked']:,} sentences overlap "
        f"with {found['rows_affected']:,} of {found['rows']:,} rows"
    )
    return shown


def _rows_of(run: Run) -> PreparedData:
    prepared = run.prepared()
    if prepared.metadata["fingerprint"] != run.settings["data"]["fingerprint"]:
        raise RunError(f"{prepared.path}: no longer the rows that {run.name} was trained on")
    return prepared


def _of_the_rest(found: dict[str, Any], clean: PreparedData) -> dict[str, Any]:
    """The same search in the rows that were kept: each one of them holds nothing that was looked for."""
    none = {"overlapping": 0, "rows_affected": 0, "rows": len(clean.train)}
    sets = {name: {**entry, "overlapping": 0} for name, entry in found["sets"].items()}
    return {**found, **none, "sets": sets, "fingerprint": clean.metadata["fingerprint"]}


if __name__ == "__main__":
    sys.exit(main())
