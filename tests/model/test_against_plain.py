"""Every architecture recipe, made small, equals a plain PyTorch model: logits, loss, and every parameter's gradient."""

import pytest
import torch

from cramming_train.recipes import ARCHITECTURES
from tests.model.cases import assert_same, gradients, random_batch, random_model, small
from tests.model.plain import PlainMaskedLM

VARIANTS = {
    "rope": small("crammed-bert", positions="rope"),
    "rope of another base": small("crammed-bert", positions="rope", rope_base=37.0),
    "gate first": small("crammed-bert", gate="first"),
    "window": small("crammed-bert", window=2),
    "window of nothing but the token": small("bert-base", window=0),
    "documents": small("crammed-bert", document_attention=True),
    "documents, learned positions": small("bert-base", document_attention=True),
    "documents, rope and a window": small("crammed-bert", positions="rope", document_attention=True, window=3),
    "post-norm with a final norm": small("bert-base", final_norm=True),
    "pre-norm without a final norm, gated": small("crammed-bert", final_norm=False, positions="learned"),
    "gated, with biases and head transform": small(
        "crammed-bert", linear_bias=True, head_transform=True, decoder_bias=True
    ),
    "head transform without biases": small("bert-base", linear_bias=False, decoder_bias=False),
    "no norm before the first attention": small("bert-base", norm="pre", first_attention_norm=False),
    "no norm before the first attention, one layer": small("crammed-bert", first_attention_norm=False, layers=1),
    "one layer, one head": small("crammed-bert", layers=1, heads=1),
}
CASES = {**{name: small(name) for name in ARCHITECTURES}, **VARIANTS}
# Both sides round their tables of positions to fp32, everything else is fp64
TIGHT = {"rtol": 1e-9, "atol": 1e-11}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_all_gradients(case):
    architecture = CASES[case]
    model, batch = random_model(architecture), random_batch(architecture)
    plain = PlainMaskedLM(model)

    expected = plain.loss(batch.ids_BS, batch.labels_M, batch.positions_M)
    expected.backward()
    result = model(*batch.arguments)

    torch.testing.assert_close(result.loss, expected.detach(), **TIGHT)
    assert_same(gradients(model, result.loss), {name: w.grad for name, w in plain.weights.items()}, **TIGHT)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_hits(case):
    architecture = CASES[case]
    model, batch = random_model(architecture, seed=2), random_batch(architecture, seed=3)
    with torch.no_grad():
        expected = PlainMaskedLM(model).logits(batch.ids_BS)
        ids_T, _, positions_M, cu_seqlens, max_seqlen = batch.arguments
        logits = model.logits(model.encoder(ids_T, cu_seqlens, max_seqlen))
        labels_M = expected[positions_M].argmax(1)
        labels_M[::2] = (labels_M[::2] + 1) % expected.shape[1]  # half of them wrong
        result = model(ids_T, labels_M, positions_M, cu_seqlens, max_seqlen)
    torch.testing.assert_close(logits, expected, **TIGHT)
    assert result.num_correct == len(labels_M) // 2 and result.num_tokens == len(labels_M)


@pytest.mark.parametrize("name", ["crammed-bert", "bert-base"])
def test_in_single_precision_too(name):
    architecture = small(name, layers=2)
    model, batch = random_model(architecture, dtype=torch.float32), random_batch(architecture, rows=5, length=16)
    plain = PlainMaskedLM(model)
    expected = plain.loss(batch.ids_BS, batch.labels_M, batch.positions_M)
    expected.backward()
    loss = model(*batch.arguments).loss
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
    expected_gradients = {name: w.grad for name, w in plain.weights.items()}
    assert_same(gradients(model, loss), expected_gradients, rtol=1e-3, atol=2e-5)


def test_lengths_beyond_128():
    """257 tokens a row, positions up to there; a model made for 128 refuses them."""
    architecture = small("crammed-bert", layers=2, max_length=300)
    model = random_model(architecture)
    batch = random_batch(architecture, rows=2, length=257)
    expected = PlainMaskedLM(model).loss(batch.ids_BS, batch.labels_M, batch.positions_M)
    torch.testing.assert_close(model(*batch.arguments).loss, expected, **TIGHT)

    short = random_model(small("crammed-bert", layers=1, max_length=128))
    with pytest.raises(ValueError, match="max_seqlen: got 257, want at most max_length = 128"):
        short(*batch.arguments)
