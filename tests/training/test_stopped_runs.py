"""Runs that are stopped, by a signal or at once, and go on."""

import json
import re
import signal
import subprocess
import time

import pytest

from tests.training.helpers import TINY, command, environment, final_tensors, run, summary


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place")


def start_and_wait(arguments, place, name, seconds=120):
    """Start a run and wait until it is well under way."""
    process = subprocess.Popen(
        command("pretrain", *arguments, "--name", name), env=environment(place), cwd=place, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log, limit = place / "runs" / name / "log.jsonl", time.monotonic() + seconds
    while time.monotonic() < limit and process.poll() is None:
        events = [json.loads(line)["event"] for line in log.read_text().splitlines()] if log.exists() else []
        if events.count("step") + events.count("validation") >= 3:
            return process
        time.sleep(0.05)
    raise AssertionError(f"no steps logged: {process.communicate()[1]}")


def test_killed_and_resumed_equals_uninterrupted(place, small_data):
    arguments = ["--tokens", 30_000, "--data", small_data.path, "--set", *TINY]
    assert run("pretrain", *arguments, "--name", "whole", tmp_path=place, report=False).returncode == 0
    process = start_and_wait(arguments, place, "killed")
    process.kill()
    process.communicate()
    # a second run of the same name is refused, a resume goes on
    assert run("pretrain", *arguments, "--name", "killed", tmp_path=place, report=False).returncode == 2
    result = run("pretrain", "--resume", "--name", "killed", tmp_path=place, report=False)
    assert result.returncode == 0, result.stderr
    assert final_tensors(place / "runs" / "killed") == final_tensors(place / "runs" / "whole")
    first, second = summary(place / "runs" / "whole"), summary(place / "runs" / "killed")
    assert first["validation_loss"] == second["validation_loss"] and first["tokens"] == second["tokens"]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.exhaustive)])
def test_signals_save_and_exit_cleanly(place, small_data, number):
    name = f"signal-{int(number)}"
    process = start_and_wait(["--hours", 1, "--data", small_data.path, "--set", *TINY], place, name)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "everything saved" in stderr and "--resume" in stderr and "Traceback" not in stderr
    events = [json.loads(line) for line in (place / "runs" / name / "log.jsonl").read_text().splitlines()]
    steps = [event["step"] for event in events if event["event"] == "checkpoint"]
    assert events[-1]["event"] == "interrupt" and steps[-1] == events[-1]["step"] > 0


def test_a_damaged_checkpoint_is_named(place, small_data):
    process = start_and_wait(["--hours", 1, "--data", small_data.path, "--set", *TINY], place, "damaged")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    newest = sorted((place / "runs/damaged/checkpoints").glob("step-*"))[-1]
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    result = run("pretrain", "--resume", "--name", "damaged", tmp_path=place, report=False)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert re.search(r"error: damaged checkpoint .*model\.safetensors.*checksum", result.stderr)
    assert newest.exists()
