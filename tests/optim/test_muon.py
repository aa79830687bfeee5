"""Muon: singular values go to one, and a step is the published formula."""

import dataclasses

import pytest
import torch

from cramming_train.checkpoint import optimizer_tensors, restore_optimizer
from cramming_train.dry_step import dry_step
from cramming_train.model import MaskedLM
from cramming_train.optim.muon import COEFFICIENTS, MARGIN, Muon, iterated, orthogonalised
from cramming_train.optim.optimizer import Together, build_optimizer, matrices_of, set_learning_rate
from cramming_train.recipes import ARCHITECTURES, TRAININGS, apply_overrides, get_recipe
from tests.model.cases import gradients, random_batch, random_model, small

MUON = dataclasses.replace(
    TRAININGS["cram-mini"],
    matrix_interval=1,
    matrix_lr=0.03,
    peak_lr=1e-3,
    momentum=0.9,
    weight_decay=0.1,
    unigram_bias=False,
)


def by_singular_values(matrix):
    """The iteration acts on singular values alone: x -> a x + b x^3 + c x^5, once for each of them."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / matrix.norm() / MARGIN
    for a, b, c in COEFFICIENTS:
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ v


@pytest.mark.parametrize("shape", [(7, 7), (5, 11), (12, 4), (1, 9)])
def test_orthogonalised(shape):
    x_BMN = torch.randn(3, *shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)
    y_BMN = orthogonalised(x_BMN)
    for x, y in zip(x_BMN, y_BMN, strict=True):
        torch.testing.assert_close(y, by_singular_values(x), rtol=1e-9, atol=1e-11)
    wide = orthogonalised(torch.randn(2, 24, 96, generator=torch.Generator().manual_seed(1)))
    values = torch.linalg.svdvals(wide)
    assert values.min() > 0.5 and values.max() < 1.3


def test_where_singular_values_end():
    values = torch.logspace(-2, 0, 401, dtype=torch.float64)
    ends = iterated(torch.diag(values / MARGIN)[None])[0].diagonal()
    assert ends.min() > 0.71 and ends.max() < 1.28
    fading = iterated(torch.diag(values / 100)[None])[0].diagonal()  # of what is smaller none is blown up
    assert fading.min() > 0 and fading.max() < 1.28


@pytest.mark.parametrize("rank", [1, 2, 24])
def test_bf16_stays_within_the_margin(rank):
    """One singular value of one is where rounding might lead out of the interval."""
    generator = torch.Generator().manual_seed(rank)
    x_BMN = torch.randn(50, 24, rank, generator=generator) @ torch.randn(50, rank, 64, generator=generator)
    x_BMN /= MARGIN * x_BMN.norm(dim=(1, 2), keepdim=True)
    values = torch.linalg.svdvals(iterated(x_BMN.bfloat16()).float())
    assert values[:, 0].min() > 0.6 and values.max() < 1.4


def test_of_zeros_it_makes_zeros():
    assert not orthogonalised(torch.zeros(2, 4, 8)).any()


def test_three_steps_by_hand():
    """The learning rate changes every step; queries, keys and values are matrices of their own."""
    architecture = small("cram", layers=2, hidden=24, ffn_hidden=40)
    model, batch = random_model(architecture), random_batch(architecture)
    optimizer = build_optimizer(model, MUON)
    matrices = {n: p for n, p in model.named_parameters() if ".blocks." in n and p.dim() == 2}
    assert len(matrices) == 8
    weights = {name: p.detach().clone() for name, p in matrices.items()}
    buffers = {name: torch.zeros_like(p) for name, p in weights.items()}
    for lr in (1e-3, 5e-4, 2e-3):
        for name, gradient in gradients(model, model(*batch.arguments).loss).items():
            if name not in matrices:
                continue
            buffers[name] = 0.9 * buffers[name] + 0.1 * gradient
            update = 0.1 * gradient + 0.9 * buffers[name]
            blocks = update.chunk(3) if "qkv" in name else [update]
            step = torch.cat([by_singular_values(b) * max(1, b.shape[0] / b.shape[1]) ** 0.5 for b in blocks])
            matrix_lr = 30 * lr
            weights[name] = weights[name] * (1 - matrix_lr * 0.1) - matrix_lr * step
        set_learning_rate(optimizer, lr, 0)
        optimizer.step()
        for name, p in matrices.items():
            torch.testing.assert_close(p.detach(), weights[name], rtol=1e-8, atol=1e-10, msg=name)


def test_with_an_interval_it_moves_in_each_third_step_three_times_as_far():
    """And the momentum takes in every gradient; AdamW moves in every step."""
    architecture = small("cram", layers=1)
    moved = {}
    for interval in (1, 3):
        model, batch = random_model(architecture, dtype=torch.float32), random_batch(architecture)
        optimizer = build_optimizer(model, dataclasses.replace(MUON, matrix_interval=interval, weight_decay=0.0))
        matrix, embedding = model.encoder.blocks[0].qkv.weight, model.encoder.embedding.tokens.weight
        gradients_of(model, batch)
        moved[interval] = []
        for step in range(7):
            before = matrix.detach().clone(), embedding.detach().clone()
            set_learning_rate(optimizer, 1e-3, step)
            optimizer.step()
            moved[interval].append(matrix.detach() - before[0])
            assert not embedding.detach().equal(before[1])
    # the gradient is the same in each step, and so is its orthogonalised momentum
    moves = [step.abs().max() > 0 for step in moved[3]]
    assert moves == [False, False, True, False, False, True, False]
    torch.testing.assert_close(moved[3][2], sum(moved[1][:3]), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(moved[3][5], sum(moved[1][3:6]), rtol=1e-3, atol=1e-5)


def test_a_step_is_that_of_torch(monkeypatch):
    """With its coefficients, to bf16, in which torch.optim.Muon iterates."""
    monkeypatch.setattr("cramming_train.optim.muon.COEFFICIENTS", ((3.4445, -4.7750, 2.0315),) * 5)
    muon = pytest.importorskip("torch.optim", reason="torch >= 2.9")
    if not hasattr(muon, "Muon"):
        pytest.skip("torch.optim.Muon needs torch 2.9")
    generator = torch.Generator().manual_seed(3)
    ours, theirs = (torch.nn.Parameter(torch.zeros(48, 16)) for _ in range(2))
    first = Muon([(ours, 1)], lr=0.02, momentum=0.95, weight_decay=0.1)
    second = muon.Muon([theirs], lr=0.02, momentum=0.95, weight_decay=0.1)
    for _ in range(3):
        ours.grad = torch.randn(48, 16, generator=generator)
        theirs.grad = ours.grad.clone()
        first.step()
        second.step()
    assert (ours - theirs).norm() < 0.05 * theirs.norm()


@pytest.mark.parametrize("name", ["cram", "crammed-bert", "bert-base"])
def test_muon_takes_the_matrices_of_the_blocks_alone(name):
    model = random_model(small(name), dtype=torch.float32)
    optimizer = build_optimizer(model, MUON)
    muon, adam = optimizer.parts
    taken = {id(p) for group in muon.param_groups for p in group["params"]}
    for parameter_name, parameter in model.named_parameters():
        is_matrix = ".blocks." in parameter_name and parameter.dim() == 2
        assert (id(parameter) in taken) == is_matrix, parameter_name
    left = {id(p) for group in adam.param_groups for p in group["params"]}
    assert not taken & left and len(taken | left) == len(list(model.parameters()))


def test_a_step_with_infinite_gradients_is_left_out():
    """As a gradient scaler asks for it: nothing moves, and the momentum does not take it in."""
    architecture = small("cram", layers=1)
    model, batch = random_model(architecture, dtype=torch.float32), random_batch(architecture)
    optimizer = build_optimizer(model, MUON)
    gradients_of(model, batch)
    optimizer.step()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    momentum = {k: v.clone() for k, v in optimizer_tensors(model, optimizer).items() if k.endswith("momentum_buffer")}
    gradients_of(model, batch)
    for parameter in model.parameters():
        parameter.grad.reshape(-1)[0] = float("inf")
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    after = optimizer_tensors(model, optimizer)
    assert len(momentum) == 4 and all(torch.equal(after[key], value) for key, value in momentum.items())


def gradients_of(model, batch):
    model.zero_grad(set_to_none=True)
    model(*batch.arguments).loss.backward()


def test_its_state_goes_through_a_checkpoint():
    """Three steps in a row equal one, a checkpoint's round trip, and two."""
    architecture = small("cram", layers=1)
    results = []
    for stop_after in (None, 0):
        model, batch = random_model(architecture, dtype=torch.float32), random_batch(architecture)
        optimizer = build_optimizer(model, MUON)
        for step in range(3):
            gradients_of(model, batch)
            set_learning_rate(optimizer, 1e-3, step)
            optimizer.step()
            if step == stop_after:
                kept = {key: value.clone() for key, value in optimizer_tensors(model, optimizer).items()}
                optimizer = build_optimizer(model, MUON)
                restore_optimizer(model, optimizer, kept)
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_bad_blocks_are_named():
    with pytest.raises(ValueError, match=r"blocks: got a parameter of shape \(8, 4\) in 3 blocks"):
        Muon([(torch.nn.Parameter(torch.zeros(8, 4)), 3)], lr=0.02, momentum=0.9, weight_decay=0.0)


def test_what_a_step_costs():
    """One moment less on the matrices, and the products of the iteration."""
    with torch.device("meta"):
        model = MaskedLM(small("cram", layers=1, hidden=24, ffn_hidden=40), 67)
    assert matrices_of(model) == [(24, 24)] * 4 + [(40, 24), (24, 20)]
    recipe = apply_overrides(get_recipe("cram-mini"), ["training.matrix_interval=1"])
    muon, adam = (
        dry_step(dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, optimizer=name)), 1,
                 torch.float32, "cpu")
        for name in ("muon", "adamw")
    )  # fmt: skip
    assert adam.moment_bytes - muon.moment_bytes == 4 * 4 * 256 * (4 * 256 + 1024 + 512)
    square, wide, half = (4 * 256**2 * n + 2 * 256**3 for n in (256, 1024, 512))
    third = dry_step(
        dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, matrix_interval=3)), 1,
        torch.float32, "cpu",
    )  # fmt: skip
    assert third.optimizer.flops == muon.optimizer.flops / 3
    assert muon.optimizer.flops == 4 * len(COEFFICIENTS) * (4 * square + wide + half) and adam.optimizer.flops == 0


def test_the_full_model_is_covered():
    with torch.device("meta"):
        model = MaskedLM(ARCHITECTURES["cram"], 32768)
    muon = build_optimizer(model, MUON)
    assert isinstance(muon, Together)
    assert sum(p.numel() for group in muon.param_groups for p in group["params"]) == sum(
        p.numel() for p in model.parameters()
    )
