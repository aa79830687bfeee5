"""Training crammed-bert-mini on a CPU, each way in a process of its own: ``python -m benchmarks.contenders NAME``.

Of their own, because a process of ours keeps the memory that it frees and a plain PyTorch program does not. A process
takes one optimizer step for each line that it reads, and answers with the processor seconds and the wall seconds that
the step took and with its loss. Rows, masks, weights and optimizer settings are the same for all.

- ours: the trainer of cramming_train, as pretraining runs it.
- eager: cramming_train.model.plain (scaled_dot_product_attention, cross_entropy on the masked rows), autograd,
  clip_grad_norm_ and torch.optim.AdamW as they come.
- compiled: the same under torch.compile.
- gemm: no training, but the machine's rate: a product of two fp32 matrices of 2048^2.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch.nn.utils import clip_grad_norm_

from benchmarks.training import trainer
from cramming_train.allocator import keep_freed_memory
from cramming_train.model.plain import plain_loss
from cramming_train.recipes import get_recipe

CPU = torch.device("cpu")
RECIPE = get_recipe("crammed-bert-mini")
GEMM_SIZE = 2048


def ours() -> Callable[[], torch.Tensor]:
    """Steps of the trainer."""
    keep_freed_memory()
    _, step = trainer(RECIPE, CPU)
    return lambda: step().loss


def plain(loss_of: Callable[..., torch.Tensor]) -> Callable[[], torch.Tensor]:
    """Steps in plain PyTorch."""
    made, _ = trainer(RECIPE, CPU)
    model, training, plan = made.model, RECIPE.training, made.plan(0.5)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=plan.learning_rate, betas=training.betas, eps=training.eps,
        weight_decay=training.weight_decay,
    )  # fmt: skip

    def step() -> torch.Tensor:
        arguments, _ = made.micro_batch_inputs(plan, 0)
        made.rows += plan.micro_rows
        loss = loss_of(model, *arguments)
        loss.backward()
        clip_grad_norm_(model.parameters(), training.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def gemm() -> Callable[[], torch.Tensor]:
    """Products of two square matrices."""
    a, b = torch.randn(2, GEMM_SIZE, GEMM_SIZE).unbind()
    return lambda: torch.mm(a, b)[0, 0]


CONTENDERS = {
    "ours": ours,
    "eager": lambda: plain(plain_loss),
    "compiled": lambda: plain(torch.compile(plain_loss)),
    "gemm": gemm,
}


def main(name: str, threads: int) -> None:
    """Answer each line of the standard input, until its end."""
    torch.set_num_threads(threads)
    step = CONTENDERS[name]()
    for _ in sys.stdin:
        before = time.process_time(), time.perf_counter()
        loss = float(step())
        after = time.process_time(), time.perf_counter()
        print(after[0] - before[0], after[1] - before[1], loss, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
