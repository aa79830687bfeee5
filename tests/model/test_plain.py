"""The shipped plain loss against the model and against the tests' own plain model, for every architecture."""

import dataclasses

import pytest
import torch

from cramming_train.model.plain import plain_loss
from cramming_train.recipes import ARCHITECTURES
from tests.model.cases import assert_same, gradients, random_batch, random_model, small
from tests.model.plain import PlainMaskedLM

CASES = {name: small(name) for name in ARCHITECTURES}
CASES["rope"] = small("crammed-bert", positions="rope")
CASES["rope, documents"] = small("crammed-bert", positions="rope", document_attention=True)
CASES["documents"] = small("bert-base", document_attention=True)
CASES["window"] = small("crammed-bert", window=3)
CASES["documents, window"] = small("crammed-bert", window=2, document_attention=True)
CASES["windows but in the first"] = small("crammed-bert", layers=2, window=2, global_every=2)
CASES["gate first"] = small("crammed-bert", gate="first")


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients(name):
    model, batch = random_model(CASES[name]), random_batch(CASES[name])
    plain = plain_loss(model, *batch.arguments)
    ours = model(*batch.arguments).loss
    oracle = PlainMaskedLM(model).loss(batch.ids_BS, batch.labels_M, batch.positions_M)
    torch.testing.assert_close(plain, oracle, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(plain, ours, rtol=1e-9, atol=1e-11)
    assert_same(gradients(model, plain), gradients(model, ours), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["crammed-bert", "bert-base", "rope, documents", "window"])
def test_a_window_of_the_day(name):
    """Beside the architecture's own: the narrower counts. The same weights see more with a wider one."""
    model, batch = random_model(CASES[name]), random_batch(CASES[name])
    plain, ours = plain_loss(model, *batch.arguments, window=2), model(*batch.arguments, window=2).loss
    torch.testing.assert_close(plain, ours, rtol=1e-9, atol=1e-11)
    assert_same(gradients(model, plain), gradients(model, ours), rtol=1e-8, atol=1e-10)
    narrow = dataclasses.replace(CASES[name], window=2)
    own = random_model(narrow)
    own.load_state_dict(model.state_dict())
    assert own(*batch.arguments).loss.equal(ours) and not model(*batch.arguments).loss.equal(ours)
    assert model(*batch.arguments, window=13).loss.equal(model(*batch.arguments).loss)


def test_rows_have_to_be_full():
    model, batch = random_model(CASES["window"]), random_batch(CASES["window"])
    ids_T, *rest = batch.arguments
    with pytest.raises(ValueError, match="want full rows of max_seqlen = 13"):
        plain_loss(model, ids_T[:-1], *rest)
