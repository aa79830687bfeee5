"""Where the result cannot be written: named in one line, found out before the work where that is possible."""

import json
import os
import resource
import shutil
import subprocess
from collections import namedtuple

import pytest

from cramming_train.data import pipeline
from cramming_train.errors import RunError, UsageError
from cramming_train.prepare import main
from tests.data.helpers import Writer, prepare, small, write
from tests.training.helpers import command, environment

SETTINGS = ("--processes", "1", "--set", "data.vocab_size=320", "data.row_length=24", "data.compression_threshold=none")


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "text.jsonl", Writer(21).documents(60))


def test_out_below_a_file(source, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert main(["--data", str(source), "--out", str(tmp_path / "file" / "out"), *SETTINGS]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: ") and str(tmp_path / "file") in errors[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_out_without_permission(source, tmp_path, capsys):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert main(["--data", str(source), "--out", str(locked / "out"), *SETTINGS]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and "no permission" in errors[0] and str(locked) in errors[0]


def test_out_is_something_else(source, tmp_path):
    """A folder with a user's files, or a file, is never touched; an empty folder is taken."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="exists and is not this prepared data"):
        prepare(source, small(), tmp_path, out=folder)
    assert (folder / "thesis.txt").read_text() == "years of work"
    with pytest.raises(UsageError, match="exists and is not this prepared data"):
        prepare(source, small(), tmp_path, out=folder / "thesis.txt")
    (tmp_path / "empty").mkdir()
    assert prepare(source, small(), tmp_path, out=tmp_path / "empty").path == tmp_path / "empty"


def test_out_holds_other_prepared_data(source, tmp_path):
    first = prepare(source, small(), tmp_path, out=tmp_path / "out")
    with pytest.raises(UsageError, match="exists and is not this prepared data"):
        prepare(source, small(seed=1), tmp_path, out=tmp_path / "out")
    assert len(first.train) == first.metadata["rows"]


def test_too_little_disk_is_said_before_any_work(source, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    needed = 3 * source.stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, needed - 100))

    def no_work(*args, **kwargs):
        raise AssertionError("work began")

    with monkeypatch.context() as patch, pytest.raises(RunError, match=r"GB of disk needed, .* GB free; free some"):
        patch.setattr(pipeline, "spool_documents", no_work)
        prepare(source, small(), tmp_path, out=tmp_path / "made" / "out")
    assert list((tmp_path / "made").iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 0, needed + 100))
    assert prepare(source, small(), tmp_path, out=tmp_path / "made" / "out").metadata["rows"] > 0


def test_the_estimate_covers_what_is_used(tmp_path, monkeypatch):
    """Peak of what lies in the work folder against the characters read: DISK_BYTES_A_CHARACTER must not be too low."""
    source = write(tmp_path / "text.jsonl", Writer(22).documents(900))
    peak = 0
    write_splits = pipeline.write_splits

    def size(folder):
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    def measured(packed, recipe, tokenizer, out, scratch, progress):
        nonlocal peak
        result = write_splits(packed, recipe, tokenizer, out, scratch, progress)
        peak = max(peak, size(out) + size(scratch))
        return result

    monkeypatch.setattr(pipeline, "write_splits", measured)
    prepare(source, small(order="random", deduplicate="paragraph", vocab_size=1024), tmp_path)
    assert 0 < peak < 3 * source.stat().st_size


@pytest.mark.parametrize("limit", [10_000, 200_000, 700_000])
def test_disk_full_on_the_way(limit, tmp_path):
    """Stood in for by a limit on the size of files, at different points of the work."""
    source = write(tmp_path / "text.jsonl", Writer(23).documents(2000))
    assert source.stat().st_size > 900_000
    out = tmp_path / "made" / "out"
    done = subprocess.run(
        command("prepare", "--data", source, "--out", out, *SETTINGS), env=environment(tmp_path), cwd=tmp_path,
        capture_output=True, text=True, timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    errors = [line for line in done.stderr.splitlines() if not line.startswith("  ")]
    assert done.returncode == 1 and len(errors) == 1, done.stderr
    assert "File too large" in errors[0] or "disk full" in errors[0], "names what is wrong"
    assert list((tmp_path / "made").iterdir()) == []


def test_tokenizer_that_cannot_be_written(source, tmp_path, monkeypatch, capsys):
    """The library's own save() raises a bare Exception; to the user it is a full disk like any other."""
    train = pipeline.train_tokenizer

    def full_disk(*args):
        (out,) = (tmp_path / "made").glob(".preparing-*/result")
        (out / "tokenizer.json").symlink_to("/dev/full")
        return train(*args)

    monkeypatch.setattr(pipeline, "train_tokenizer", full_disk)
    assert main(["--data", str(source), "--out", str(tmp_path / "made" / "out"), *SETTINGS]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("  ")]
    assert len(errors) == 1 and "disk full" in errors[0]
    assert list((tmp_path / "made").iterdir()) == []


def test_metadata_is_written_last(source, tmp_path, monkeypatch):
    """It is what makes a folder count as prepared; whatever fails before leaves none."""
    from cramming_train.data import prepare as module

    def fails(folder, content):
        assert (folder / "train" / "state.json").is_file() and (folder / "validation").is_dir()
        assert json.dumps(content)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_metadata", fails)
    with pytest.raises(OSError):
        prepare(source, small(), tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []
