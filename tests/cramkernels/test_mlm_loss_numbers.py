"""mlm_loss where numbers are small or large: fp16 gradients under a loss scale, extreme logits."""

import pytest
import torch

from cramkernels import mlm_loss
from tests.cramkernels import oracle
from tests.cramkernels.strategies import close, random

SCALE = 2.0**16


def confident(dtype, gap=19.0, rows=8, vocabulary=300, width=16):
    """Hidden states, weight and labels such that every class but the label has a probability of about exp(-gap)."""
    hidden = random(rows, width, seed=1) * 0.1
    hidden[:, 0] = 1.0
    weight = random(vocabulary, width, seed=2) * 0.5
    weight[:, 0] = 0.0
    weight[0] = 0.0
    weight[0, 0] = gap
    return hidden.to(dtype), weight.to(dtype), torch.zeros(rows, dtype=torch.int64)


def weight_gradient(hidden, weight, labels, function, scale, **options):
    weight = weight.detach().clone().requires_grad_()
    loss = function(hidden, weight, labels, **options)[0]
    return torch.autograd.grad(loss * scale, weight)[0].double() / scale


@pytest.mark.parametrize("mode", ["chunked", "recompute"])
@pytest.mark.parametrize("rows_at_a_time", [8, 3])
def test_small_probabilities_survive_fp16_under_a_loss_scale(mode, rows_at_a_time):
    """Probabilities below 1e-7, gradients below fp16's smallest number: announced, the scale keeps them to 1 %."""
    hidden, weight, labels = confident(torch.float16)
    probabilities = torch.softmax(hidden.double() @ weight.double().t(), dim=1)
    assert probabilities[:, 1:].max() < 1e-7
    options = dict(mode=mode, logits_bytes=rows_at_a_time * 300 * 4)
    expected = weight_gradient(hidden.double(), weight.double(), labels, oracle.mlm_loss, 1.0)
    got = weight_gradient(hidden, weight.float(), labels, mlm_loss, SCALE, grad_scale=SCALE, **options)
    column = expected[1:, 0]  # hidden is one there: the sum of the class's probabilities over the rows
    assert (got[1:, 0] / column - 1).abs().max() < 0.02  # logits of 19 are rounded to 1 / 128 in fp16
    assert (got - expected)[1:].norm() < 0.02 * expected[1:].norm()
    lost = weight_gradient(hidden, weight.float(), labels, mlm_loss, SCALE, **options)
    assert not lost[1:].any(), "without the scale these underflow: else this test shows nothing"


@pytest.mark.parametrize("mode", ["chunked", "recompute"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
def test_a_scale_that_the_incoming_gradient_carries_changes_no_gradient(mode, dtype, as_tensor):
    """d(scale * loss) is scale * d(loss), whether the scale was announced or not."""
    hidden, weight, bias = random(9, 8, seed=1, dtype=dtype), random(21, 8, seed=2, dtype=dtype), random(21, seed=3)
    labels = torch.arange(9)
    leaves = [hidden.requires_grad_(), weight.requires_grad_(), bias.to(dtype).requires_grad_()]
    scale = torch.tensor(256.0) if as_tensor else 256.0
    plain = mlm_loss(leaves[0], leaves[1], labels, bias=leaves[2], mode=mode).loss
    announced = mlm_loss(leaves[0], leaves[1], labels, bias=leaves[2], mode=mode, grad_scale=scale).loss
    assert torch.equal(plain, announced)
    want = torch.autograd.grad(plain, leaves, torch.full_like(plain, 256.0))
    got = torch.autograd.grad(announced, leaves, torch.full_like(announced, 256.0))
    for one, other in zip(got, want, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, rtol=8 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("mode", ["chunked", "recompute"])
@pytest.mark.parametrize("factor", [0.0, -3.0, 0.25])
def test_any_incoming_gradient(mode, factor):
    """Gradients are made for an incoming one: whatever comes multiplies them."""
    hidden, weight = random(9, 8, seed=1).requires_grad_(), random(21, 8, seed=2).requires_grad_()
    one = torch.autograd.grad(mlm_loss(hidden, weight, torch.arange(9), mode=mode).loss, (hidden, weight))
    loss = factor * mlm_loss(hidden, weight, torch.arange(9), mode=mode).loss
    for got, want in zip(torch.autograd.grad(loss, (hidden, weight)), one, strict=True):
        close(got, factor * want)


@pytest.mark.parametrize("mode", ["chunked", "recompute"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [100.0, 3e4])
def test_extreme_logits(mode, dtype, size):
    """Classes far apart: the loss is exact, exp() never overflows, gradients are zero or one over the rows."""
    hidden = torch.eye(4, dtype=dtype) * size
    weight = torch.eye(4, dtype=dtype).requires_grad_()
    hidden.requires_grad_()
    right = mlm_loss(hidden, weight, torch.arange(4), mode=mode)
    assert right.loss == 0 and right.num_correct == 4
    wrong = mlm_loss(hidden, weight, torch.tensor([1, 2, 3, 0]), mode=mode, bias=torch.zeros(4, dtype=dtype))
    assert wrong.loss == torch.tensor(size).to(dtype).float() and wrong.num_correct == 0
    (dhidden,) = torch.autograd.grad(wrong.loss, hidden)
    expected = (torch.eye(4) - torch.eye(4).roll(1, dims=1)) / 4
    torch.testing.assert_close(dhidden.float(), expected, rtol=0, atol=1e-40)  # exp(-100) is a denormal number


def test_a_second_derivative_is_refused():
    """Gradients are made by hand, once; silence would give a gradient penalty that does nothing."""
    hidden, weight = random(9, 8, seed=1).requires_grad_(), random(21, 8, seed=2)
    with pytest.raises(RuntimeError, match="cramkernels.mlm_loss has no second derivative"):
        torch.autograd.grad(mlm_loss(hidden, weight, torch.arange(9)).loss, hidden, create_graph=True)


@pytest.mark.parametrize("vocabulary", [1, 2])
def test_the_smallest_vocabularies(vocabulary):
    hidden, weight = random(3, 4, seed=1).requires_grad_(), random(vocabulary, 4, seed=2).requires_grad_()
    labels = torch.zeros(3, dtype=torch.int64)
    got, want = mlm_loss(hidden, weight, labels), oracle.mlm_loss(hidden, weight, labels)
    close(got.loss, want[0])
    pairs = zip(*(torch.autograd.grad(loss, (hidden, weight)) for loss in (got.loss, want[0])), strict=True)
    for one, other in pairs:
        close(one, other)
