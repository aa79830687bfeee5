"""The encoder of cramming_train, as it is, on the CUDA kernels: loss and gradients of two layers."""

import contextlib
import itertools

import pytest
import torch

from tests.cramkernels.compare import assert_error_rule
from tests.model.cases import gradients, random_batch, random_model, small
from tests.simulation.cuda import simulated

ROWS = 2
SHAPE = {"layers": 2, "hidden": 64, "heads": 2, "ffn_hidden": 48}
MODELS = {
    "crammed-bert": (small("crammed-bert", **SHAPE, max_length=40), 40),
    "with rotary embedding": (small("crammed-bert", **SHAPE, max_length=40, positions="rope"), 40),
    "long sequences": (small("crammed-bert", **SHAPE, max_length=140, positions="rope"), 140),
}
FAMILIES = {"ck_attention", "ck_layer", "ck_add", "ck_geglu", "ck_loss", "ck_reduce"}


def results(model, batch, dtype) -> dict[str, torch.Tensor]:
    """Loss and gradients, with autocast to 16 bits as in training."""
    half = torch.autocast("cpu", dtype) if dtype == torch.bfloat16 else contextlib.nullcontext()
    with half:
        out = model(*batch.arguments)
    return {"loss": out.loss.detach(), **gradients(model, out.loss)}


def with_usual_errors(reference, model, exact, dtype, architecture, length) -> dict[str, torch.Tensor]:
    """Plain PyTorch's results, where that is one number with the largest error of eight batches: one may be exact."""
    batches = [random_batch(architecture, rows=ROWS, length=length, seed=seed) for seed in range(1, 9)]
    both = [(results(model, batch, dtype), results(exact, batch, torch.float64)) for batch in batches]
    usual = dict(reference)
    for name, number in reference.items():
        if number.numel() == 1:
            error = max((plain[name] - right[name]).abs().item() for plain, right in both)
            usual[name] = both[0][1][name] + error
    return usual


LONGEST_TO_RUN = ("long sequences", torch.float32)
EVERY_MODEL = [
    pytest.param(*case, marks=pytest.mark.exhaustive if case == LONGEST_TO_RUN else ())
    for case in itertools.product(MODELS, (torch.float32, torch.bfloat16))
]


@pytest.mark.parametrize(("name", "dtype"), EVERY_MODEL, ids=str)
def test_two_layers(name, dtype, proof):
    architecture, length = MODELS[name]
    batch = random_batch(architecture, rows=ROWS, length=length)
    model = random_model(architecture, dtype=torch.float32)
    with torch.no_grad():  # about as large as a training's: larger ones magnify each rounding by chance
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 0.3
    exact = random_model(architecture)
    exact.load_state_dict(model.state_dict())
    expected = results(exact, batch, torch.float64)
    reference = with_usual_errors(results(model, batch, dtype), model, exact, dtype, architecture, length)
    with simulated(80) as executed:
        ours = results(model, batch, dtype)
    symbols = executed.symbols()
    assert {"_".join(symbol.split("_")[:2]) for symbol in symbols} == FAMILIES
    ways = ("fp32",) if dtype == torch.float32 else ("long_forward", "mid_backward") if length > 128 else ("short",)
    launches = sum(f"ck_attention_{way}_" in symbol for way in ways for symbol in symbols)
    assert launches == 2 * (3 if dtype == torch.float32 else 2)
    proof("CUDA C++ sm_80 executed", symbols)
    assert_error_rule(ours, reference, expected, dtype)
