"""The last block works on the masked rows alone, and nothing but the amount of work shows it."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tests.model.cases import assert_same, gradients, random_batch, random_model, small

CASES = {
    "pre-norm, final norm": small("crammed-bert"),
    "pre-norm, no final norm": small("crammed-bert-simple"),
    "post-norm": small("bert-base"),
    "one block only": small("crammed-bert", layers=1),
    "documents": small("crammed-bert", document_attention=True),
}


@pytest.mark.parametrize("case", CASES)
def test_same_loss_and_gradients_as_computing_every_row(case):
    architecture = CASES[case]
    model, batch = random_model(architecture), random_batch(architecture)
    ids_T, labels_M, positions_M, cu_seqlens, max_seqlen = batch.arguments

    every_row = model.encoder(ids_T, cu_seqlens, max_seqlen)
    expected = F.cross_entropy(model.logits(every_row)[positions_M], labels_M)
    expected_gradients = gradients(model, expected)
    result = model(*batch.arguments)

    torch.testing.assert_close(result.loss, expected, rtol=1e-13, atol=1e-13)
    assert_same(gradients(model, result.loss), expected_gradients, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("case", CASES)
def test_rows_come_in_the_order_asked_for(case):
    """Any order, and one row twice."""
    architecture = CASES[case]
    model, batch = random_model(architecture), random_batch(architecture)
    ids_T, _, _, cu_seqlens, max_seqlen = batch.arguments
    positions_M = torch.tensor([17, 3, 38, 3, 0])
    with torch.no_grad():
        expected = model.encoder(ids_T, cu_seqlens, max_seqlen)[positions_M]
        hidden = model.encoder(ids_T, cu_seqlens, max_seqlen, positions_M=positions_M)
    torch.testing.assert_close(hidden, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["crammed-bert", "bert-base"])
def test_the_work_saved_is_that_of_the_rows_left_out(name):
    architecture = small(name)
    model, batch = random_model(architecture), random_batch(architecture)
    ids_T, _, positions_M, cu_seqlens, max_seqlen = batch.arguments

    def flops(**options) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.encoder(ids_T, cu_seqlens, max_seqlen, **options)
        return counter.get_total_flops()

    inner = 17 if architecture.ffn == "geglu" else 34
    a_row = 2 * (24 * 24 + 24 * 34 + inner * 24)  # output projection and both FFN matrices
    assert flops() - flops(positions_M=positions_M) == (len(ids_T) - len(positions_M)) * a_row
