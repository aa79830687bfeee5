"""Fresh weights: N(0, init_std) matrices and embeddings, zero biases, unit norms, the same for the same seed."""

import math

import pytest
import torch
from scipy.stats import kstest

from cramming_train.model import build_model
from cramming_train.model.dropout import DropoutSeeds
from cramming_train.recipes import ARCHITECTURES
from tests.model.cases import small

OUTPUTS = ("attention_out.weight", "ffn_out.weight")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_is_as_described(name):
    architecture = small(name, hidden=64, heads=2, ffn_hidden=96, init_std=0.02)
    model = build_model(architecture, 129, seed=3)
    normal = 0
    for parameter_name, parameter in model.named_parameters():
        values = parameter.detach().reshape(-1)
        if "norm" in parameter_name:
            assert (values == (1 if parameter_name.endswith("weight") else 0)).all(), parameter_name
        elif "bias" in parameter_name:
            assert not values.any(), parameter_name
        elif architecture.output_init == "zero" and parameter_name.endswith(OUTPUTS):
            assert not values.any(), parameter_name
        elif parameter_name.endswith("position_scale"):
            assert values.tolist() == [pytest.approx(64**-0.5)]
        else:
            normal += 1
            assert kstest(values.numpy(), "norm", args=(0, 0.02)).pvalue > 1e-4, parameter_name
    embeddings = 2 if architecture.positions == "learned" else 1
    matrices = 2 if architecture.output_init == "zero" else 4
    assert normal == 3 * matrices + embeddings + architecture.head_transform


def test_the_standard_deviation_is_the_recipes():
    model = build_model(small("crammed-bert", hidden=64, heads=2, init_std=0.3), 101, seed=0)
    for name in ("encoder.embedding.tokens.weight", "encoder.blocks.2.qkv.weight"):
        assert float(model.get_parameter(name).detach().std()) == pytest.approx(0.3, rel=0.05)


def test_depth_is_not_scaled_for():
    """The output projections of the last block have the same spread as those of the first."""
    model = build_model(small("crammed-bert", layers=6, hidden=96, heads=2, ffn_hidden=192), 32, seed=0)
    for matrix in ("attention_out", "ffn_out"):
        spreads = [float(getattr(block, matrix).weight.detach().std()) for block in model.encoder.blocks]
        assert spreads == [pytest.approx(0.02, rel=0.05)] * 6


@pytest.mark.parametrize("output_init, factor", [("depth-scaled", 12**-0.5), ("zero", 0.0)])
def test_projections_back_to_the_residual(output_init, factor):
    """Scaled from the same draws: nothing else of the model differs."""
    sizes = {"layers": 6, "hidden": 96, "heads": 2, "ffn_hidden": 192}
    plain = build_model(small("crammed-bert", **sizes), 32, seed=0).state_dict()
    scaled = build_model(small("crammed-bert", **sizes, output_init=output_init), 32, seed=0).state_dict()
    assert sum(name.endswith(OUTPUTS) for name in plain) == 12
    for name, value in plain.items():
        expected = value * factor if name.endswith(OUTPUTS) else value
        torch.testing.assert_close(scaled[name], expected, rtol=1e-6, atol=0)


def test_zero_projections_make_every_block_the_identity():
    """The encoder's states are then the normalised embeddings alone."""
    architecture = small("cram", layers=5)
    model = build_model(architecture, 67, seed=0)
    ids_T, cu_seqlens = torch.randint(7, 67, (26,)), torch.tensor([0, 13, 26], dtype=torch.int32)
    final = model.encoder.final_norm
    with torch.no_grad():
        embedded = model.encoder.embedding(ids_T, cu_seqlens, DropoutSeeds(None))
        expected = torch.nn.functional.layer_norm(embedded, (24,), final.weight, final.bias, final.eps)
        torch.testing.assert_close(model.encoder(ids_T, cu_seqlens, 13), expected)


def weights(**changes):
    arguments = {"architecture": small("bert-base"), "vocab_size": 67, "seed": 5, **changes}
    model = build_model(arguments["architecture"], arguments["vocab_size"], seed=arguments["seed"])
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_the_seed_alone_decides():
    first = weights()
    torch.manual_seed(12)
    again = weights()
    other = weights(seed=6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    matrices = [name for name in first if first[name].dim() == 2]
    assert not any(torch.equal(first[name], other[name]) for name in matrices)


def test_no_two_matrices_are_alike():
    matrices = [value for value in weights().values() if value.dim() == 2]
    firsts = {float(matrix.reshape(-1)[0]) for matrix in matrices}
    assert len(firsts) == len(matrices)


def test_a_fresh_model_predicts_next_to_nothing():
    """The first loss is near ln V: what a uniform guess gets."""
    architecture = small("crammed-bert", hidden=64, heads=2, ffn_hidden=128)
    model = build_model(architecture, 997, seed=0)
    ids_T = torch.randint(7, 997, (64,), generator=torch.Generator().manual_seed(0))
    labels_M = torch.randint(7, 997, (64,), generator=torch.Generator().manual_seed(1))
    cu_seqlens = torch.arange(0, 65, 16, dtype=torch.int32)
    loss = model(ids_T, labels_M, torch.arange(64), cu_seqlens, 16).loss
    assert float(loss.detach()) == pytest.approx(math.log(997), abs=0.15)
