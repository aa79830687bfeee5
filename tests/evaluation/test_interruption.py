"""A real process, killed in the middle of an evaluation, goes on where it stopped."""

import json
import shutil
import signal
import subprocess
import time

import pytest

from cramming_train import evaluate
from tests.training.helpers import command, environment


def wait_for_lines(path, number, process):
    """Until so many fine-tunings are written down."""
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < number:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "status", "message"),
    [
        (signal.SIGINT, 130, "interrupted"),
        pytest.param(signal.SIGTERM, 143, "terminated", marks=pytest.mark.exhaustive),
    ],
)
def test_killed_in_the_middle(number, status, message, toy_runs, toy_glue, tmp_path):
    """Finished fine-tunings stay, the rest follows, and the scores are those of an evaluation in one piece."""
    folder = shutil.copytree(toy_runs, tmp_path / "runs") / "toy" / "evaluation"
    arguments = ["--out", tmp_path / "runs", "--task-dir", toy_glue, "--tasks", "mnli", "--epochs", "1"]
    many = command("evaluate", *arguments, "--seeds", "60")
    process = subprocess.Popen(
        many, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_lines(folder / "glue.jsonl", 2, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status and errors.strip().endswith(message) and "Traceback" not in errors
    before = (folder / "glue.jsonl").read_text()
    done = before.count("\n")
    assert 2 <= done < 60
    assert json.loads((folder / "glue.json").read_text())["tasks"]["mnli"]["values"], "scores were there, too"

    seeds = str(done + 2)
    assert evaluate.main([*map(str, arguments), "--seeds", seeds]) == 0
    after = (folder / "glue.jsonl").read_text()
    assert after.startswith(before) and after.count("\n") == done + 2, "none was done again"
    scores = json.loads((folder / "glue.json").read_text())
    shutil.rmtree(folder)
    assert evaluate.main([*map(str, arguments), "--seeds", seeds]) == 0
    assert json.loads((folder / "glue.json").read_text())["tasks"] == scores["tasks"]
