"""Hand-written backwards against finite differences, for every combination of options on small odd sizes."""

from itertools import product

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

DROPOUT = (dict(), dict(dropout_p=0.3, seed=5))


def leaf(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def check(function, *inputs):
    present = [x for x in inputs if x is not None]

    def call(*given):
        given = iter(given)
        return function(*(None if x is None else next(given) for x in inputs))

    assert torch.autograd.gradcheck(call, present, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("lengths", [(3, 0, 1), (3, 3)], ids=["ragged", "dense"])
@pytest.mark.parametrize("rope", [False, True], ids=["no rope", "rope"])
@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("dropout", DROPOUT, ids=["no dropout", "dropout"])
def test_attention(lengths, rope, window, scale, dropout):
    outside = 1 if lengths == (3, 0, 1) else 0
    cu_seqlens = cumulative(lengths, outside)
    tables = rope_tables(3, 2, torch.Generator().manual_seed(1)) if rope else None
    check(
        lambda qkv: attention(qkv, cu_seqlens, 3, rope=tables, window=window, scale=scale, **dropout),
        leaf(sum(lengths) + 2 * outside, 3, 1, 2),
    )


def test_rotary():
    cos, sin = rope_tables(4, 6, torch.Generator().manual_seed(2))
    cu_seqlens = cumulative((3, 0, 1), 1)
    check(lambda qkv: rotary(qkv, cos.double(), sin.double(), cu_seqlens), leaf(6, 3, 1, 6))


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_layer_norm(bias):
    check(lambda x, w, b: layer_norm(x, w, b, eps=1e-3), leaf(3, 5), leaf(5), leaf(5, seed=1) if bias else None)


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("dropout", DROPOUT, ids=["no dropout", "dropout"])
@pytest.mark.parametrize("used", ["both", "y", "residual"])
def test_add_layer_norm(bias, dropout, used):
    """Either output may be used alone. Joined, both gradients come in at once, which one at a time would not test."""
    part = {"both": slice(None), "y": slice(0, 1), "residual": slice(1, 2)}[used]
    check(
        lambda x, r, w, b: torch.cat(add_layer_norm(x, r, w, b, eps=1e-3, **dropout)[part]),
        leaf(3, 5), leaf(3, 5, seed=1), leaf(5), leaf(5, seed=2) if bias else None,
    )  # fmt: skip


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_layer_norm_gelu(bias, approximate):
    check(
        lambda x, w, b: layer_norm_gelu(x, w, b, eps=1e-3, approximate=approximate),
        leaf(3, 5), leaf(5), leaf(5, seed=1) if bias else None,
    )  # fmt: skip


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("linear_bias", [False, True], ids=["no linear bias", "linear bias"])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_layer_norm(bias, linear_bias, approximate):
    check(
        lambda x, w, b, lb: gelu_layer_norm(x, w, b, linear_bias=lb, eps=1e-3, approximate=approximate),
        leaf(3, 5), leaf(5), leaf(5, seed=1) if bias else None, leaf(5, seed=2) if linear_bias else None,
    )  # fmt: skip


@pytest.mark.parametrize("linear_bias", [False, True], ids=["no linear bias", "linear bias"])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("gate", ["first", "second"])
def test_geglu(linear_bias, approximate, gate):
    check(
        lambda x, b: geglu(x, linear_bias=b, approximate=approximate, gate=gate),
        leaf(3, 10), leaf(10, seed=1) if linear_bias else None,
    )  # fmt: skip


LOSS_OPTIONS = [
    dict(z_loss=z, label_smoothing=s, softcap=c, mode=mode, logits_bytes=bytes_)
    for z, s, c, mode, bytes_ in product(
        (0.0, 0.1), (0.0, 0.2), (None, 1.5), ("chunked", "recompute"), (1 << 20, 2 * 7 * 8)
    )
]


def options_id(options):
    return ",".join(f"{name}={value}" for name, value in options.items())


@pytest.mark.parametrize("options", LOSS_OPTIONS, ids=options_id)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_mlm_loss(options, bias):
    """V = 7; one row ignored, one hidden row used twice, one not at all; 112 bytes hold two rows of logits."""
    labels, positions = torch.tensor([6, -100, 0, 3, 3]), torch.tensor([2, 0, 2, 3, 4])
    check(
        lambda h, w, b: mlm_loss(h, w, labels, positions_M=positions, bias=b, **options).loss,
        leaf(5, 3), leaf(7, 3), leaf(7, seed=1) if bias else None,
    )  # fmt: skip
