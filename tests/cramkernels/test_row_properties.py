"""What the norms and GEGLU must satisfy whatever the values."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cramkernels import add_layer_norm, geglu, gelu_layer_norm, layer_norm, layer_norm_gelu
from tests.cramkernels.strategies import bounded, close, random, seeds, with_gradient

EPS = 1e-9
shapes = st.tuples(st.integers(0, 6), st.integers(2, 40))


def parameters(width, seed):
    return random(width, seed=seed + 1) + 1, random(width, seed=seed + 2)


@bounded
@given(shape=shapes, seed=seeds, shift=st.floats(-100, 100))
def test_layer_norm_ignores_a_shift_of_the_row(shape, seed, shift):
    x, (weight, bias) = random(*shape, seed=seed), parameters(shape[1], seed)
    close(layer_norm(x + shift, weight, bias, eps=EPS), layer_norm(x, weight, bias, eps=EPS), tolerance=1e-8)


@bounded
@given(shape=shapes, seed=seeds, scale=st.floats(0.5, 1e4))
def test_layer_norm_ignores_the_scale_of_the_row(shape, seed, scale):
    """With eps scaled alike, so that this holds for the flattest rows too."""
    x, (weight, bias) = random(*shape, seed=seed), parameters(shape[1], seed)
    scaled = layer_norm(scale * x, weight, bias, eps=EPS * scale**2)
    close(scaled, layer_norm(x, weight, bias, eps=EPS))


@bounded
@given(shape=shapes, seed=seeds)
def test_normalised_rows_have_mean_zero_and_variance_one(shape, seed):
    y = layer_norm(random(*shape, seed=seed), torch.ones(shape[1], dtype=torch.float64), eps=0.0)
    close(y.mean(-1), torch.zeros(shape[0], dtype=torch.float64))
    close(y.square().mean(-1), torch.ones(shape[0], dtype=torch.float64), tolerance=1e-9)


@bounded
@given(shape=shapes, seed=seeds)
def test_the_gradient_of_a_row_is_orthogonal_to_what_the_norm_ignores(shape, seed):
    x, (weight, bias) = random(*shape, seed=seed), parameters(shape[1], seed)
    _, dx = with_gradient(lambda x: layer_norm(x, weight, bias, eps=0.0), x)
    size = dx.abs().amax(-1).clamp(min=1)
    close(dx.sum(-1) / size, torch.zeros(shape[0], dtype=torch.float64), tolerance=1e-9)
    close((dx * x).sum(-1) / size, torch.zeros(shape[0], dtype=torch.float64), tolerance=1e-9)


@pytest.mark.parametrize("operation", [layer_norm, layer_norm_gelu, gelu_layer_norm])
def test_rows_do_not_mix(operation):
    x, (weight, bias) = random(7, 33, seed=1), parameters(33, 1)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    assert torch.equal(operation(x[order], weight, bias, eps=EPS), operation(x, weight, bias, eps=EPS)[order])


@bounded
@given(shape=shapes, seed=seeds)
def test_fusions_are_compositions(shape, seed):
    x, residual, (weight, bias) = random(*shape, seed=seed), random(*shape, seed=seed + 9), parameters(shape[1], seed)
    norm = dict(weight=weight, bias=bias, eps=1e-5)
    y, new_residual = add_layer_norm(x, residual, **norm)
    close(new_residual, x + residual)
    close(y, layer_norm(x + residual, **norm))
    for approximate in ("none", "tanh"):
        gelu = dict(approximate=approximate)
        close(layer_norm_gelu(x, **norm, **gelu), F.gelu(layer_norm(x, **norm), **gelu))
        close(gelu_layer_norm(x, **norm, **gelu), layer_norm(F.gelu(x, **gelu), **norm))
        fused = gelu_layer_norm(x, **norm, linear_bias=bias, **gelu)
        close(fused, gelu_layer_norm(x + bias, **norm, **gelu))


@bounded
@given(rows=st.integers(0, 5), half=st.integers(1, 20), seed=seeds, approximate=st.sampled_from(["none", "tanh"]))
def test_the_gate_is_the_half_that_it_names(rows, half, seed, approximate):
    x = random(rows, 2 * half, seed=seed)
    first, second = x[:, :half], x[:, half:]
    close(geglu(x, approximate=approximate), first * F.gelu(second, approximate=approximate))
    swapped = torch.cat([second, first], -1)
    close(geglu(swapped, approximate=approximate, gate="first"), geglu(x, approximate=approximate))
    bias = random(2 * half, seed=seed + 1)
    biased = geglu(x, linear_bias=bias, approximate=approximate)
    close(biased, geglu(x + bias, approximate=approximate))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rows_of_large_numbers(dtype):
    """Squares that overflow fp16: statistics are fp32. A constant row has no variance and gives the bias."""
    x = (random(4, 64, seed=2) * 1e4).to(dtype)
    x[1] = 3e4
    weight, bias = torch.ones(64, dtype=dtype), random(64, seed=3, dtype=dtype)
    y, dx = with_gradient(lambda x: layer_norm(x, weight, bias, eps=1e-5), x)
    assert dx.isfinite().all()
    assert torch.equal(y[1], bias)
    expected = F.layer_norm(x.double(), (64,), weight.double(), bias.double(), 1e-5)
    close(y.double(), expected, tolerance=4 * torch.finfo(dtype).eps)


def test_a_row_of_one_element_gives_the_bias():
    x, weight, bias = random(5, 1, seed=1), random(1, seed=2), random(1, seed=3)
    y, dx = with_gradient(lambda x: layer_norm(x, weight, bias, eps=1e-5), x)
    assert torch.equal(y, bias.expand(5, 1))
    close(dx, torch.zeros(5, 1, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gelu_far_from_zero(dtype):
    """The gate closes to exactly zero and opens to the identity; nothing overflows on the way."""
    far = torch.tensor([-1e4, -200.0, -30.0, 30.0, 200.0, 1e4]).to(dtype)
    x = torch.cat([torch.full_like(far, 2.0), far])
    for approximate in ("none", "tanh"):
        y, dx = with_gradient(lambda x, approximate=approximate: geglu(x, approximate=approximate), x)
        assert torch.equal(y, torch.where(far > 0, 2 * far, 0))
        assert dx.isfinite().all() and not dx[6:9].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_residual_stream_may_stay_in_fp32(dtype):
    x, residual = random(5, 48, seed=1, dtype=dtype), random(5, 48, seed=2, dtype=torch.float32)
    weight = random(48, seed=3, dtype=torch.float32)
    y, new_residual = add_layer_norm(x, residual, weight, eps=1e-5)
    assert y.dtype == dtype and new_residual.dtype == torch.float32
    assert torch.equal(new_residual, x.float() + residual)
    assert torch.equal(y, F.layer_norm(new_residual, (48,), weight, eps=1e-5).to(dtype))


@pytest.mark.parametrize("operation", [layer_norm, layer_norm_gelu, gelu_layer_norm, add_layer_norm, geglu])
def test_strided_rows(operation):
    """A transposed input and a column slice give what their contiguous copies give."""
    weight, bias = parameters(6, 4)

    def call(x):
        if operation is geglu:
            return geglu(x)
        if operation is add_layer_norm:
            return torch.cat(add_layer_norm(x, 2 * x, weight, bias, eps=EPS))
        return operation(x, weight, bias, eps=EPS)

    wide = random(3, 6, 10, seed=5)
    for view in (lambda x: x.transpose(1, 2), lambda x: x[..., 2:8]):
        got = with_gradient(lambda x, view=view: call(view(x)), wide)
        out, dx = with_gradient(call, view(wide).contiguous())
        close(got[0], out)
        close(view(got[1]), dx)
