"""End to end on a card: steps of crammed-bert by cramming_train, compiled and replayed as a CUDA graph as pretraining
does, against the same model, trainer and optimizer with a loss of plain PyTorch, compiled. Tokens a second, and the
model's FLOPs over the measured rate of a matrix product. On a CPU: test_contenders.py.
"""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks import timing, training
from cramming_train.compilation import compile_checked
from cramming_train.graph import graph_checked
from cramming_train.recipes import get_recipe

MICRO_BATCHES = 8
SECONDS = 10.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.benchmark(timer=time.perf_counter)
def test_training_step(benchmark, device, floors, ceilings, results):
    recipe = get_recipe("crammed-bert")
    watches = {who: device.stopwatch([call], capture=False) for who, call in steps(recipe, device.torch).items()}
    taken = timing.Measurement(watches, benchmark, SECONDS)
    ratios = floors.hold(f"training {recipe.name}", taken, None)
    seconds = timing.medians(taken.samples)
    rates = {who: training.tokens_a_step(recipe, MICRO_BATCHES) / each for who, each in seconds.items()}
    of_the_rate = training.flops_a_token(recipe) / ceilings["gemm_flops_per_second"]
    results.add(
        kind="training", name=f"training {recipe.name}", direction="step", family="training", recipe=recipe.name,
        seconds=seconds, ratios=ratios, tokens_per_second={who: round(rate, 1) for who, rate in rates.items()},
        model_flops_utilization={who: round(rate * of_the_rate, 4) for who, rate in rates.items()},
    )  # fmt: skip


def steps(recipe, device, compiler=torch.compile, grapher=graph_checked):
    """Ours and plain PyTorch's, ready to be taken."""
    ours_trainer, ours = training.trainer(recipe, device, MICRO_BATCHES)
    compile_checked(ours_trainer, compiler)
    grapher(ours_trainer)
    plain_trainer, plain = training.trainer(recipe, device, MICRO_BATCHES)
    plain_trainer.forward = compiler(training.plain_forward(plain_trainer.model))
    return {"ours": ours, "plain PyTorch": plain}
