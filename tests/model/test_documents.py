"""Where one sequence ends and the next begins, and that nothing crosses that line."""

import pytest
import torch

from cramming_train.model import sequence_boundaries
from tests.model.cases import random_batch, random_model, small
from tests.model.plain import SEP

CASES = {
    "learned": small("bert-base", document_attention=True),
    "sinusoidal": small("crammed-bert", document_attention=True),
    "rope": small("crammed-bert", positions="rope", document_attention=True),
}


def test_boundaries_of_documents():
    ids_BS = torch.tensor([[9, 8, SEP, 7, 9], [SEP, SEP, 9, 9, SEP], [9, 9, 9, 9, 9]])
    before = ids_BS.clone()
    cu_seqlens, max_seqlen = sequence_boundaries(ids_BS, document_attention=True)
    assert cu_seqlens.tolist() == [0, 3, 5, 6, 7, 10, 15] and cu_seqlens.dtype == torch.int32
    assert max_seqlen == 5 and torch.equal(ids_BS, before)


def test_boundaries_of_rows():
    ids_BS = torch.tensor([[9, 8, SEP, 7, 9], [SEP, SEP, 9, 9, SEP]])
    cu_seqlens, max_seqlen = sequence_boundaries(ids_BS, document_attention=False)
    assert cu_seqlens.tolist() == [0, 5, 10] and cu_seqlens.dtype == torch.int32 and max_seqlen == 5


def two_versions(seed=0):
    """The same row of three documents, the middle one with other tokens the second time."""
    generator = torch.Generator().manual_seed(seed)
    ids_BS = torch.randint(7, 67, (2, 15), generator=generator)
    ids_BS[:, 4] = ids_BS[:, 9] = SEP
    changed = ids_BS.clone()
    changed[:, 5:9] = (ids_BS[:, 5:9] - 7 + torch.randint(1, 60, (2, 4), generator=generator)) % 60 + 7
    is_middle = torch.zeros(2, 15, dtype=torch.bool)
    is_middle[:, 5:10] = True
    return ids_BS, changed, is_middle.reshape(-1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kept_apart", [True, False])
def test_other_documents_do_not_matter(case, kept_apart):
    """Not one bit; and when documents are not kept apart, every other token of the row changes."""
    model = random_model(CASES[case])
    first, second, is_middle = two_versions()
    with torch.no_grad():
        cu_seqlens, max_seqlen = sequence_boundaries(first, document_attention=kept_apart)
        hidden = [model.encoder(ids.reshape(-1), cu_seqlens, max_seqlen) for ids in (first, second)]
    unchanged = (hidden[0] == hidden[1]).all(dim=1)
    assert not unchanged[is_middle].any()
    assert unchanged[~is_middle].all() if kept_apart else not unchanged[~is_middle].any()


@pytest.mark.parametrize("case", CASES)
def test_no_gradient_crosses_either(case):
    model = random_model(CASES[case])
    ids_BS, _, is_middle = two_versions(1)
    cu_seqlens, max_seqlen = sequence_boundaries(ids_BS, document_attention=True)
    embedded = []
    model.encoder.embedding.register_forward_hook(lambda module, inputs, output: embedded.append(output))
    hidden = model.encoder(ids_BS.reshape(-1), cu_seqlens, max_seqlen)
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2), dtype=hidden.dtype)
    (gradient,) = torch.autograd.grad((hidden * weights)[is_middle].sum(), embedded)
    assert not gradient[~is_middle].any() and gradient[is_middle].abs().amax(1).min() > 1e-6


@pytest.mark.parametrize("case", CASES)
def test_equals_a_run_of_each_document_alone(case):
    model, batch = random_model(CASES[case]), random_batch(CASES[case], seed=4)
    ids_T, _, _, cu_seqlens, max_seqlen = batch.arguments
    with torch.no_grad():
        together = model.encoder(ids_T, cu_seqlens, max_seqlen)
        alone = []
        for start, end in zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:], strict=False):
            length = end - start
            alone.append(model.encoder(ids_T[start:end], torch.tensor([0, length], dtype=torch.int32), length))
    assert len(alone) > 6
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-12)


def test_rows_are_always_apart():
    model = random_model(small("crammed-bert"))
    first, second, _ = two_versions()
    second[0] = first[0]
    with torch.no_grad():
        cu_seqlens, max_seqlen = sequence_boundaries(first, document_attention=False)
        hidden = [model.encoder(ids.reshape(-1), cu_seqlens, max_seqlen) for ids in (first, second)]
    assert torch.equal(hidden[0][:15], hidden[1][:15]) and not torch.equal(hidden[0][15:], hidden[1][15:])
