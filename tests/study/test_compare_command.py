"""The command, with tiny runs of pretrain: finished cells are kept, a stopped one goes on, a failed one is named."""

import functools
import json
import signal
import subprocess
import time

import pytest

from cramming_train.study.cells import cells_in_turn
from cramming_train.study.contender import parse_contenders
from cramming_train.study.text import characters_per_token
from tests.training.helpers import TINY, command, environment, run, run_apart

SET = " ".join(TINY)
without_reports = functools.partial(run, report=False)
LINES = [f"first: bert-tiny {SET}", f"second: bert-tiny {SET} training.peak_lr=2e-3 tokens=4096"]


def compare(data, tmp_path, *more, lines=LINES, tokens=2048, run=without_reports):
    return run("compare", "--recipes", *lines, "--tokens", tokens, "--data", data, "--out", tmp_path / "study",
               "--threads", 1, *more, tmp_path=tmp_path)  # fmt: skip


def cells(tmp_path):
    return [json.loads(line) for line in (tmp_path / "study" / "cells.jsonl").read_text().splitlines()]


def test_cells_table_and_picture_and_nothing_is_done_twice(small_data, tmp_path):
    result = compare(small_data.path, tmp_path)
    assert result.returncode == 0, result.stderr
    found = cells(tmp_path)
    assert [(cell["label"], cell["seed"], cell["tokens"]) for cell in found] == [
        ("first", 0, 2048),
        ("second", 0, 4096),
    ]
    assert all(0 < cell["step_seconds"] < cell["train_seconds"] for cell in found)
    assert all(cell["curve"][-1][0] == cell["tokens"] and cell["curve"][-1][3] == cell["loss"] for cell in found)
    assert found[0]["held_out"] == found[1]["held_out"] and found[0]["loss"] != found[1]["loss"]
    page = (tmp_path / "study" / "table.md").read_text()
    assert "| first | 0.002048 M | 1 |" in page and "| second | 0.004096 M | 1 |" in page
    assert "python -m cramming_train.compare --recipes 'first: bert-tiny" in page and "1 threads" in page
    assert (tmp_path / "study" / "loss.png").exists()
    assert not list((tmp_path / "study" / "runs").glob("*/checkpoints"))

    before = (tmp_path / "study" / "cells.jsonl").read_bytes()
    again = compare(small_data.path, tmp_path)
    assert again.returncode == 0 and (tmp_path / "study" / "cells.jsonl").read_bytes() == before

    renamed = compare(small_data.path, tmp_path, lines=[LINES[0] + " training.peak_lr=5e-4"])
    assert renamed.returncode == 2 and "'first' stands for another recipe or budget there" in renamed.stderr


def test_every_seed_begins_with_another_contender():
    contenders = parse_contenders(["a: bert-tiny", "b: bert-base", "c: crammed-bert"], 100, None)
    order = [(cell.seed, cell.contender.label) for cell in cells_in_turn(contenders, 4)]
    assert order == [(s, label) for s, labels in enumerate(("abc", "bca", "cab", "abc")) for label in labels]
    names = {cell.run_name for cell in cells_in_turn(contenders, 4)}
    assert len(names) == 12


@pytest.mark.exhaustive  # over a minute
def test_a_stopped_run_is_saved_and_goes_on(small_data, tmp_path):
    """SIGTERM reaches the run; so does the end of --max-minutes, here before the run has done anything."""
    arguments = ["--recipes", f"long: bert-tiny {SET}", "--tokens", 400_000, "--data", small_data.path,
                 "--out", tmp_path / "study", "--threads", 1]  # fmt: skip
    early = run("compare", *arguments, "--max-minutes", 0.001, tmp_path=tmp_path)
    assert early.returncode == 0 and "0 of 1 runs finished; the same command goes on" in early.stderr

    process = subprocess.Popen(
        command("compare", *arguments), env=environment(tmp_path), cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not any('"event": "step"' in path.read_text() for path in tmp_path.glob("study/runs/*/log.jsonl")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 143 and "Traceback" not in errors, errors
    (log,) = tmp_path.glob("study/runs/*/log.jsonl")
    last = json.loads(log.read_text().splitlines()[-1])
    assert last["event"] == "interrupt" and 0 < last["step"] < 1563

    assert run("compare", *arguments, tmp_path=tmp_path).returncode == 0
    (cell,) = cells(tmp_path)
    assert cell["optimizer_steps"] == 1563 and cell["step_seconds"] > 0


def test_a_failed_run_is_named(tmp_path):
    result = compare(tmp_path / "nowhere.txt", tmp_path, run=run_apart)
    assert result.returncode == 1
    assert "nowhere.txt" in result.stderr and "first, seed 0: pretrain ended with status 2" in result.stderr


@pytest.mark.parametrize("option, value", [("--seeds", 0), ("--max-minutes", -1), ("--threads", 0), ("--tokens", 0)])
def test_bad_numbers(tmp_path, option, value):
    result = run("compare", "--recipes", "bert-tiny", "--out", tmp_path / "study",
                 *(() if option == "--tokens" else ("--tokens", 100)), option, value, tmp_path=tmp_path)  # fmt: skip
    assert result.returncode == 2 and f"{option} {value}" in result.stderr


def test_characters_per_token(small_data):
    """About what the held-out rows have when they are written out again."""
    rows = small_data.validation.read(0, len(small_data.validation))
    ids = [int(number) for number in rows.reshape(-1) if number >= 7]
    text = small_data.tokenizer.decode(ids)
    # decoding drops the spaces before full stops
    assert characters_per_token(small_data) == pytest.approx(len(text) / len(ids), rel=0.04)
