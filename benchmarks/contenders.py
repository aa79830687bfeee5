"""What is compared on a CPU, each way in a process of its own: ``python -m benchmarks.contenders NAME THREADS``.

Of their own, because what an allocation costs depends on what the process did before: pretraining keeps the memory that
it frees, a plain PyTorch program does not. A process takes one step for each line that it reads, and answers with the
processor seconds and the wall seconds that the step took and with its loss.

Training crammed-bert-mini; rows, masks, weights and optimizer settings are the same for all:

- ours: the trainer of cramming_train, as pretraining runs it.
- eager: cramming_train.model.plain (scaled_dot_product_attention, cross_entropy on the masked rows), autograd,
  clip_grad_norm_ and torch.optim.AdamW as they come.
- compiled: the same under torch.compile.
- gemm: no training, but the machine's rate: a product of two fp32 matrices of 2048^2.

The loss of 4096 rows, none of them unmasked, vocabulary 32768, forward and backward, with PyTorch's own allocation:

- loss-ours-N, loss-eager-N: at hidden N, through mlm_loss and through linear and cross_entropy.
- loss-products-N: the three matrix products alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from benchmarks.training import trainer
from cramkernels import mlm_loss
from cramming_train.allocator import keep_freed_memory
from cramming_train.model.plain import plain_loss
from cramming_train.recipes import get_recipe

CPU = torch.device("cpu")
RECIPE = get_recipe("crammed-bert-mini")
GEMM_SIZE = 2048
LOSS_ROWS, VOCABULARY = 4096, 32768


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


def loss(width: int, function: Callable[..., torch.Tensor]) -> Callable[[], torch.Tensor]:
    """Forward and backward of a loss of every row."""
    hidden, weight, labels = loss_inputs(width)

    def step() -> torch.Tensor:
        value = function(hidden, weight, labels)
        torch.autograd.grad(value, (hidden, weight))
        return value.detach()

    return step


def loss_inputs(width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same for all."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(LOSS_ROWS, width), torch.randn(VOCABULARY, width) * 0.02
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(VOCABULARY, (LOSS_ROWS,))


def loss_products(width: int) -> Callable[[], torch.Tensor]:
    """Of hidden and weight, and of a gradient of the logits with each."""
    hidden, weight, _ = (x.detach() for x in loss_inputs(width))
    logits, dhidden, dweight = torch.empty(LOSS_ROWS, VOCABULARY), torch.empty_like(hidden), torch.empty_like(weight)

    def step() -> torch.Tensor:
        torch.mm(hidden, weight.t(), out=logits)
        torch.mm(logits, weight, out=dhidden)
        torch.mm(logits.t(), hidden, out=dweight)
        return dhidden[0, 0]

    return step


LOSSES = {
    "loss-ours": partial(loss, function=lambda *inputs: mlm_loss(*inputs).loss),
    "loss-eager": partial(loss, function=lambda h, w, labels: F.cross_entropy(F.linear(h, w), labels)),
    "loss-products": loss_products,
}
CONTENDERS = {
    "ours": ours,
    "eager": lambda: plain(plain_loss),
    "compiled": lambda: plain(torch.compile(plain_loss)),
    "gemm": gemm,
    **{f"{name}-{width}": partial(make, width) for name, make in LOSSES.items() for width in (256, 768)},
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
