"""Preparing data: from what the user names to a prepared folder, made once and found again by its configuration."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cramming_train.data import embedded, hub, ready_rows
from cramming_train.data.files import (
    estimated_characters,
    find_files,
    is_local,
    is_validation_file,
    read_documents,
)
from cramming_train.data.parallel import Workers
from cramming_train.data.pipeline import RawDocument, drop_notice, run_pipeline
from cramming_train.data.progress import Progress
from cramming_train.data.store import FORMAT, PreparedData, is_prepared, open_prepared, write_metadata
from cramming_train.display import fitted
from cramming_train.errors import RunError, UsageError
from cramming_train.recipes import Data

AUTO = "auto"
DISK_BYTES_A_CHARACTER = 3.0  # spool, rows, sorted rows: measured 2.6
CPU_HUB_ROWS = 200_000  # of the hosted rows where no GPU will train on them


def default_cache_dir() -> Path:
    """$CRAMMING_CACHE, or ~/.cache/cramming_train."""
    return Path(os.environ.get("CRAMMING_CACHE") or "~/.cache/cramming_train").expanduser()


def prepare_data(
    sources: Sequence[str],
    recipe: Data,
    *,
    cache_dir: Path | None = None,
    out: Path | None = None,
    device_type: str = "cpu",
    text_column: str = "text",
    processes: int | None = None,
    progress: bool = True,
) -> PreparedData:
    """Prepare data, or open what was prepared before from the same sources by the same recipe.

    Args:
        sources: files, folders, globs, hub names, "embedded", "auto", or one prepared folder.
        recipe: the data recipe.
        cache_dir: where prepared folders are kept; :func:`default_cache_dir` by default.
        out: make this folder instead of one in the cache.
        device_type: what will train on it; "auto" takes fewer hosted rows for a CPU.

    Raises:
        UsageError, RunError: as the readers say; nothing is left behind that looks finished.
    """
    cache_dir = cache_dir or default_cache_dir()
    report = Progress(progress)
    if len(sources) == 1 and is_prepared(Path(sources[0]).expanduser()):
        if out is not None:
            raise UsageError(f"--out {out}: {sources[0]} is prepared already; copy the folder, or leave out --out")
        return _checked(open_prepared(Path(sources[0]).expanduser()), recipe)
    if not sources:
        raise UsageError("--data: no source given")
    if list(sources) == [AUTO]:
        return _prepare_auto(recipe, cache_dir, out, device_type, processes, report)
    if AUTO in sources:
        raise UsageError("--data auto: cannot be mixed with other sources")
    return _prepare(list(sources), recipe, cache_dir, out, text_column, processes, report, notices=[])


def _prepare_auto(recipe: Data, cache_dir: Path, out: Path | None, device_type: str, processes, report) -> PreparedData:
    """The cache's newest real data of this recipe, else the hub, else the embedded text with a loud notice."""
    if out is None and (cached := _newest_cached(recipe, cache_dir)) is not None:
        return cached
    obstacle = hub.hub_obstacle()
    if obstacle is None and (recipe.vocab_size, recipe.row_length) != (
        hub.PILE_VOCAB_SIZE,
        hub.PILE_ROW_LENGTH,
    ):
        obstacle = f"the hosted rows have {hub.PILE_ROW_LENGTH} tokens of a vocabulary of {hub.PILE_VOCAB_SIZE}"
    if obstacle is None:
        limited = recipe
        if device_type != "cuda" and recipe.max_rows is None:
            limited = dataclasses.replace(recipe, max_rows=CPU_HUB_ROWS)
        try:
            return _prepare([hub.PILE_ROWS], limited, cache_dir, out, "text", processes, report, notices=[])
        except RunError as error:
            obstacle = str(error)
    notices = [f"--data auto: the hub is not available ({obstacle})", embedded.NOTICE]
    return _prepare([embedded.SOURCE], recipe, cache_dir, out, "text", processes, report, notices)


def _newest_cached(recipe: Data, cache_dir: Path) -> PreparedData | None:
    found = []
    for path in cache_dir.glob("prepared-*"):
        try:
            prepared = open_prepared(path)
        except (UsageError, RunError):
            continue
        made_by = prepared.metadata["recipe"]
        wanted = dataclasses.asdict(recipe)
        same = all(made_by.get(key) == value for key, value in wanted.items() if key not in ("name", "max_rows"))
        if same and prepared.metadata["source_kind"] != embedded.SOURCE:
            found.append((path.stat().st_mtime, prepared))
    return max(found, key=lambda item: item[0])[1] if found else None


def _prepare(sources, recipe, cache_dir, out, text_column, processes, report, notices) -> PreparedData:
    plan = [_identify(source, alone=len(sources) == 1) for source in sources]
    key = _key(plan, recipe, text_column)
    target = out if out is not None else cache_dir / f"prepared-{key}"
    if is_prepared(target):
        prepared = open_prepared(target)
        if prepared.metadata["key"] == key:
            return prepared
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target}: exists and is not this prepared data; remove it or choose another --out")
    for notice in notices:
        print(fitted(f"NOTICE: {notice}", sys.stderr), file=sys.stderr, flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_scratch_of_the_dead(target.parent)
    _check_disk(plan, target.parent)
    scratch = Path(tempfile.mkdtemp(prefix=".preparing-", dir=target.parent))
    try:
        lock = open(scratch / "lock", "w")  # held while this process lives
        fcntl.flock(lock, fcntl.LOCK_EX)
        result, work = scratch / "result", scratch / "work"
        result.mkdir()
        work.mkdir()
        metadata = _run(plan, recipe, text_column, processes, report, result, work)
        notice = drop_notice(metadata, recipe.clean) if "characters_dropped" in metadata else None
        if notice:
            print(fitted(f"NOTICE: {notice}", sys.stderr), file=sys.stderr, flush=True)
        write_metadata(
            result,
            {
                **_description(sources, plan, recipe, key, [*notices, *([notice] if notice else [])]),
                **metadata,
            },
        )
        _put(result, target, key)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return open_prepared(target)


def _remove_scratch_of_the_dead(folder: Path) -> None:
    """Scratch folders whose process was killed; they are as large as the corpus."""
    for lock in folder.glob(".preparing-*/lock"):
        with contextlib.suppress(OSError), open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where the process lives
            shutil.rmtree(lock.parent, ignore_errors=True)


def _put(result: Path, target: Path, key: str) -> None:
    """Move a finished folder to its place; what another process has put there meanwhile stands."""
    try:
        result.rename(target)  # replaces an empty folder
    except OSError:
        if not (is_prepared(target) and open_prepared(target).metadata["key"] == key):
            raise


def _run(plan, recipe: Data, text_column: str, processes, report: Progress, result: Path, work: Path) -> dict[str, Any]:
    if plan[0]["kind"] in ("rows", "hub"):
        ready = (
            ready_rows.open_local(Path(plan[0]["path"]))
            if plan[0]["kind"] == "rows"
            else ready_rows.open_hub(plan[0]["source"])
        )
        if ready is not None:
            if len(plan) > 1:
                raise UsageError(f"{plan[0]['source']}: ready-made rows cannot be mixed with other sources")
            metadata = ready_rows.store_rows(*ready, plan[0]["source"], recipe, result, work, report)
            return {"source_kind": "rows", **metadata}
    with Workers(processes) as workers:
        kind = plan[0]["kind"] if len(plan) == 1 else "mixture"
        metadata = run_pipeline(
            _documents(plan, text_column), recipe, result, work, workers, report,
            has_validation=any(file["held_out"] for entry in plan for file in entry.get("files", [])),
        )  # fmt: skip
    return {"source_kind": kind, **metadata}


def _identify(source: str, alone: bool = True) -> dict[str, Any]:
    """What a source is, and what tells it from another version of itself."""
    if source == embedded.SOURCE:
        return {"kind": embedded.SOURCE, "source": source, "python": sys.version, "prefix": sys.prefix}
    path = Path(source).expanduser()
    if is_prepared(path):
        raise UsageError(f"{source}: prepared data cannot be mixed with other sources")
    if not is_local(source):
        return {"kind": "hub", "source": source}
    if path.exists() and ready_rows.local_rows(path):
        files = sorted(p for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file())
        return {
            "kind": "rows",
            "source": source,
            "path": str(path.resolve()),
            "files": [_file(p, False) for p in files],
        }
    files = find_files(source)
    # a lone file is what the user asked for, whatever its name; a shell turns folder/* into a list of files
    in_folder = not (alone and len(files) == 1 and files[0] == path)
    return {
        "kind": "files",
        "source": source,
        "files": [_file(p, in_folder and is_validation_file(p)) for p in files],
    }


def _file(path: Path, held_out: bool) -> dict[str, Any]:
    stat = path.stat()
    return {
        "path": str(path.resolve()),
        "bytes": stat.st_size,
        "modified": stat.st_mtime_ns,
        "held_out": held_out,
    }


def _documents(plan: list[dict[str, Any]], text_column: str) -> Iterator[RawDocument]:
    for entry in plan:
        if entry["kind"] == embedded.SOURCE:
            texts = embedded.read_embedded()
            yield from (RawDocument(text, False) for text in texts)
        elif entry["kind"] == "hub":
            stream = hub.open_stream(entry["source"])
            texts = hub.read_text_stream(stream, entry["source"], text_column)
            yield from (RawDocument(text, False) for text in texts)
        elif entry["kind"] == "rows":
            raise UsageError(f"{entry['source']}: ready-made rows cannot be mixed with other sources")
        else:
            for file in entry["files"]:
                for text in read_documents(Path(file["path"]), text_column):
                    yield RawDocument(text, file["held_out"])


def _key(plan: list[dict[str, Any]], recipe: Data, text_column: str) -> str:
    """Hash of everything that decides the result: the recipe (its name aside) and the sources' identities."""
    settings = {k: v for k, v in dataclasses.asdict(recipe).items() if k != "name"}
    content = json.dumps([FORMAT, plan, settings, text_column], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _description(sources, plan, recipe: Data, key: str, notices: list[str]) -> dict[str, Any]:
    return {
        "source": " ".join(sources),
        "sources": plan,
        "recipe": dataclasses.asdict(recipe),
        "key": key,
        "fingerprint": key,
        "vocab_size": recipe.vocab_size,
        "row_length": recipe.row_length,
        "notices": notices,
    }


def _check_disk(plan: list[dict[str, Any]], folder: Path) -> None:
    """Estimate what the work needs and compare it with what is free, before anything is written."""
    characters = sum(estimated_characters(Path(f["path"])) for entry in plan for f in entry.get("files", []))
    if plan[0]["kind"] == "hub" and plan[0]["source"] == hub.PILE_ROWS:
        characters = 2 * hub.PILE_ROW_COUNT * hub.PILE_ROW_LENGTH / DISK_BYTES_A_CHARACTER
    needed = int(characters * DISK_BYTES_A_CHARACTER)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"{folder}: about {needed / 1e9:.1f} GB of disk needed, {free / 1e9:.1f} GB free; "
            "free some space or choose another folder with --out (or $CRAMMING_CACHE)"
        )


def _checked(prepared: PreparedData, recipe: Data) -> PreparedData:
    """Prepared data must fit the recipe's shapes; the rest of its own recipe stands."""
    for field in ("vocab_size", "row_length"):
        have, want = prepared.metadata[field], getattr(recipe, field)
        if have != want:
            raise UsageError(
                f"{prepared.path}: prepared with {field} {have}, the recipe asks for {want}; "
                f"give --set data.{field}={have}"
            )
    return prepared
