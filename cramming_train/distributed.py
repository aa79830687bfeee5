"""Data parallelism under torchrun, by plain collectives. It breaks the one-GPU rule, and every run says so."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """The group of processes that train one model together; a single process in the ordinary case."""

    rank: int = 0
    size: int = 1

    @property
    def is_leader(self) -> bool:
        """True in the one process that writes files and prints."""
        return self.rank == 0

    def from_leader(self, values: list[float], device: torch.device) -> list[float]:
        """The leader's values in every process: clocks differ, decisions must not."""
        if self.size == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64, device=device)
        dist.broadcast(shared, src=0)
        return shared.tolist()

    def any(self, flag: bool, device: torch.device) -> bool:
        """True in every process when it is true in one."""
        if self.size == 1:
            return flag
        shared = torch.tensor([float(flag)], device=device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return bool(shared.item())

    def average(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in one flat exchange per dtype."""
        if self.size == 1:
            return
        by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for group in by_dtype.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            dist.all_reduce(flat)
            flat /= self.size
            for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def join_world(device_type: str) -> World:
    """Join the group that torchrun's environment variables describe, or be alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    # Default arguments in that module are bound to the group of its import, which torch.optim causes: imported later,
    # it would keep the group and its threads past `close`, and such a thread can abort a process that is exiting.
    import torch.distributed.nn  # noqa: F401

    dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    return World(rank=dist.get_rank(), size=size)
