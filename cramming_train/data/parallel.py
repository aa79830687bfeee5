"""An ordered, bounded, multi-process map: results come in the order of the inputs, few are in flight at a time."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from cramming_train.errors import RunError


class Workers:
    """A pool of processes for the whole pipeline. With one process everything runs in this one."""

    def __init__(self, processes: int | None = None):
        self.processes = processes or _usable_cores()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        if self.processes > 1:
            method = "fork" if sys.platform == "linux" else "spawn"
            context = multiprocessing.get_context(method)
            self._pool = ProcessPoolExecutor(self.processes, mp_context=context, initializer=_start_worker)
            # start them all now, before this process has threads of its own
            list(self._pool.map(abs, range(self.processes)))
            # so that the pipe of results ends when the workers do, and a message that was cut off is noticed
            self._pool._result_queue._writer.close()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _result(self, future: Future) -> Any:
        """The pool waits for ever where a worker was killed while it sent its result, so look after them here."""
        while True:
            try:
                return future.result(timeout=2.0)
            except TimeoutError:
                if future.done():
                    return future.result()
            processes = list((self._pool._processes or {}).values())
            if not all(process.is_alive() for process in processes):
                for process in processes:
                    process.kill()

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """``function(item)`` for every item, in order. At most a few items a process are held at a time."""
        if self._pool is None:
            yield from map(function, items)
            return
        pending: deque = deque()
        try:
            for item in items:
                pending.append(self._pool.submit(function, item))
                if len(pending) > 2 * self.processes:
                    yield self._result(pending.popleft())
            while pending:
                yield self._result(pending.popleft())
        except BrokenProcessPool:
            raise RunError(
                "a worker process was killed, probably for want of memory; run with fewer --processes"
            ) from None


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: fewer than the machine's where a container is limited
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _end_with_parent(parent: int) -> None:
    """A killed parent cannot stop its workers, and they would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _start_worker() -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a handler of the parent's must not keep a worker alive
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
