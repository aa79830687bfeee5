"""The proof of a run's kernels: right ones pass, a wrong one is named and served by its reference."""

import dataclasses

import pytest
import torch

import cramming_train.verify as verify_module
from cramkernels import backend_for
from cramkernels.dispatch import OPERATIONS
from cramming_train.errors import RunError
from cramming_train.recipes import Architecture
from cramming_train.verify import verify
from tests.training.test_engine import ARCHITECTURE, CPU, TRAINING, never, trainer, weights

CRAMMED, BERT = ARCHITECTURE, Architecture("post", 2, 32, 2, 64, norm="post", max_length=64)
USED = {"attention": CRAMMED, "layer_norm": CRAMMED, "add_layer_norm": CRAMMED, "gelu_layer_norm": BERT,
        "geglu": CRAMMED, "mlm_loss": CRAMMED}  # fmt: skip


def backend(op):
    return backend_for(op, dtype=torch.float32, device=CPU).backend


def changed(results):
    """The first result, one part in a thousand too large."""
    first, *rest = (results,) if isinstance(results, torch.Tensor) else results
    return first * 1.001 if isinstance(results, torch.Tensor) else (first * 1.001, *rest)


@pytest.mark.parametrize("architecture", [CRAMMED, BERT, dataclasses.replace(CRAMMED, document_attention=True)])
def test_right_kernels_pass_and_the_trainer_is_as_before(small_data, architecture, stand_in_kernels):
    t, other = (trainer(small_data, architecture=architecture) for _ in range(2))
    before = weights(t)
    found = verify(t)
    assert 0 < found.worst_share <= 1 and found.fallen_back == {} and "verified" in str(found)
    assert torch.equal(weights(t), before) and (t.step, t.rows) == (0, 0)
    assert {backend(op) for op in OPERATIONS} == {"cuda"}
    for x in (t, other):
        x.train_step(x.plan(0.5), never)
    assert torch.equal(weights(t), weights(other))


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("op", USED)
def test_a_wrong_kernel_is_named_and_replaced(op, direction, small_data, stand_in_kernels):
    if (op, direction) == ("mlm_loss", "backward"):  # which its forward makes
        stand_in_kernels(op, "forward", lambda results: (*results[:5], *changed(results[5:])))
    else:
        stand_in_kernels(op, direction, changed)
    t = trainer(small_data, architecture=USED[op])
    found = verify(t)
    assert list(found.fallen_back) == [op] and op in str(found)
    assert backend(op) == "reference" and found.worst_share <= 1
    assert {backend(other) for other in OPERATIONS if other != op} == {"cuda"}
    assert "failed the proof" in backend_for(op, dtype=torch.float32, device=CPU).reason


def test_two_wrong_kernels(small_data, stand_in_kernels):
    for op in ("geglu", "attention"):
        stand_in_kernels(op, "backward", changed)
    assert set(verify(trainer(small_data)).fallen_back) == {"geglu", "attention"}


def test_nan_is_no_number_that_passes(small_data, stand_in_kernels):
    stand_in_kernels("geglu", "forward", lambda x: x * float("nan"))
    assert list(verify(trainer(small_data)).fallen_back) == ["geglu"]


def test_wrong_references_end_the_run(small_data, monkeypatch):
    """Nothing is left to fall back to, so that nothing is trained."""
    right = verify_module.plain_loss
    monkeypatch.setattr(verify_module, "plain_loss", lambda *a, **options: right(*a, **options) * 1.01)
    with pytest.raises(RunError, match=r"results are wrong on this machine: .* with the reference operations too"):
        verify(trainer(small_data))


def test_a_loss_scale_is_taken_out_again(small_data, stand_in_kernels, monkeypatch):
    t = trainer(small_data, TRAINING)
    monkeypatch.setattr(t.precision, "scaler", torch.amp.GradScaler("cpu"))
    assert verify(t).fallen_back == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_16_bits(small_data, stand_in_kernels, monkeypatch, dtype):
    """By autocast, as on a GPU; plain PyTorch errs there itself, and a kernel may err twice that and no more."""
    t = trainer(small_data)
    monkeypatch.setattr(t.precision, "dtype", dtype)
    monkeypatch.setattr(t.precision, "scaler", torch.amp.GradScaler("cpu") if dtype == torch.float16 else None)
    found = verify(t)
    assert found.fallen_back == {} and 0.1 < found.worst_share <= 1
    stand_in_kernels("geglu", "backward", lambda results: (results[0] * 1.1, *results[1:]))
    assert list(verify(t).fallen_back) == ["geglu"]
