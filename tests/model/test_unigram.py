"""A decoder's bias at the tokens' log-frequencies: the first loss is the unigram model's."""

import dataclasses

import numpy as np
import pytest
import torch

from cramming_train.model import build_model, start_at_unigram
from cramming_train.recipes import get_recipe
from cramming_train.validation import held_out_loss
from tests.model.cases import small


def test_softmax_of_the_bias_is_the_unigram_model(small_data):
    model = build_model(small("cram", max_length=32), small_data.vocab_size, seed=0)
    start_at_unigram(model, small_data.train)
    rows = small_data.train.read(0, len(small_data.train))
    counts = 1 + np.bincount(rows.reshape(-1), minlength=small_data.vocab_size)
    bias = model.decoder_bias.detach()
    torch.testing.assert_close(bias.softmax(0), torch.from_numpy(counts / counts.sum()).float(), rtol=1e-4, atol=1e-7)
    assert abs(float(bias.mean())) < 1e-4


def test_the_first_loss_is_that_of_the_unigram_model(small_data):
    model = build_model(small("cram", max_length=32), small_data.vocab_size, seed=0)
    start_at_unigram(model, small_data.train)
    loss = held_out_loss(model, small_data.validation, device=torch.device("cpu"), max_rows=512)["loss"]
    assert loss == pytest.approx(small_data.metadata["unigram_loss"], abs=0.15)


def test_of_many_rows_a_sample_is_counted(small_data, monkeypatch):
    """Spread over all of them."""
    monkeypatch.setattr("cramming_train.model.unigram.SAMPLE_ROWS", 10)
    model = build_model(small("cram", max_length=32), small_data.vocab_size, seed=0)
    start_at_unigram(model, small_data.train)
    total = len(small_data.train)
    counts = np.bincount(
        small_data.train.take(np.arange(10) * total // 10).reshape(-1), minlength=small_data.vocab_size
    )
    expected = torch.from_numpy(np.log1p(counts)).float()
    torch.testing.assert_close(model.decoder_bias.detach(), expected - expected.mean(), rtol=1e-4, atol=1e-5)


def test_without_a_bias_the_recipe_is_refused():
    recipe = get_recipe("crammed-bert-mini")
    with pytest.raises(ValueError, match="training.unigram_bias: the architecture has no decoder_bias"):
        dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, unigram_bias=True))
