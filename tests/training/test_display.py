"""The console: within 80 columns on a terminal, one line a message and no control characters in a log file."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from cramming_train import pretrain
from cramming_train.display import Display, compact, duration, fitted, shown_path, step_line
from tests.training.helpers import TINY, command, environment

COLUMNS = 80


def record(**changes):
    return {"fraction": 0.5, "step": 1234, "loss": 2.3456, "accuracy": 0.567, "tokens_per_second": 79_484.0,
            "model_flops_utilization": 0.42, **changes}  # fmt: skip


def on_a_terminal(arguments, place, columns=COLUMNS):
    """Run a command whose stdout and stderr are a terminal so wide; returns (status, everything it wrote)."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        command(*arguments), env={**environment(place), "TERM": "xterm"}, cwd=place, stdin=terminal, stdout=terminal,
        stderr=terminal, close_fds=True,
    )  # fmt: skip
    os.close(terminal)
    written = b""
    while True:
        try:
            block = os.read(controller, 65536)
        except OSError:  # the other end has closed
            break
        if not block:
            break
        written += block
    os.close(controller)
    return process.wait(timeout=300), written.decode()


def lines_shown(written):
    """What stands in each line of the screen at any time, without colours and cursor movements."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.replace("\r\n", "\n"))
    return [part for line in text.split("\n") for part in line.split("\r")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place")


def test_nothing_is_wider_than_a_terminal(place, small_data):
    status, written = on_a_terminal(
        ["pretrain", "--tokens", 10_000, "--data", small_data.path, "--name", "terminal", "--set", *TINY], place
    )
    assert status == 0, written
    shown = lines_shown(written)
    wide = [line for line in shown if len(line.rstrip()) >= COLUMNS and max(map(len, line.split())) < COLUMNS // 2]
    assert wide == []  # but for a long path, which is not broken
    assert any("tok/s" in line for line in shown) and any(line.startswith("  rule 4 kept ") for line in shown)
    assert any(line.strip() == "report: runs/terminal/report/report.html" for line in shown)


def test_errors_fit_as_well(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stderr", Terminal())
    assert pretrain.main(["--resume", "--name", "a-run-that-has-never-been-in-this-folder"]) == 2
    lines = sys.stderr.getvalue().rstrip("\n").split("\n")
    assert lines[0].startswith("error: no run named") and len(lines) > 1 and all(len(line) < COLUMNS for line in lines)


@pytest.mark.parametrize("changes", [
    {}, {"fraction": 1.0, "step": 123_456, "loss": 10.397, "accuracy": 1.0, "tokens_per_second": 123_456.0},
    {"step": 9999, "tokens_per_second": 9999.0, "model_flops_utilization": 1.02}, {"loss": float("nan")},
    {"step": 1, "tokens_per_second": 1_234_567.0}, {"loss": 1.0},
])  # fmt: skip
def test_a_step_fits_whatever_its_numbers(changes):
    line = step_line(record(**changes), 12 * 3600, 12 * 3600)
    assert len(line) < COLUMNS and "tok/s" in line and "\n" not in line
    assert "12:00:00 -12:00:00" in line


class Terminal(io.StringIO):
    """A stream that says it is one, of 80 columns as long as nobody knows better."""

    def isatty(self):
        return True


def test_messages_are_broken_at_words(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    text = (
        "a message of many words that do not fit into one line of the terminal, and /a/path/that/is/longer/than/a/line"
    )
    shown = fitted(text, Terminal()).split("\n")
    assert len(shown) > 2 and " ".join(line.strip() for line in shown) == text
    assert all(len(line) < 40 for line in shown[:-1]) and all(line.startswith("  ") for line in shown[1:])
    assert fitted(text, io.StringIO()) == text
    assert fitted("\n  short   words", Terminal()) == "\n  short   words"


def test_a_message_ends_the_line_that_renews_itself(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    display = Display()
    display.step(record(), 60, 60)
    display.message("hello")
    display.step(record(step=1235), 61, 59)
    display.finish()
    display.finish()
    assert re.fullmatch(r"\r 50\.0%[^\n]*\nhello\n\r 50\.0%[^\n]*\n", stream.getvalue())
    monkeypatch.setattr("sys.stderr", io.StringIO())
    silent = Display(enabled=False)
    silent.step(record(), 1, 1)
    silent.message("hello")
    silent.finish()


def test_paths_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown_path(tmp_path / "runs" / "one") == os.path.join("runs", "one")
    assert shown_path(Path("/x")) == "/x"


@pytest.mark.parametrize(("number", "text"), [
    (7, "7"), (4806.4, "4,806"), (12_345, "12.3 k"), (999_400, "999 k"), (1_724_416, "1.72 M"),
    (10.9e9, "10.9 G"), (85e6, "85.0 M"), (123e6, "123 M"),
])  # fmt: skip
def test_numbers_for_people(number, text):
    assert compact(number) == text


def test_durations():
    assert [duration(s) for s in (0, 59.6, 3599, 3600, 86400)] == ["0:00", "1:00", "59:59", "1:00:00", "24:00:00"]
