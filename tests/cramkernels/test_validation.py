"""Every wrong argument is a ValueError that names the argument, what was given and what is accepted."""

import re

import pytest
import torch

import cramkernels
from cramkernels import attention, pack_padded, rotary
from tests.cramkernels.cases import cumulative
from tests.cramkernels.strategies import random

FP32 = torch.float32


def good(operation):
    """Arguments that the operation takes."""
    row = random(6, seed=2, dtype=FP32)
    norm = dict(x=random(4, 6, seed=1, dtype=FP32), weight=row, bias=row, eps=1e-5)
    table = random(5, 4, seed=3, dtype=FP32)
    qkv = dict(qkv_T3HD=random(7, 3, 2, 8, seed=4, dtype=FP32), cu_seqlens=cumulative((4, 3)))
    return {
        "attention": dict(**qkv, max_seqlen=4, rope=(table, table)),
        "rotary": dict(**qkv, cos=table, sin=table),
        "layer_norm": norm,
        "add_layer_norm": dict(norm, residual=norm["x"]),
        "layer_norm_gelu": norm,
        "gelu_layer_norm": dict(norm, linear_bias=row),
        "geglu": dict(x_2F=norm["x"], linear_bias=row),
        "mlm_loss": dict(
            hidden_TN=norm["x"], weight_VN=random(9, 6, seed=5, dtype=FP32), bias=random(9, seed=6, dtype=FP32),
            labels_M=torch.tensor([8, 0, 3]), positions_M=torch.tensor([0, 3, 3]),
        ),
    }[operation]  # fmt: skip


OPERATIONS = [
    "attention", "rotary", "layer_norm", "add_layer_norm", "layer_norm_gelu", "gelu_layer_norm", "geglu", "mlm_loss",
]  # fmt: skip
ATTENTION = ("attention", "rotary")
NORMS = OPERATIONS[2:6]
# (operations, argument, wrong value, what the message says after "argument: ")
WRONG = [
    (ATTENTION, "qkv_T3HD", [1.0], "got list, want a tensor"),
    (ATTENTION, "qkv_T3HD", torch.ones(7, 3, 2, 8, dtype=torch.int32), "got dtype torch.int32, want one of: torch.fl"),
    (ATTENTION, "qkv_T3HD", torch.ones(7, 6, 8), "got shape (7, 6, 8), want 4 dimensions"),
    (ATTENTION, "qkv_T3HD", torch.ones(7, 2, 2, 8), "got shape (7, 2, 2, 8), want [T, 3, H, D] with even D"),
    (ATTENTION, "qkv_T3HD", torch.ones(7, 3, 2, 7), "got shape (7, 3, 2, 7), want [T, 3, H, D] with even D"),
    (ATTENTION, "qkv_T3HD", torch.ones(7, 3, 8, 2).mT, "got strides (48, 16, 1, 2), want the last dimension cont"),
    (ATTENTION, "cu_seqlens", [0, 4, 7], "got list, want a tensor"),
    (ATTENTION, "cu_seqlens", torch.tensor([0, 4, 7]), "got torch.int64 of shape (3,), want a vector of torch.int32"),
    (ATTENTION, "cu_seqlens", torch.zeros(2, 2, dtype=torch.int32), "got torch.int32 of shape (2, 2), want a vector"),
    (ATTENTION, "cu_seqlens", torch.zeros(0, dtype=torch.int32), "got no elements, want [B + 1]"),
    (ATTENTION, "cu_seqlens", torch.zeros(3, dtype=torch.int32, device="meta"), "got device meta, want cpu"),
    (ATTENTION, "cu_seqlens", cumulative((4, 4)), "want ascending values within [0, T = 7]"),
    (ATTENTION, "cu_seqlens", cumulative((4, -2)), "want ascending values within [0, T = 7]"),
    (ATTENTION, "cu_seqlens", cumulative((4, 3), -1), "want ascending values within [0, T = 7]"),
    (["attention"], "max_seqlen", 3, "got 3, but a sequence has 4 tokens"),
    (["attention"], "max_seqlen", 0, "got 0, but a sequence has 4 tokens"),
    (["attention"], "max_seqlen", -1, "got -1, want a Python int >= 0"),
    (["attention"], "max_seqlen", 4.0, "got 4.0, want a Python int >= 0"),
    (["attention"], "max_seqlen", torch.tensor(4), "got tensor(4), want a Python int >= 0"),
    (["attention"], "window", -1, "got -1, want an int >= 0 or None"),
    (["attention"], "window", 2.0, "got 2.0, want an int >= 0 or None"),
    (["attention"], "key_mask", torch.ones(3, dtype=torch.bool), "got 3 elements, want "),
    (["attention"], "key_mask", torch.ones(7), "got torch.float32 of shape (7,), want a vector of torch.bool"),
    (["rotary"], "cos", torch.ones(5, 3), "got shape (5, 3), want [>= "),
    (["rotary"], "cos", torch.ones(3, 4), "got shape (3, 4), want [>= "),
    (["rotary"], "cos", torch.ones(5, 4, dtype=torch.float16), "got dtype torch.float16, want float32"),
    (["rotary"], "sin", torch.ones(5), "got shape (5,), want 2 dimensions"),
    (["rotary"], "sin", torch.ones(5, 4, device="meta"), "got device meta, want cpu"),
    (NORMS, "x", 3, "got int, want a tensor"),
    (NORMS, "x", torch.ones(4, 6, dtype=torch.int64), "got dtype torch.int64, want one of: torch.float32, torch.fl"),
    (NORMS, "x", torch.ones(4, 0), "got shape (4, 0), want at least one element in the last dimension"),
    (NORMS, "x", torch.ones(()), "got shape (), want at least one element in the last dimension"),
    (NORMS, "weight", None, "got NoneType, want a tensor"),
    (NORMS, "weight", torch.ones(5), "got 5 elements, want 6"),
    (NORMS, "weight", torch.ones(1, 6), "got shape (1, 6), want 1 dimensions"),
    (NORMS, "weight", torch.ones(6).half(), "got dtype torch.float16, want torch.float32 (or float32 beside 16-bit"),
    (NORMS, "bias", torch.ones(7), "got 7 elements, want 6"),
    (NORMS, "bias", torch.ones(6, device="meta"), "got device meta, want cpu"),
    (NORMS, "eps", -1e-5, "got -1e-05, want a number >= 0"),
    (NORMS, "eps", float("nan"), "got nan, want a number >= 0"),
    (["add_layer_norm"], "residual", torch.ones(3, 6), "got shape (3, 6), want that of x, (4, 6)"),
    (["add_layer_norm"], "residual", torch.ones(4, 6, device="meta"), "got device meta, want cpu"),
    (["gelu_layer_norm", "geglu"], "linear_bias", torch.ones(5), "got 5 elements, want 6"),
    (["layer_norm_gelu", "gelu_layer_norm", "geglu"], "approximate", "erf", "got 'erf', want 'none' (erf) or 'tanh'"),
    (["geglu"], "x_2F", torch.ones(4, 5), "got shape (4, 5), want an even last dimension"),
    (["geglu"], "x_2F", torch.ones(()), "got shape (), want an even last dimension"),
    (["geglu"], "gate", "left", "got 'left', want 'second' or 'first'"),
    (["mlm_loss"], "hidden_TN", torch.ones(4), "got shape (4,), want 2 dimensions"),
    (["mlm_loss"], "weight_VN", torch.ones(9, 5), "got shape (9, 5), want [V, 6]"),
    (["mlm_loss"], "weight_VN", torch.ones(9, 6).half(), "got dtype torch.float16, want torch.float32 (or float32"),
    (["mlm_loss"], "bias", torch.ones(8), "got 8 elements, want 9"),
    (["mlm_loss"], "labels_M", torch.ones(3), "got torch.float32 of shape (3,), want a vector of torch.int64"),
    (["mlm_loss"], "labels_M", torch.ones(4, dtype=torch.int64), "got 4 labels, want 3"),
    (["mlm_loss"], "positions_M", torch.ones(1, 3, dtype=torch.int64), "got torch.int64 of shape (1, 3), want a vec"),
    (["mlm_loss"], "z_loss", -0.1, "got -0.1, want a number >= 0"),
    (["mlm_loss"], "label_smoothing", 1.0, "got 1.0, want a number in [0, 1)"),
    (["mlm_loss"], "label_smoothing", -0.1, "got -0.1, want a number in [0, 1)"),
    (["mlm_loss"], "softcap", 0.0, "got 0.0, want a positive number or None"),
    (["mlm_loss"], "z_loss", float("nan"), "got nan, want a number >= 0"),
    (["mlm_loss"], "weight_VN", torch.ones(0, 6), "got shape (0, 6), want [V, 6]"),
    (["mlm_loss"], "grad_scale", 0.0, "got 0.0, want a positive number"),
    (["mlm_loss"], "grad_scale", float("inf"), "got inf, want a positive number"),
    (
        ["mlm_loss"],
        "grad_scale",
        torch.ones(2),
        "got torch.float32 of shape (2,) on cpu, want a number or a flo",
    ),
    (
        ["mlm_loss"],
        "grad_scale",
        torch.tensor(2),
        "got torch.int64 of shape () on cpu, want a number or a floa",
    ),
    (["mlm_loss"], "logits_bytes", 0, "got 0, want a positive number"),
    (["mlm_loss"], "mode", "fast", "got 'fast', want 'chunked' or 'recompute'"),
    (["attention", "add_layer_norm"], "dropout_p", 1.0, "got 1.0, want a number in [0, 1)"),
    (["attention", "add_layer_norm"], "dropout_p", -0.1, "got -0.1, want a number in [0, 1)"),
    (["add_layer_norm"], "residual", torch.ones(4, 6).bfloat16(), "got dtype torch.bfloat16, want torch.flo"),
]
EACH = [
    pytest.param(operation, name, value, words, id=f"{operation}-{name}-{number}")
    for number, (operations, name, value, words) in enumerate(WRONG)
    for operation in operations
]


@pytest.mark.parametrize(("operation", "name", "value", "words"), EACH)
def test_a_wrong_argument(operation, name, value, words):
    arguments = {**good(operation), name: value}
    with pytest.raises(ValueError, match="^" + re.escape(f"{name}: {words}")):
        getattr(cramkernels, operation)(**arguments)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_right_arguments(operation):
    """Else the test above could pass for another argument's sake."""
    getattr(cramkernels, operation)(**good(operation))


@pytest.mark.parametrize("operation", ["attention", "add_layer_norm"])
@pytest.mark.parametrize(
    ("seed", "words"),
    [
        (None, "got None, want an int or an int64 scalar tensor when dropout_p > 0"),
        (torch.tensor([1, 2]), "got torch.int64 of shape (2,), want an int64 scalar"),
        (torch.tensor(1.0), "got torch.float32 of shape (), want an int64 scalar"),
    ],
    ids=["none", "two", "float"],
)
def test_a_wrong_seed(operation, seed, words):
    with pytest.raises(ValueError, match="^" + re.escape(f"seed: {words}")):
        getattr(cramkernels, operation)(**good(operation), dropout_p=0.5, seed=seed)


def test_a_rope_table_shorter_than_the_sequences():
    arguments = good("attention")
    short = torch.ones(3, 4)
    with pytest.raises(ValueError, match=re.escape("cos: got shape (3, 4), want [>= 4, 4]")):
        attention(**dict(arguments, rope=(short, short)))
    with pytest.raises(ValueError, match="sin: got shape"):
        rotary(arguments["qkv_T3HD"], arguments["rope"][0], torch.ones(5, 3), arguments["cu_seqlens"])


def test_masters_in_fp32_are_welcome_beside_16_bit_activations_and_not_the_reverse():
    x, weight = torch.ones(4, 6, dtype=torch.bfloat16), torch.ones(6)
    assert cramkernels.layer_norm(x, weight, eps=1e-5).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="weight: got dtype torch.float16"):
        cramkernels.layer_norm(x, weight.half(), eps=1e-5)
    with pytest.raises(ValueError, match="weight: got dtype torch.float64"):
        cramkernels.layer_norm(x, weight.double(), eps=1e-5)


def test_packing_wants_a_mask_of_the_batchs_shape():
    with pytest.raises(ValueError, match=re.escape("mask_BS: got shape (2, 3), want (2, 4)")):
        pack_padded(torch.ones(2, 4), torch.ones(2, 3))
