"""Dropout: every site drops, each by its own seed, and the seeds follow from the one that is given."""

import dataclasses

import pytest
import torch

from cramkernels.reference.philox import attention_keep, elementwise_keep
from cramming_train.model.dropout import DropoutSeeds, dropout_add
from tests.model.cases import assert_same, gradients, random_batch, random_model, small
from tests.model.plain import PlainMaskedLM

RATES = {"dropout": 0.2, "attention_dropout": 0.3, "embedding_dropout": 0.4}
CASES = {
    "pre-norm, final norm": small("crammed-bert", **RATES),
    "pre-norm, no final norm": small("crammed-bert-simple", **RATES),
    "post-norm": small("bert-base", **RATES),
    "rope": small("crammed-bert", positions="rope", **RATES),
}
SEED = 2**61 + 12345


class PlainWithDropout(PlainMaskedLM):
    """The plain model with the masks of seed, seed + 1, ... site after site in the order of the forward."""

    def __init__(self, model, seed: int):
        super().__init__(model)
        self.seed = seed

    def next_seed(self) -> torch.Tensor:
        self.seed += 1
        return torch.tensor(self.seed - 1)

    def drop(self, x, rate):
        if rate == 0:
            return x
        keep = elementwise_keep(self.next_seed(), x.shape[0] * x.shape[1], x.shape[2], rate).view(x.shape)
        return torch.where(keep, x / (1 - rate), 0)

    def mix(self, q, k, v, visible):
        probabilities = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(~visible, -torch.inf).softmax(-1)
        if self.a.attention_dropout:
            starts = torch.arange(q.shape[0]) * q.shape[2]
            keep = attention_keep(self.next_seed(), starts, q.shape[1], q.shape[2], self.a.attention_dropout)
            probabilities = torch.where(keep, probabilities / (1 - self.a.attention_dropout), 0)
        return probabilities @ v


def loss_of_every_row(model, batch, seed):
    """The model's own loss with all rows computed, so that masks of rows can be compared one to one."""
    ids_T, labels_M, positions_M, cu_seqlens, max_seqlen = batch.arguments
    hidden = model.encoder(ids_T, cu_seqlens, max_seqlen, dropout_seed=seed)
    return torch.nn.functional.cross_entropy(model.logits(hidden)[positions_M], labels_M)


@pytest.mark.parametrize("case", CASES)
def test_every_site_by_the_documented_masks(case):
    model, batch = random_model(CASES[case]), random_batch(CASES[case])
    plain = PlainWithDropout(model, SEED)
    expected = plain.loss(batch.ids_BS, batch.labels_M, batch.positions_M)
    expected.backward()
    loss = loss_of_every_row(model, batch, SEED)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-9, atol=1e-11)
    expected_gradients = {name: w.grad for name, w in plain.weights.items()}
    assert_same(gradients(model, loss), expected_gradients, rtol=1e-8, atol=1e-10)
    assert plain.seed - SEED == 1 + 3 * 3  # embedding, and in each block attention and two branches


@pytest.mark.parametrize("field", RATES)
def test_each_rate_is_its_own(field):
    """With all other rates zero the one left changes the loss, as the plain model says."""
    others = {name: 0.0 for name in RATES if name != field}
    model = random_model(small("crammed-bert", **{**others, field: 0.25}))
    batch = random_batch(model.architecture)
    with torch.no_grad():
        loss = loss_of_every_row(model, batch, 7)
        expected = PlainWithDropout(model, 7).loss(batch.ids_BS, batch.labels_M, batch.positions_M)
        assert float(loss) == pytest.approx(float(expected), rel=1e-9)
        assert abs(float(loss) - float(model(*batch.arguments).loss)) > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_the_seed_alone_decides(case):
    model, batch = random_model(CASES[case], dtype=torch.float32), random_batch(CASES[case])
    with torch.no_grad():
        first = model(*batch.arguments, dropout_seed=SEED).loss
        torch.manual_seed(99)
        torch.rand(10)
        assert torch.equal(model(*batch.arguments, dropout_seed=SEED).loss, first)
        assert torch.equal(model(*batch.arguments, dropout_seed=torch.tensor(SEED)).loss, first)
        assert not torch.equal(model(*batch.arguments, dropout_seed=SEED + 50).loss, first)
        off = model(*batch.arguments).loss
        assert not torch.equal(off, first) and torch.equal(model.train()(*batch.arguments).loss, off)


def test_rates_of_zero_drop_nothing():
    architecture = dataclasses.replace(CASES["post-norm"], dropout=0.0, attention_dropout=0.0, embedding_dropout=0.0)
    model, batch = random_model(architecture), random_batch(architecture)
    with torch.no_grad():
        assert torch.equal(model(*batch.arguments, dropout_seed=3).loss, model(*batch.arguments).loss)


def test_the_masked_rows_alone_drop_as_much():
    """With dropout the last block's masks belong to the rows computed: another draw, of the same distribution."""
    architecture = small("crammed-bert", layers=1, **RATES)
    model, batch = random_model(architecture), random_batch(architecture)
    with torch.no_grad():
        pairs = [(float(model(*batch.arguments, dropout_seed=seed).loss), float(loss_of_every_row(model, batch, seed)))
                 for seed in range(0, 20_000, 100)]  # fmt: skip
    rows_alone, every_row = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    difference = rows_alone - every_row
    assert difference.abs().max() > 1e-3
    assert difference.mean().abs() < 4 * difference.std() / len(difference) ** 0.5
    assert float(rows_alone.std() / every_row.std()) == pytest.approx(1, abs=0.25)


def test_seeds_count_up_and_only_where_something_drops():
    seeds = DropoutSeeds(40)
    assert not seeds.off and seeds.options(0.5) == {"dropout_p": 0.5, "seed": 40}
    assert seeds.options(0.0) == {} and seeds.next() == 41
    nothing = DropoutSeeds(None)
    assert nothing.off and nothing.options(0.5) == {}


def test_dropout_add_keeps_the_mean_and_passes_the_residual():
    generator = torch.Generator().manual_seed(0)
    x, residual = torch.randn(2, 300, 41, generator=generator, dtype=torch.float64).unbind(0)
    x.requires_grad_(), residual.requires_grad_()
    total = dropout_add(x, residual, 0.3, 11)
    kept = total != residual
    assert float(kept.double().mean()) == pytest.approx(0.7, abs=0.02)
    torch.testing.assert_close(total, residual + kept * x / 0.7)
    weights = torch.randn(total.shape, generator=generator, dtype=torch.float64)
    dx, dresidual = torch.autograd.grad((total * weights).sum(), (x, residual))
    torch.testing.assert_close(dx, weights * kept / 0.7)
    torch.testing.assert_close(dresidual, weights)
