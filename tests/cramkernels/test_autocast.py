"""Autocast: operations that multiply matrices take its dtype, all others keep that of their input."""

import pytest
import torch

from cramkernels import (
    add_layer_norm,
    attention,
    geglu,
    gelu_layer_norm,
    layer_norm,
    layer_norm_gelu,
    mlm_loss,
    rotary,
)
from tests.cramkernels.cases import cumulative, rope_tables
from tests.cramkernels.strategies import random

FP64, FP32, BF16 = torch.float64, torch.float32, torch.bfloat16
ROPE = rope_tables(4, 8, torch.Generator().manual_seed(1))
LABELS = torch.tensor([1, -100, 4, 0, 2])


def autocast(dtype=BF16):
    return torch.autocast("cpu", dtype=dtype)


def attend(qkv):
    return attention(qkv, cumulative((3, 2)), 3, rope=ROPE)


def forward_and_backward(function, *leaves):
    """The backward runs outside autocast, as it does in training."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    with autocast():
        out = function(*leaves)
    return out, torch.autograd.grad(out, leaves, torch.full_like(out, 0.5))


@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
def test_attention_runs_in_the_autocast_dtype(dtype):
    qkv = random(5, 3, 2, 8, seed=1, dtype=FP32)
    with autocast(dtype):
        assert torch.equal(attend(qkv), attend(qkv.to(dtype)))
        assert attend(qkv).dtype == dtype
    assert attend(qkv).dtype == FP32


def test_gradients_return_in_the_dtype_of_the_argument():
    qkv = random(5, 3, 2, 8, seed=1, dtype=FP32)
    out, (dqkv,) = forward_and_backward(attend, qkv)
    cast = qkv.to(BF16).requires_grad_()
    (expected,) = torch.autograd.grad(attend(cast), cast, torch.full_like(out, 0.5))
    assert dqkv.dtype == FP32 and torch.equal(dqkv, expected.float())


@pytest.mark.parametrize("mode", ["chunked", "recompute"])
def test_mlm_loss_casts_hidden_states_and_keeps_masters(mode):
    hidden, weight, bias = random(5, 8, seed=1, dtype=FP32), random(9, 8, seed=2, dtype=FP32), random(9, seed=3).float()

    def loss(hidden, weight, bias):
        return mlm_loss(hidden, weight, LABELS, bias=bias, mode=mode).loss

    got, (dhidden, dweight, dbias) = forward_and_backward(loss, hidden, weight, bias)
    leaves = [hidden.to(BF16).requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    want = loss(*leaves)
    assert got.dtype == FP32 and torch.equal(got, want)
    expected = torch.autograd.grad(want, leaves, torch.full_like(want, 0.5))
    for one, other in zip((dhidden, dweight, dbias), expected, strict=True):
        assert one.dtype == FP32 and torch.equal(one, other.float())
    with torch.no_grad():
        assert not torch.equal(got, loss(hidden, weight, bias)), "bf16 must show: else this test shows nothing"


UNTOUCHED = {
    "rotary": lambda x, w: rotary(x.view(5, 3, 2, 8), *ROPE, cumulative((3, 2))),
    "layer_norm": lambda x, w: layer_norm(x, w, eps=1e-5),
    "add_layer_norm": lambda x, w: add_layer_norm(x, 2 * x, w, eps=1e-5)[0],
    "layer_norm_gelu": lambda x, w: layer_norm_gelu(x, w, eps=1e-5),
    "gelu_layer_norm": lambda x, w: gelu_layer_norm(x, w, eps=1e-5),
    "geglu": lambda x, w: geglu(x, linear_bias=w),
}


@pytest.mark.parametrize("name", UNTOUCHED)
@pytest.mark.parametrize("dtype", [FP32, torch.float16], ids=str)
def test_the_others_keep_the_dtype_of_their_input(name, dtype):
    x, weight = random(5, 48, seed=1, dtype=dtype), random(48, seed=2, dtype=dtype)
    outside = UNTOUCHED[name](x, weight)
    with autocast():
        inside = UNTOUCHED[name](x, weight)
    assert inside.dtype == dtype and torch.equal(inside, outside)


def test_fp64_stays_fp64():
    qkv, hidden, weight = random(5, 3, 2, 8, seed=1), random(5, 8, seed=2), random(9, 8, seed=3)
    with autocast():
        assert attend(qkv).dtype == FP64
        assert mlm_loss(hidden, weight, LABELS).loss.dtype == FP64


def test_a_backward_inside_autocast_is_not_touched_by_it():
    qkv = random(5, 3, 2, 8, seed=1, dtype=BF16).requires_grad_()
    hidden = random(5, 8, seed=1, dtype=BF16).requires_grad_()
    weight = random(9, 8, seed=2, dtype=FP32).requires_grad_()

    def gradients():
        loss = mlm_loss(hidden, weight, LABELS, mode="recompute").loss + attend(qkv).float().square().sum()
        return torch.autograd.grad(loss, (qkv, hidden, weight))

    outside = gradients()
    with autocast():
        inside = gradients()
    for one, other in zip(inside, outside, strict=True):
        assert torch.equal(one, other)
