"""Two at the same work, and work that is killed: every end is one whole folder or none."""

import os
import signal
import subprocess
import time

import psutil
import pytest

from cramming_train.data import open_prepared
from cramming_train.data import prepare as module
from tests.data.helpers import Writer, all_rows, prepare, small, write
from tests.training.helpers import command, environment

SETTINGS = ("--set", "data.vocab_size=320", "data.row_length=24", "data.compression_threshold=none")


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "a.jsonl", Writer(111).documents(80))


@pytest.mark.parametrize("with_out", [False, True])
def test_another_process_finishes_first(with_out, source, tmp_path, monkeypatch):
    """Both began when there was nothing; the second one to finish finds the work done."""
    run = module._run
    options = {"out": tmp_path / "out"} if with_out else {}

    def overtaken(*args):
        monkeypatch.setattr(module, "_run", run)
        overtaken.other = prepare(source, small(), tmp_path, **options)
        return run(*args)

    monkeypatch.setattr(module, "_run", overtaken)
    mine = prepare(source, small(), tmp_path, **options)
    assert mine.path == overtaken.other.path
    assert len(all_rows(mine.train)) == len(all_rows(overtaken.other.train)) == mine.metadata["rows"]
    assert not list(mine.path.parent.glob(".preparing-*"))


def start(source, out, tmp_path, *options) -> subprocess.Popen:
    return subprocess.Popen(
        command("prepare", "--data", source, "--out", out, *options, *SETTINGS), env=environment(tmp_path),
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def test_two_commands_at_once(source, tmp_path):
    both = [start(source, tmp_path / "made" / "out", tmp_path, "--processes", "1") for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["out"]
    assert len(open_prepared(tmp_path / "made" / "out").train) > 0


def wait_for(condition, seconds: float = 60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come about"
        time.sleep(0.005)


@pytest.fixture
def running(tmp_path):
    """A command in the middle of its work on a corpus that takes some seconds, with two worker processes."""
    source = write(tmp_path / "long.jsonl", Writer(112).documents(300) * 20)
    process = start(source, tmp_path / "made" / "out", tmp_path, "--processes", "2")
    try:
        spool = lambda: list((tmp_path / "made").glob(".preparing-*/work/documents"))  # noqa: E731
        wait_for(lambda: process.poll() is not None or (spool() and spool()[0].stat().st_size > 0))
        assert process.poll() is None, process.stderr.read()
        workers = psutil.Process(process.pid).children(recursive=True)
        yield process, workers, source
    finally:
        for left in [process, *workers]:
            try:
                left.kill()
            except (psutil.NoSuchProcess, ProcessLookupError):
                pass
        process.communicate()


def test_kill_9_leaves_nothing_that_looks_finished(running, tmp_path):
    process, workers, source = running
    assert len(workers) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    out = tmp_path / "made" / "out"
    assert not out.exists()
    again = prepare(source, small(deduplicate="paragraph", order="sentence-length-curriculum"), tmp_path, out=out)
    assert len(all_rows(again.train)) == again.metadata["rows"] > 0


def test_kill_9_takes_the_workers_along(running):
    """Or each kill would leave two processes behind for good."""
    process, workers, _ = running
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not [worker for worker in alive if worker.status() != psutil.STATUS_ZOMBIE]


def test_a_later_call_clears_what_a_killed_one_left(running, tmp_path):
    """Scratch files are as large as the corpus."""
    process, workers, source = running
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    psutil.wait_procs(workers, timeout=10)
    assert list((tmp_path / "made").glob(".preparing-*"))
    prepare(source, small(), tmp_path, out=tmp_path / "made" / "out")
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["out"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop(number, running, tmp_path):
    """Control-C goes to the whole group, as from a terminal; the workers leave the decision to the parent."""
    process, workers, _ = running
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode in (128 + number, -number), errors
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    assert list((tmp_path / "made").iterdir()) == [], "scratch is removed"
