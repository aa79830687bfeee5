"""The two trainings that a card's benchmark compares are the same training."""

import torch

from benchmarks.test_training import steps
from benchmarks.training import flops_a_token, tokens_a_step
from cramming_train.recipes import apply_overrides, get_recipe

TINY = [
    "architecture.layers=2", "architecture.hidden=32", "architecture.heads=2", "architecture.ffn_hidden=64",
    "data.vocab_size=512", "data.row_length=32", "training.batch_size=64", "training.micro_batch_size=4",
]  # fmt: skip
RECIPE = apply_overrides(get_recipe("crammed-bert"), TINY)


def test_both_take_the_same_steps():
    """Uncompiled on the CPU: losses and gradient norms agree from step to step."""
    captured = []
    both = steps(RECIPE, torch.device("cpu"), lambda function: function, captured.append)
    assert len(captured) == 1
    for _ in range(3):
        ours, plain = (step() for step in both.values())
        assert ours.rows == plain.rows == 8 * 4
        torch.testing.assert_close(ours.loss, plain.loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(ours.gradient_norm, plain.gradient_norm, rtol=1e-4, atol=0)


def test_a_step_has_so_many_tokens():
    assert tokens_a_step(RECIPE, 8) == 8 * 4 * 32 and flops_a_token(RECIPE) > 6 * 32 * 512 * 0.25
