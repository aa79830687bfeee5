"""Stopping on request: SIGINT and SIGTERM are noted, and the loop ends at the next safe place."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cramming_train.errors import Interrupted


@contextmanager
def terminate_by_exception() -> Iterator[None]:
    """Context in which SIGTERM raises Interrupted, as SIGINT raises KeyboardInterrupt: what is half made is removed."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number, "terminated")

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class StopRequest:
    """Context in which SIGINT and SIGTERM set ``received``; a second one of either kind acts as usual."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in self.SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)
