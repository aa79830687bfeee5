"""The held-out loss is what its protocol says: recomputed here row by row, from the description of it."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cramkernels import MLMLoss
from cramming_train.masking import MaskingCounts, mask_rows
from cramming_train.model import build_model
from cramming_train.validation import held_out_loss
from tests.model.cases import random_model, small
from tests.model.plain import PlainMaskedLM

CPU = torch.device("cpu")
VOCAB = 67


class FakeRows:
    """Rows in memory, which note the row numbers that were asked for."""

    def __init__(self, count, row_length=16, seed=0):
        self.row_length = row_length
        self.ids = np.random.default_rng(seed).integers(5, VOCAB, (count, row_length)).astype(np.uint16)
        self.taken = []

    def __len__(self):
        return len(self.ids)

    def take(self, indices):
        self.taken += list(indices)
        return self.ids[np.asarray(indices)]


def recomputed(model, ids):
    """15 % of each row's positions, of these 80 / 10 / 10; masks group by group of 64, of seed 0; rows one by one."""
    plain = PlainMaskedLM(model)
    length = ids.shape[1]
    masked = round(0.15 * length)
    counts = MaskingCounts(masked, masked - 2 * round(0.1 * masked), round(0.1 * masked))
    losses, hits = [], []
    with torch.no_grad():
        for start in range(0, len(ids), 64):
            group = torch.from_numpy(ids[start : start + 64].astype(np.int64))
            batch = mask_rows(group, counts, VOCAB, seed=0, index=start)
            shown, labels = batch.ids_T.view(group.shape), batch.labels_M.view(len(group), masked)
            places = batch.positions_M.view(len(group), masked) % length
            for row in range(len(group)):
                logits = plain.logits(shown[row : row + 1])[places[row]]
                losses.append(F.cross_entropy(logits, labels[row], reduction="none"))
                hits.append(logits.argmax(1) == labels[row])
    return float(torch.cat(losses).mean()), float(torch.cat(hits).double().mean()), masked * len(ids)


@pytest.mark.parametrize("count, length", [(150, 16), (64, 13), (5, 40)])
def test_equals_a_recomputation_row_by_row(count, length):
    """In whatever batches: the last group here is a smaller one, and there each row is computed alone."""
    model = random_model(small("crammed-bert", max_length=40))
    rows = FakeRows(count, length)
    result = held_out_loss(model, rows, device=CPU)
    loss, accuracy, tokens = recomputed(model, rows.ids)
    assert result["loss"] == pytest.approx(loss, rel=1e-9)
    assert result["accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert (result["tokens"], result["rows"]) == (tokens, count)
    assert rows.taken == list(range(count))


def test_documents_are_kept_apart_where_the_architecture_says_so():
    """By the ids as they are, not as shown: <sep> may be masked."""
    architecture = small("crammed-bert", document_attention=True)
    model, rows = random_model(architecture), FakeRows(40)
    rows.ids[:, ::3] = 5
    result = held_out_loss(model, rows, device=CPU)

    together = random_model(dataclasses.replace(architecture, document_attention=False))
    assert result["loss"] != pytest.approx(held_out_loss(together, rows, device=CPU)["loss"], rel=1e-3)
    ids = torch.from_numpy(rows.ids.astype(np.int64))
    batch = mask_rows(ids, MaskingCounts(2, 2, 0), VOCAB, seed=0, index=0)
    ends = (ids.reshape(-1) == 5).nonzero()[:, 0] + 1
    bounds = sorted({*range(0, ids.numel() + 1, 16), *ends.tolist()})
    with torch.no_grad():
        hidden = model.encoder(batch.ids_T, torch.tensor(bounds, dtype=torch.int32), 16)
        expected = F.cross_entropy(model.logits(hidden)[batch.positions_M], batch.labels_M)
    assert result["loss"] == pytest.approx(float(expected), rel=1e-9)


def test_a_window_of_the_moment():
    """The loss is that of the same weights in an architecture with this window."""
    model = build_model(small("cram", output_init="normal", window=None, global_every=None), VOCAB, seed=0)
    narrow = build_model(small("cram", output_init="normal", window=1, global_every=None), VOCAB, seed=0)
    rows = FakeRows(70)
    seen = held_out_loss(model, rows, device=CPU, window=1)["loss"]
    assert seen == held_out_loss(narrow, rows, device=CPU)["loss"] != held_out_loss(model, rows, device=CPU)["loss"]


def test_the_same_numbers_twice():
    """Whatever the global generator's state and the recipe's dropout; the model is left as it was."""
    model = build_model(small("bert-base", dropout=0.5, attention_dropout=0.5), VOCAB, seed=0).train()
    rows = FakeRows(70)
    first = held_out_loss(model, rows, device=CPU)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    torch.manual_seed(7)
    assert held_out_loss(model.eval(), rows, device=CPU) == first and not model.training


def test_no_random_number_of_the_run_is_used_up():
    model = random_model(small("crammed-bert"))
    state = torch.get_rng_state()
    held_out_loss(model, FakeRows(3), device=CPU)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("count, wanted", [(100, 7), (130, 65), (101, 100), (9, 9), (9, 1000)])
def test_fewer_rows_are_spread_evenly(count, wanted):
    rows = FakeRows(count)
    model = random_model(small("crammed-bert", layers=1))
    result = held_out_loss(model, rows, device=CPU, max_rows=wanted)
    wanted = min(count, wanted)
    taken = np.array(rows.taken)
    assert result["rows"] == len(taken) == wanted and taken[0] == 0
    gaps = np.diff([*taken, count])
    assert set(gaps) <= {count // wanted, -(-count // wanted)}
    assert result["loss"] == pytest.approx(recomputed(model, rows.ids[taken])[0], rel=1e-9)


def test_a_better_model_has_a_lower_loss():
    """A model of few tokens, all ids one of three: a bias of the decoder towards them is worth log(67 / 3)."""
    rows = FakeRows(32)
    rows.ids = (rows.ids % 3 + 40).astype(np.uint16)
    model = build_model(small("bert-base"), VOCAB, seed=0)
    before = held_out_loss(model, rows, device=CPU)
    with torch.no_grad():
        model.decoder_bias[40:43] = 8.0
    after = held_out_loss(model, rows, device=CPU)
    assert before["loss"] == pytest.approx(np.log(67), abs=0.2) and after["loss"] == pytest.approx(np.log(3), abs=0.2)
    assert after["accuracy"] > before["accuracy"] + 0.15


def test_the_protocol_has_not_changed():
    """Numbers of different days compare only while the masks stay the same; this is what they were."""
    seen = []

    class Recorder(torch.nn.Module):
        architecture, vocab_size = small("crammed-bert"), VOCAB

        def forward(self, ids_T, labels_M, positions_M, cu_seqlens, max_seqlen, *, window):
            assert window is None
            seen.append(torch.cat([ids_T, positions_M]))
            return MLMLoss(*torch.zeros(4, dtype=torch.int64))

    held_out_loss(Recorder(), FakeRows(70, 40), device=CPU)
    digest = hashlib.sha256(torch.cat(seen).numpy().tobytes()).hexdigest()
    assert digest.startswith("2129c1b62ecd0dc7")
