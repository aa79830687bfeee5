"""How far an evaluation is: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

from tqdm import tqdm

LINE_SECONDS = 30.0


class Progress:
    """Counts token passes over all fine-tunings that are left, on stderr."""

    def __init__(self, total: int):
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            disable=not self._terminal,
            unit="tok",
            unit_scale=True,
            dynamic_ncols=True,
            leave=False,
        )
        self._total = total
        self._done = 0
        self._started = self._last_line = time.monotonic()

    def advance(self, tokens: int, where: str) -> None:
        """Note work done and where that was."""
        self._done += tokens
        if self._terminal:
            self._bar.set_description(where, refresh=False)
            self._bar.update(tokens)
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            print(f"{where}: {100 * self._done / self._total:.0f} % of all, {self.left()} left", file=sys.stderr)

    def left(self) -> str:
        """Estimated time left."""
        if self._done == 0:
            return "?"
        seconds = (time.monotonic() - self._started) * max(self._total - self._done, 0) / self._done
        return str(timedelta(seconds=round(seconds)))

    def say(self, line: str) -> None:
        """Print a line on stdout without tearing the bar."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()
