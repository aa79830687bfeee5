"""What a benchmark runs on: a processor or a card, behind one small interface, so that all else is the same code.

A device is asked for a stopwatch of some calls, and the stopwatch each time it is started for the seconds that one of
them takes. Everything that is particular to a GPU is in :class:`Card`.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from cramming_train.machine import processor

Call = Callable[[], object]
Stopwatch = Callable[[], float]


class Processor:
    """The CPU. On one thread it is processor time that counts: what other programs take does not."""

    def __init__(self, threads: int = 1):
        self.threads = threads
        self.torch = torch.device("cpu")
        self.dtype = torch.float32
        self.cache_bytes = 0  # copies of the inputs are not needed: what training keeps in cache may stay there
        self.clock = time.process_time if threads == 1 else time.perf_counter

    @property
    def compiles(self) -> bool:
        """torch.compile has what it needs."""
        return any(map(shutil.which, ("c++", "g++", "clang++")))

    @property
    def name(self) -> str:
        """In words. With what tells apart processors that call themselves the same: "AMD EPYC" is many."""
        found = f"{processor()}{_family()} {torch.backends.cpu.get_cpu_capability()}"
        return f"{found}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    def stopwatch(self, calls: Sequence[Call], *, capture: bool = True) -> Stopwatch:
        """Each time: all calls once, one after the other."""

        def seconds() -> float:
            started = self.clock()
            for call in calls:
                call()
            return (self.clock() - started) / len(calls)

        return seconds


def _family() -> str:
    """The processor's family as CPUID numbers it, where Linux tells it, and a space before it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"^cpu family\s*: (\d+)", text, re.MULTILINE)
    return f" family {found[1]}" if found else ""


class Card:
    """A CUDA device. Calls are captured once as a CUDA graph, replayed, and timed by the card's own events."""

    threads = 0
    compiles = True

    def __init__(self, index: int = 0):
        self.torch = torch.device("cuda", index)
        properties = torch.cuda.get_device_properties(index)
        self.name = properties.name
        self.capability = 10 * properties.major + properties.minor
        self.cache_bytes = properties.L2_cache_size
        self.dtype = torch.bfloat16 if properties.major >= 8 else torch.float16

    def stopwatch(self, calls: Sequence[Call], *, capture: bool = True) -> Stopwatch:
        """Each time: the graph of all calls once; without ``capture``, of what cannot be captured, the launches."""
        play = self._captured(calls) if capture else lambda: [call() for call in calls]
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

        def seconds() -> float:
            start.record()
            play()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3 / len(calls)

        seconds()
        return seconds

    def _captured(self, calls: Sequence[Call]) -> Callable[[], None]:
        stream = torch.cuda.Stream(self.torch)
        stream.wait_stream(torch.cuda.current_stream(self.torch))
        with torch.cuda.stream(stream):  # what compiles or chooses at the first call must not do so while capturing
            for call in (calls[0], calls[0], *calls):
                call()
        torch.cuda.current_stream(self.torch).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        results = []  # held until all are captured: no call may write where another's result is still in cache
        with torch.cuda.graph(graph, stream=stream):
            results.extend(call() for call in calls)
        del results
        return graph.replay


def key(device: Processor | Card) -> str:
    """As a file's name: letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-")


def present(threads: int = 1) -> Processor | Card:
    """The card where there is one, else the processor."""
    return Card(torch.cuda.current_device()) if torch.cuda.is_available() else Processor(threads)
