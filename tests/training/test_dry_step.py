"""A micro-batch counted on fake tensors, against one that runs."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cramming_train.dry_step import ATTENTION, LOSS, MATMUL, dry_step
from cramming_train.masking import masking_counts
from cramming_train.model import build_model, flops_per_token
from cramming_train.recipes import BUNDLES, apply_overrides
from tests.cramkernels.test_mlm_loss_memory import peak_of_the_allocator

SMALL = [
    "architecture.layers=3", "architecture.hidden=64", "architecture.heads=2", "architecture.ffn_hidden=256",
    "data.vocab_size=512", "data.row_length=64",
]  # fmt: skip
ROWS = 16


def small(name, *overrides):
    return apply_overrides(BUNDLES[name], [*SMALL, *overrides])


def a_real_step(recipe, rows):
    """Forward and backward on the CPU, gradients of an earlier micro-batch being there."""
    data, t = recipe.data, recipe.training
    masked = masking_counts(data.row_length, t.masking_rate, t.random_share, t.keep_share).masked
    model = build_model(recipe.architecture, data.vocab_size, seed=0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    generator = torch.Generator().manual_seed(0)
    ids_T = torch.randint(data.vocab_size, (rows * data.row_length,), generator=generator)
    positions_M = torch.rand(rows, data.row_length, generator=generator).argsort(1)[:, :masked]
    positions_M = (positions_M + torch.arange(rows).unsqueeze(1) * data.row_length).reshape(-1)
    cu_seqlens = torch.arange(0, rows * data.row_length + 1, data.row_length, dtype=torch.int32)

    def step():
        model(ids_T, ids_T[positions_M], positions_M, cu_seqlens, data.row_length).loss.backward()

    return step


@pytest.mark.parametrize("name", ["crammed-bert", "crammed-bert-simple", "bert-base"])
def test_the_memory_is_what_a_real_step_takes(name):
    """Peaks of the allocator; the reference's own scratch, a few MB whatever the rows, is not in the count."""
    recipe = small(name, "training.dropout=false")
    counted = dry_step(recipe, 128, torch.float32, "cpu").activation_bytes
    step = a_real_step(recipe, 128)
    step()
    assert counted > 80e6
    assert 0.99 * counted <= peak_of_the_allocator(step) <= counted + (8 << 20)


def test_what_is_saved_for_the_backward_is_not_missed():
    """More layers take exactly what a block saves: the difference of two peaks is that of real ones."""

    def peaks(layers):
        recipe = small("crammed-bert", f"architecture.layers={layers}", "training.dropout=false")
        step = a_real_step(recipe, ROWS)
        step()
        return dry_step(recipe, ROWS, torch.float32, "cpu").activation_bytes, peak_of_the_allocator(step)

    (few, real_few), (many, real_many) = peaks(2), peaks(8)
    assert many > 2 * few and many - few == pytest.approx(real_many - real_few, rel=0.01)


@pytest.mark.parametrize("name", BUNDLES)
def test_products_are_the_nominal_ones_less_what_the_last_block_saves(name):
    recipe = small(name, "training.dropout=false")
    a, data, t = recipe.architecture, recipe.data, recipe.training
    counted = dry_step(recipe, ROWS, torch.float16, "cuda")
    masked = masking_counts(data.row_length, t.masking_rate, t.random_share, t.keep_share).masked
    nominal = ROWS * data.row_length * flops_per_token(a, data.vocab_size, data.row_length, masked / data.row_length)
    on_masked_rows = a.hidden**2 + a.hidden * a.ffn_hidden + a.ffn_inner * a.hidden
    attention = a.layers * 12 * ROWS * data.row_length**2 * a.hidden
    expected = nominal - attention - 6 * ROWS * (data.row_length - masked) * on_masked_rows
    assert sum(o.flops for o in counted.operations if o.kind in (MATMUL, LOSS)) == expected
    # the backward multiplies queries and keys again
    assert sum(o.flops for o in counted.operations if o.kind == ATTENTION) == attention * 14 / 12


@settings(max_examples=8, deadline=None)
@given(rows=st.integers(1, 64), more=st.integers(1, 64), name=st.sampled_from(sorted(BUNDLES)))
def test_more_rows_take_more_memory_and_more_work(rows, more, name):
    few, many = (dry_step(small(name), n, torch.float16, "cuda") for n in (rows, rows + more))
    assert few.activation_bytes < many.activation_bytes and few.tokens < many.tokens
    for quantity in ("flops", "bytes"):
        totals = [sum(getattr(o, quantity) for o in step.operations) for step in (few, many)]
        assert totals[0] < totals[1]
    assert (few.parameter_bytes, few.moment_bytes) == (many.parameter_bytes, many.moment_bytes)


def test_sixteen_bits_take_less_memory_and_dropout_no_less():
    recipe = small("crammed-bert")
    half, full = (dry_step(recipe, 64, dtype, "cuda") for dtype in (torch.float16, torch.float32))
    assert 0.4 * full.activation_bytes < half.activation_bytes < 0.8 * full.activation_bytes
    training = dataclasses.replace(recipe.training, dropout=True)
    dropped = dry_step(dataclasses.replace(recipe, training=training), 64, torch.float16, "cuda")
    assert dropped.activation_bytes >= half.activation_bytes


def test_no_device_and_no_data_are_needed_for_a_model_that_no_memory_here_would_hold():
    huge = apply_overrides(BUNDLES["bert-large-izsak"], ["architecture.layers=96", "architecture.hidden=8192"])
    step = dry_step(huge, 512, torch.bfloat16, "cuda")
    assert step.bytes > 1e12 and step.tokens == 512 * 128
