"""Out of memory in a micro-batch: the run goes on with a smaller one.

Weights change in the update alone, so nothing but gradients is lost: they are dropped, and the step begins anew from
its first row. The new size is kept with the checkpoints, so a resumed run goes on with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cramming_train.distributed import World
from cramming_train.errors import RunError
from cramming_train.optim.schedules import smaller_micro_batch

REMEDY = "free memory on the device, or start a smaller model (--recipe) or shorter rows (--set data.row_length=64)"


class MicroBatchTooLarge(Exception):
    """A process of the run has no memory for its micro-batch; raised in all of them."""


def within_memory(micro_batch: Callable[[], Any], world: World, device: torch.device) -> Any:
    """What ``micro_batch`` returns; MicroBatchTooLarge where it runs out of memory in any process."""
    result, exhausted = None, False
    try:
        result = micro_batch()
    except torch.OutOfMemoryError:  # no more than noted here: its traceback holds the activations
        exhausted = True
    if world.any(exhausted, device):
        raise MicroBatchTooLarge
    return result


def back_off(trainer) -> str:
    """Take the next smaller micro-batch from here on; returns what to tell. RunError where there is none."""
    rows, step = trainer.micro_rows, trainer.step + 1
    if rows == 1:
        raise RunError(f"out of memory at step {step} with a micro-batch of one row: {REMEDY}")
    trainer.optimizer.zero_grad(set_to_none=True)
    if trainer.device.type == "cuda":
        torch.cuda.empty_cache()
    trainer.micro_rows = smaller_micro_batch(rows)
    return f"out of memory at step {step}: micro-batches of {trainer.micro_rows} rows instead of {rows} from here on"
