"""Stopping on request: SIGINT and SIGTERM are noted, and the loop ends at the next safe place."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from cramming_train.errors import Interrupted


@contextmanager
def terminate_by_exception() -> Iterator[None]:
    """Context in which SIGTERM raises Interrupted, as SIGINT raises KeyboardInterrupt: what is half made is removed.

    C code may lose such an exception: NumPy's ``tofile`` makes a TypeError of one that comes while it asks whether a
    file is a path. So whatever error leaves the context after a signal, Interrupted is raised in its place. An ignored
    signal stays ignored, as SIGINT is by what a script has put into the background.
    """
    received: int | None = None

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = number
        raise KeyboardInterrupt if number == signal.SIGINT else Interrupted(number, "terminated")

    heeded = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, interrupt) for number in heeded}
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        if received is None:
            raise
        raise Interrupted(received, "interrupted" if received == signal.SIGINT else "terminated") from error
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class StopRequest:
    """Context in which SIGINT and SIGTERM set ``received``; a second one of either kind acts as usual."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

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
