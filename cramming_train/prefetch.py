"""Rows of the next micro-batch on their way to the GPU while this one is computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import torch


class BatchRows(NamedTuple):
    """B rows of S tokens, and the sequences among them."""

    ids_BS: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int


class Copier(Protocol):
    """How tensors get to the device: begun on the prefetching thread, waited for on the training one."""

    def send(self, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]: ...
    def arrived(self, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]: ...


class SideStream:
    """Copies from pinned memory on a stream of their own. The GPU waits for them, the host does not."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._events: dict[int, torch.cuda.Event] = {}

    def send(self, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Begin the copies."""
        with torch.cuda.stream(self._stream):
            sent = tuple(x.pin_memory().to(self._device, non_blocking=True) for x in tensors)
            self._events[id(sent[0])] = self._stream.record_event()
        return sent

    def arrived(self, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Make the current stream wait for them, and their memory for the current stream."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(self._events.pop(id(tensors[0])))
        for x in tensors:
            x.record_stream(current)
        return tensors


class Prefetch:
    """Calls ``read(first_row, count)`` one micro-batch ahead, on a thread.

    What it returns depends on the question alone, never on what was asked before: a wrong guess costs time only.
    """

    def __init__(self, read: Callable[[int, int], BatchRows], copier: Copier):
        self._read, self._copier = read, copier
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: tuple[tuple[int, int], Future] | None = None

    def __call__(self, first_row: int, count: int, next_row: int) -> BatchRows:
        """Rows ``first_row`` onward on the device; those of ``next_row`` are begun."""
        asked = (first_row, count)
        if self._ahead is not None and self._ahead[0] == asked:
            future = self._ahead[1]
        else:
            future = self._thread.submit(self._fetch, *asked)
        following = (next_row, count)
        self._ahead = (following, self._thread.submit(self._fetch, *following))
        rows = future.result()
        ids_BS, cu_seqlens = self._copier.arrived((rows.ids_BS, rows.cu_seqlens))
        return BatchRows(ids_BS, cu_seqlens, rows.max_seqlen)

    def _fetch(self, first_row: int, count: int) -> BatchRows:
        rows = self._read(first_row, count)
        ids_BS, cu_seqlens = self._copier.send((rows.ids_BS, rows.cu_seqlens))
        return BatchRows(ids_BS, cu_seqlens, rows.max_seqlen)
