"""Rotary embedding really rotates, and by the right angles; sinusoids are the published ones."""

import math

import pytest
import torch

from cramkernels import rotary
from cramming_train.model.embedding import rope_tables, sinusoids
from tests.model.cases import random_model, small
from tests.model.plain import rotated


def turned(x_HD, position, tables):
    """One query of several heads at a position of a long sequence."""
    qkv = torch.randn(position + 1, 3, *x_HD.shape, generator=torch.Generator().manual_seed(9), dtype=x_HD.dtype)
    qkv[position, 0] = x_HD
    return rotary(qkv, *tables, torch.tensor([0, position + 1], dtype=torch.int32))[position, 0]


def test_tables_are_cosine_and_sine_of_the_angles():
    cos, sin = rope_tables(301, 14, 10000.0)
    assert cos.shape == sin.shape == (301, 7) and cos.dtype == sin.dtype == torch.float32
    for position, pair in ((0, 0), (1, 0), (1, 6), (17, 3), (300, 1), (300, 6)):
        angle = position * 10000.0 ** (-2 * pair / 14)
        assert float(cos[position, pair]) == pytest.approx(math.cos(angle), abs=1e-7)
        assert float(sin[position, pair]) == pytest.approx(math.sin(angle), abs=1e-7)


@pytest.mark.parametrize("base", [10000.0, 160000.0])
def test_rotation_is_the_complex_one_and_leaves_values_alone(base):
    tables = tuple(table.double() for table in rope_tables(150, 10, base))
    qkv = torch.randn(19 + 140, 3, 3, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = rotary(qkv, *tables, torch.tensor([0, 19, 159], dtype=torch.int32))
    position = torch.cat([torch.arange(19), torch.arange(140)]).unsqueeze(0)
    for part in range(2):
        expected = rotated(qkv[:, part].transpose(0, 1).unsqueeze(0), position, base)[0].transpose(0, 1)
        torch.testing.assert_close(result[:, part], expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(result[:, 2], qkv[:, 2])
    moved = (result[:, :2] != qkv[:, :2]).any(-1).all(-1).all(-1)
    assert not moved[0] and not moved[19] and moved[1:19].all() and moved[20:].all()  # position 0 stays


def test_scores_depend_on_the_distance_alone():
    """q at m and k at n give q . R(n - m) k for every m: the property that RoPE was made for."""
    generator = torch.Generator().manual_seed(1)
    tables = tuple(table.double() for table in rope_tables(220, 12, 10000.0))
    query, key = torch.randn(2, 1, 12, generator=generator, dtype=torch.float64)
    by_distance = {}
    for distance in (0, 1, 7, 90):
        scores = [
            float((turned(query, start + distance, tables) * turned(key, start, tables)).sum())
            for start in (0, 3, 50, 128)
        ]
        assert max(scores) - min(scores) < 1e-5, distance
        by_distance[distance] = scores[0]
    assert by_distance[0] == pytest.approx(float((query * key).sum()), abs=1e-5)
    assert len({round(score, 3) for score in by_distance.values()}) == 4


def test_the_encoder_with_rope_knows_order_and_not_place():
    """The encoder sees relative positions: a window of attention sees the same wherever its tokens stand."""
    model = random_model(small("crammed-bert", positions="rope", window=1, layers=2, max_length=40))
    middle = torch.randint(7, 67, (9,), generator=torch.Generator().manual_seed(3))

    def hidden(ids_T):
        cu_seqlens = torch.tensor([0, len(ids_T)], dtype=torch.int32)
        return model.encoder(ids_T, cu_seqlens, len(ids_T))

    with torch.no_grad():
        # two layers of a window of 1 reach two tokens: the inner five do not see what stands before and after
        near = hidden(torch.cat([torch.full((3,), 11), middle, torch.full((3,), 12)]))[3 + 2 : 3 + 7]
        far = hidden(torch.cat([torch.full((25,), 13), middle, torch.full((4,), 14)]))[25 + 2 : 25 + 7]
        backwards = hidden(torch.cat([torch.full((3,), 12), middle.flip(0), torch.full((3,), 11)])).flip(0)[5:10]
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-5)
    assert (near - backwards).abs().max() > 1e-2


def test_sinusoids_are_the_published_ones():
    table = sinusoids(270, 22)
    assert table.shape == (270, 22) and table.dtype == torch.float32
    for position in (0, 1, 5, 127, 128, 269):
        for dimension in (0, 1, 2, 11, 20, 21):
            angle = position / 10000 ** (2 * (dimension // 2) / 22)
            expected = math.sin(angle) if dimension % 2 == 0 else math.cos(angle)
            assert float(table[position, dimension]) == pytest.approx(expected, abs=1e-7)


def test_scaled_sinusoidal_embedding_by_hand():
    """LN(E[x] + s * PE), positions from 0 in each sequence."""
    model = random_model(small("crammed-bert"))
    embedding = model.encoder.embedding
    ids_T = torch.tensor([9, 30, 30, 11, 12])
    rows = []
    for token, position in zip(ids_T, [0, 1, 2, 0, 1], strict=True):
        e = embedding.tokens.weight[token] + embedding.position_scale * sinusoids(3, 24)[position].double()
        variance = ((e - e.mean()) ** 2).mean()
        rows.append((e - e.mean()) / (variance + 1e-12).sqrt() * embedding.norm.weight + embedding.norm.bias)
    cu_seqlens = torch.tensor([0, 3, 5], dtype=torch.int32)
    captured = []
    embedding.register_forward_hook(lambda module, inputs, output: captured.append(output))
    model.encoder(ids_T, cu_seqlens, 3)
    torch.testing.assert_close(captured[0], torch.stack(rows), rtol=1e-10, atol=1e-12)
    assert (captured[0][1] - captured[0][2]).abs().max() > 1e-2  # one token at two places


@pytest.mark.parametrize("positions", ["learned", "scaled-sinusoidal", "rope"])
def test_which_parameters_positions_have(positions):
    model = random_model(small("crammed-bert", positions=positions, max_length=21))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if "position" in name}
    expected = {
        "learned": {"encoder.embedding.positions.weight": (21, 24)},
        "scaled-sinusoidal": {"encoder.embedding.position_scale": (1,)},
        "rope": {},
    }
    assert shapes == expected[positions]
    # tables are made, not stored: a checkpoint holds weights alone
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
