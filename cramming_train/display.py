"""What a person sees during training: one line that renews itself on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any

LINE_SECONDS = 10.0


def duration(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    seconds = max(int(round(seconds)), 0)
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    return f"{hours}:{minutes:02d}:{seconds % 60:02d}" if hours else f"{minutes}:{seconds % 60:02d}"


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
        text = (
            f"{100 * record['fraction']:5.1f} %  {duration(elapsed)} (left {duration(to_go)})  step {record['step']}  "
            f"loss {record['loss']:.3f}  acc {100 * record['accuracy']:.1f} %  lr {record['learning_rate']:.2e}  "
            f"batch {record['batch_rows']}  {record['tokens_per_second']:,.0f} tok/s  "
            f"MFU {100 * record['model_flops_utilization']:.0f} %"
        )
        if self._terminal:
            width = shutil.get_terminal_size().columns
            print("\r" + text[: width - 1].ljust(width - 1), end="", file=sys.stderr, flush=True)
            self._open = True
        else:
            print(text, file=sys.stderr, flush=True)

    def message(self, text: str) -> None:
        """Show a line of its own."""
        if self._enabled:
            self.finish()
            print(text, file=sys.stderr, flush=True)

    def finish(self) -> None:
        """End the line that renews itself."""
        if self._open:
            print(file=sys.stderr, flush=True)
            self._open = False
