"""What a person sees during training: one line that renews itself on a terminal, a line now and then elsewhere.

On a terminal nothing is wider than it; elsewhere (a log file, a pipe) there are no control characters, and one line is
one message, however long.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, TextIO

LINE_SECONDS = 10.0


def duration(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    seconds = max(int(round(seconds)), 0)
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    return f"{hours}:{minutes:02d}:{seconds % 60:02d}" if hours else f"{minutes}:{seconds % 60:02d}"


def compact(number: float) -> str:
    """1,234, 12.3 k, 4.56 M or 7.89 G."""
    for unit, divisor, word in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if number >= unit:
            value = number / divisor
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {word}"
    return f"{number:,.0f}"


def fitted(text: str, stream: TextIO, indent: str = "  ") -> str:
    """The text in lines that fit the terminal, the later ones indented; as it is where the stream is none.

    Words that are longer than a line, such as paths, stay whole.
    """
    if not stream.isatty():
        return text
    return "\n".join(
        textwrap.fill(line, _columns(stream) - 1, subsequent_indent=indent, break_long_words=False,
                      break_on_hyphens=False) if line.strip() else line
        for line in text.split("\n")
    )  # fmt: skip


def shown_path(path: Path) -> str:
    """The path from the present folder, where that is shorter."""
    absolute = str(path)
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive
        return absolute
    return min(relative, absolute, key=len)


def _columns(stream: TextIO) -> int:
    """Of the terminal that the stream is."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return shutil.get_terminal_size().columns


class Display:
    """Shows steps on stderr."""

    def __init__(self, enabled: bool = True):
        self._enabled = enabled
        self._terminal = sys.stderr.isatty()
        self._last_line = -LINE_SECONDS
        self._open = False

    def step(self, record: dict[str, Any], elapsed: float, to_go: float) -> None:
        """Show one logged step."""
        if not self._enabled:
            return
        now = time.monotonic()
        if not self._terminal and now - self._last_line < LINE_SECONDS:
            return
        self._last_line = now
        text = step_line(record, elapsed, to_go)
        if self._terminal:
            width = _columns(sys.stderr) - 1  # the last column stays free: some terminals go to the next line there
            print("\r" + text[:width].ljust(width), end="", file=sys.stderr, flush=True)
            self._open = True
        else:
            print(text, file=sys.stderr, flush=True)

    def message(self, text: str) -> None:
        """Show a line of its own."""
        if self._enabled:
            self.finish()
            print(fitted(text, sys.stderr), file=sys.stderr, flush=True)

    def finish(self) -> None:
        """End the line that renews itself."""
        if self._open:
            print(file=sys.stderr, flush=True)
            self._open = False


def step_line(record: dict[str, Any], elapsed: float, to_go: float) -> str:
    """A step in at most 79 characters, whatever its numbers: share, time used and left, step, loss, speed."""
    return (
        f"{100 * record['fraction']:5.1f}% {duration(elapsed)} -{duration(to_go)}  step {compact(record['step'])}  "
        f"loss {record['loss']:.4g} acc {100 * record['accuracy']:.0f}%  {compact(record['tokens_per_second'])} tok/s "
        f"MFU {100 * record['model_flops_utilization']:.0f}%"
    )
