"""Parameters and FLOPs, against published numbers, other formulas, and torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cramming_train.model import MaskedLM, flops_per_token, parameter_count
from cramming_train.recipes import ARCHITECTURES
from tests.model.cases import random_batch, random_model, small
from tests.model.plain import PlainMaskedLM


def count(name, vocab_size):
    with torch.device("meta"):
        return parameter_count(MaskedLM(ARCHITECTURES[name], vocab_size))


def test_the_crammed_models():
    assert count("crammed-bert", 32768) == 119_589_889
    assert count("crammed-bert-mini", 32768) == 11_015_169


def test_bert_has_the_published_number_of_parameters():
    """The originals with their 30522 word pieces, less the embeddings of two segments that pretraining here lacks."""
    assert count("bert-base", 30522) == 109_514_298 - 2 * 768
    assert count("bert-tiny", 30522) == 4_416_698 - 2 * 128
    # BERT-large, with 128 learned positions instead of 512
    assert count("bert-large-izsak", 30522) == 335_174_458 - 2 * 1024 - (512 - 128) * 1024


@pytest.mark.parametrize("name, shape, positions", [
    ("bert-base", (12, 768, 3072), 512),
    ("bert-tiny", (2, 128, 512), 512),
    ("crammed-bert-simple", (12, 768, 3072), 128),
    ("bert-large-izsak", (24, 1024, 4096), 128),
])  # fmt: skip
def test_the_bert_family_by_formula(name, shape, positions):
    layers, n, f = shape
    vocab_size = 32768
    block = 4 * n * n + 4 * n + 2 * n * f + f + n + 4 * n  # four matrices of attention, two of the FFN, two norms
    head = n * n + n + 2 * n + vocab_size
    assert count(name, vocab_size) == (vocab_size + positions + 2) * n + layers * block + head


def test_tied_parameters_count_once():
    model = random_model(small("crammed-bert", layers=1))
    names = [name for name, parameter in model.named_parameters() if parameter.shape == (67, 24)]
    assert names == ["encoder.embedding.tokens.weight"]
    matrices = 24 * 72 + 24 * 24 + 24 * 34 + 17 * 24
    assert parameter_count(model) == 67 * 24 + 1 + 4 * (24 + 24) + matrices


class PlainWithoutFusedAttention(PlainMaskedLM):
    """Attention as two matrix products that the counter can see."""

    def mix(self, q, k, v, visible):
        scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(~visible, -torch.inf)
        return scores.softmax(-1) @ v


class PlainOfMaskedRows(PlainWithoutFusedAttention):
    """The head on the masked rows alone, which is what the nominal count is of."""

    def loss(self, ids_BS, labels_M, positions_M):
        hidden = self.hidden(ids_BS).flatten(0, 1)[positions_M]
        self.hidden = lambda _: hidden.unsqueeze(0)
        return torch.nn.functional.cross_entropy(self.logits(ids_BS), labels_M)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_flops_are_those_that_torch_counts(name):
    """Forward and backward of the plain model, exactly: 4 of 12 positions masked."""
    architecture = small(name)
    model, batch = random_model(architecture), random_batch(architecture, rows=3, length=12)
    plain = PlainOfMaskedRows(model)
    assert len(batch.positions_M) == 12
    with FlopCounterMode(display=False) as counter:
        plain.loss(batch.ids_BS, batch.labels_M, batch.positions_M).backward()
    assert flops_per_token(architecture, 67, 12, 1 / 3) * 36 == pytest.approx(counter.get_total_flops(), rel=1e-12)


def test_flops_of_crammed_bert_by_hand():
    """A token, forward: 16 blocks of 768 -> 2304, 768 -> 768, 768 -> 3072, 1536 -> 768, and 128 keys and values."""
    multiplications = 16 * (768 * 2304 + 768 * 768 + 768 * 3072 + 1536 * 768 + 2 * 128 * 768) + 0.25 * 768 * 32768
    assert flops_per_token(ARCHITECTURES["crammed-bert"], 32768, 128, 0.25) == 3 * 2 * multiplications
