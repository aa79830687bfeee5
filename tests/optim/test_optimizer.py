"""Which parameters decay, with what settings, and that a step is the published one."""

import pytest
import torch

from cramming_train.model import MaskedLM
from cramming_train.optim.optimizer import build_optimizer, decays, set_learning_rate
from cramming_train.recipes import ARCHITECTURES, TRAININGS
from tests.model.cases import gradients, random_batch, random_model, small


def names_in(model, group):
    by_identity = {id(parameter): name for name, parameter in model.named_parameters()}
    return {by_identity[id(parameter)] for parameter in group["params"]}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_decays(name):
    """Matrices, embeddings and the scale of the sinusoids; biases and norms do not."""
    model = random_model(small(name, layers=1), dtype=torch.float32)
    decayed, kept = build_optimizer(model, TRAININGS["bert-o4"]).param_groups
    block = "encoder.blocks.0"
    expected = {"encoder.embedding.tokens.weight"}
    expected |= {f"{block}.{matrix}.weight" for matrix in ("qkv", "attention_out", "ffn_in", "ffn_out")}
    if ARCHITECTURES[name].positions == "scaled-sinusoidal":
        expected |= {"encoder.embedding.position_scale"}
    if ARCHITECTURES[name].positions == "learned":
        expected |= {"encoder.embedding.positions.weight"}
    if ARCHITECTURES[name].head_transform:
        expected |= {"transform.dense.weight"}
    assert names_in(model, decayed) == expected
    assert names_in(model, kept) == {name for name, _ in model.named_parameters()} - expected
    assert all("norm" in name or "bias" in name for name in names_in(model, kept))
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.01, 0.0)


def test_the_rule():
    assert decays("encoder.blocks.3.qkv.weight") and decays("encoder.embedding.position_scale")
    assert not decays("encoder.blocks.3.norm1.weight") and not decays("transform.dense.bias")
    assert not decays("decoder_bias") and not decays("encoder.final_norm.weight")


EXPECTED = {  # kind, learning rate, betas, eps, weight decay
    "bert-o4": (torch.optim.AdamW, 1e-3, (0.9, 0.98), 1e-12, 0.01),
    "bert-o4-mini": (torch.optim.AdamW, 1e-3, (0.9, 0.98), 1e-12, 0.01),
    "bert-o3": (torch.optim.AdamW, 1e-3, (0.9, 0.98), 1e-12, 0.01),
    "bert-o2": (torch.optim.AdamW, 1e-3, (0.9, 0.98), 1e-12, 0.01),
    "bert-o1": (torch.optim.AdamW, 7e-4, (0.9, 0.98), 1e-12, 0.01),
    "bert-base-o": (torch.optim.AdamW, 5e-4, (0.9, 0.98), 1e-12, 0.01),
    "bert-original": (torch.optim.Adam, 1e-4, (0.9, 0.999), 1e-8, 0.01),
    "bert-izsak": (torch.optim.AdamW, 2e-3, (0.9, 0.98), 1e-6, 0.01),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_settings_of_each_recipe(name):
    kind, lr, betas, eps, weight_decay = EXPECTED[name]
    optimizer = build_optimizer(random_model(small("crammed-bert"), dtype=torch.float32), TRAININGS[name])
    assert type(optimizer) is kind
    for group, decay in zip(optimizer.param_groups, (weight_decay, 0.0), strict=True):
        assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (lr, betas, eps, decay)
        assert not group["amsgrad"] and not group["maximize"]


@pytest.mark.parametrize("name", ["bert-o4", "bert-original"])
def test_three_steps_by_hand(name):
    """AdamW decays the weight by lr * decay; Adam adds decay * weight to the gradient. The rate changes every step."""
    training = TRAININGS[name]
    architecture = small("crammed-bert-simple", layers=1)
    model = random_model(architecture)
    batch = random_batch(architecture)
    optimizer = build_optimizer(model, training)
    (beta1, beta2), eps = training.betas, training.eps
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    first = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    second = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for step, lr in enumerate((1e-3, 5e-3, 2e-3), start=1):
        for name, gradient in gradients(model, model(*batch.arguments).loss).items():
            decay = 0.01 if "bias" not in name and "norm" not in name else 0.0
            if training.optimizer == "adam":
                gradient = gradient + decay * weights[name]
            else:
                weights[name] *= 1 - lr * decay
            first[name] = beta1 * first[name] + (1 - beta1) * gradient
            second[name] = beta2 * second[name] + (1 - beta2) * gradient**2
            step_size = first[name] / (1 - beta1**step)
            weights[name] -= lr * step_size / ((second[name] / (1 - beta2**step)).sqrt() + eps)
        set_learning_rate(optimizer, lr, 0)
        optimizer.step()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), weights[name], rtol=1e-9, atol=1e-12, msg=f"{name} {step}")


def test_the_learning_rate_is_that_of_all_groups():
    optimizer = build_optimizer(random_model(small("bert-base"), dtype=torch.float32), TRAININGS["bert-o4"])
    set_learning_rate(optimizer, 0.125, 0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


def test_frozen_parameters_are_left_out():
    model = random_model(small("crammed-bert"), dtype=torch.float32)
    model.encoder.embedding.requires_grad_(False)
    optimizer = build_optimizer(model, TRAININGS["bert-o4"])
    inside = set().union(*(names_in(model, group) for group in optimizer.param_groups))
    assert inside == {name for name, _ in model.named_parameters() if "embedding" not in name}


def test_a_model_of_matrices_alone_has_one_group():
    optimizer = build_optimizer(torch.nn.Linear(3, 4, bias=False), TRAININGS["bert-o4"])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01]


def test_the_whole_crammed_model_is_covered():
    """On the meta device: every parameter of the full recipe is in one group and one only."""
    with torch.device("meta"):
        model = MaskedLM(ARCHITECTURES["crammed-bert"], 32768)
    decaying = sum(p.numel() for name, p in model.named_parameters() if decays(name))
    # 34 norms of weight and bias: embedding's, two a block, the last
    assert decaying == 119_589_889 - 2 * 768 * (1 + 2 * 16 + 1)
