"""End to end: a training step of cramming_train against the same step with plain PyTorch's operations.

crammed-bert on a GPU, both compiled; crammed-bert-mini on a CPU. Tokens a second, and the model's FLOPs over the
measured rate of a matrix product.
"""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks import timing, training
from cramming_train.recipes import default_recipe, get_recipe

ON_A_CARD = torch.cuda.is_available()
MICRO_BATCHES = 8 if ON_A_CARD else 1
SECONDS = 10.0
CEILING = 1.2  # on a CPU, of plain PyTorch's time


@pytest.mark.benchmark(timer=time.perf_counter if ON_A_CARD else time.process_time)
def test_training_step(benchmark, device, floors, ceilings, results):
    recipe = get_recipe(default_recipe(device.torch.type))
    watches = {who: device.stopwatch([call], capture=False) for who, call in steps(recipe, device).items()}
    taken = timing.Measurement(watches, benchmark, SECONDS)
    ratios = floors.hold(f"training {recipe.name}", taken, None if ON_A_CARD else {"plain PyTorch": CEILING})
    seconds = timing.medians(taken.samples)
    rates = {who: training.tokens_a_step(recipe, MICRO_BATCHES) / each for who, each in seconds.items()}
    of_the_rate = training.flops_a_token(recipe) / ceilings["gemm_flops_per_second"]
    results.add(
        kind="training", name=f"training {recipe.name}", direction="step", family="training", recipe=recipe.name,
        seconds=seconds, ratios=ratios, tokens_per_second={who: round(rate, 1) for who, rate in rates.items()},
        model_flops_utilization={who: round(rate * of_the_rate, 4) for who, rate in rates.items()},
    )  # fmt: skip


def steps(recipe, device):
    """Ours and plain PyTorch's; on a card compiled, as pretraining does."""
    ours_trainer, ours = training.trainer(recipe, device.torch, MICRO_BATCHES)
    plain_trainer, plain = training.trainer(recipe, device.torch, MICRO_BATCHES)
    if ON_A_CARD:
        torch.compiler.reset()
        ours_trainer.forward, plain_trainer.forward = map(torch.compile, (ours_trainer.model, plain_trainer.model))

    def plain_step():
        with training.plain_pytorch():
            return plain()

    return {"ours": ours, "plain PyTorch": plain_step}
