"""Two hundred steps of training through mlm_loss follow those through F.cross_entropy as closely as rounding lets them.

The measure is eager PyTorch itself: run with one thread and with two, its sums (those of the LayerNorm's gradients) are
rounded in another order.
"""

import pytest
import torch
import torch.nn.functional as F

import cramkernels

STEPS, VOCABULARY, WIDTH, ROWS = 200, 1000, 64, 256


def train(loss_of, threads):
    """The loss of each step of a small masked-token model with tied embeddings."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        generator = torch.Generator().manual_seed(1)
        embedding = (torch.randn(VOCABULARY, WIDTH, generator=generator) * 0.1).requires_grad_()
        inner = (torch.randn(WIDTH, WIDTH, generator=generator) * 0.1).requires_grad_()
        scale, shift = torch.ones(WIDTH, requires_grad=True), torch.zeros(WIDTH, requires_grad=True)
        optimizer = torch.optim.AdamW([embedding, inner, scale, shift], lr=3e-3)
        losses = []
        for _ in range(STEPS):
            ids = torch.randint(VOCABULARY, (ROWS,), generator=generator).square() // VOCABULARY
            labels = (7 * ids + 3) % VOCABULARY
            labels[torch.rand(ROWS, generator=generator) < 0.2] = -100
            hidden = F.layer_norm(F.gelu(embedding[ids] @ inner), (WIDTH,), scale, shift)
            loss = loss_of(hidden, embedding, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    finally:
        torch.set_num_threads(before)
    return torch.tensor(losses, dtype=torch.float64)


def eager(hidden, embedding, labels):
    return F.cross_entropy(hidden @ embedding.t(), labels)


@pytest.mark.parametrize("mode", ["chunked", "recompute"])
def test_the_loss_curve_is_that_of_eager(mode):
    def ours(hidden, embedding, labels):
        return cramkernels.mlm_loss(hidden, embedding, labels, mode=mode, logits_bytes=1 << 20).loss

    one, two, got = train(eager, 1), train(eager, 2), train(ours, 2)
    departure = (one - two).square().mean().sqrt()
    assert one[-20:].mean() < one[:5].mean() - 1, "nothing was learnt"
    assert 0 < departure < 1e-4
    assert (got - two).square().mean().sqrt() <= 3 * departure
