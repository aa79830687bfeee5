"""Progress of long work on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

LINE_SECONDS = 10.0


class Stage:
    """One stage of the work; ``add`` counts units done."""

    def __init__(self, name: str, unit: str | None, total: int | None):
        self._name, self._unit, self._total = name, unit, total
        self._done, self._start = 0, time.monotonic()
        self._last_line = self._start
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(desc=name, total=total, unit=f" {unit}" if unit else "", unit_scale=True, leave=False)

    def add(self, count: int) -> None:
        """Count units done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            print(f"  {self._name}: {self._amount()}", file=sys.stderr, flush=True)

    def _amount(self) -> str:
        text = f"{self._done:,} {self._unit}"
        return f"{text} ({100 * self._done / self._total:.0f} %)" if self._total else text

    def finish(self) -> None:
        """Close the bar and say how long it took."""
        if self._bar is not None:
            self._bar.close()
        seconds = time.monotonic() - self._start
        amount = f"{self._amount()}, " if self._unit else ""
        print(f"  {self._name}: {amount}{seconds:.1f} s", file=sys.stderr, flush=True)


class Progress:
    """Makes stages; silent ones where ``enabled`` is false."""

    def __init__(self, enabled: bool = True):
        self.enabled = enabled

    @contextmanager
    def stage(self, name: str, unit: str | None, total: int | None = None) -> Iterator[Stage]:
        """A stage as a context; an exception leaves it without a closing line."""
        stage = Stage(name, unit, total) if self.enabled else _Silent()
        yield stage
        stage.finish()


class _Silent:
    def add(self, count: int) -> None:
        """Nothing to show."""

    def finish(self) -> None:
        """Nothing to show."""
