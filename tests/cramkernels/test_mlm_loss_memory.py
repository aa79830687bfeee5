"""The logits never exist whole: the largest tensor of a step is bounded by the budget or by a parameter."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cramkernels import mlm_loss
from tests.cramkernels import oracle
from tests.cramkernels.strategies import random

ROWS, VOCABULARY, WIDTH = 1024, 2048, 8  # logits: 8 MiB in fp32
WHOLE = ROWS * VOCABULARY * 4
BUDGET = 1 << 18


class LargestTensor(TorchDispatchMode):
    """Watches the storage of everything that any operator, in forward or backward, returns."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


def largest_tensor_of_a_step(function, dtype, **options):
    hidden = random(ROWS, WIDTH, seed=1, dtype=dtype).requires_grad_()
    weight = random(VOCABULARY, WIDTH, seed=2, dtype=dtype).requires_grad_()
    bias = random(VOCABULARY, seed=3, dtype=dtype).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (ROWS,), generator=torch.Generator().manual_seed(4))
    with LargestTensor() as watched:
        loss = function(hidden, weight, labels, bias=bias, **options)[0]
        torch.autograd.grad(loss, (hidden, weight, bias))
    return watched.bytes


def test_the_watch_sees_whole_logits():
    assert largest_tensor_of_a_step(oracle.mlm_loss, torch.float32) >= WHOLE


@pytest.mark.parametrize("mode", ["chunked", "recompute"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, dict(z_loss=0.1, label_smoothing=0.1, softcap=5.0)], ids=["plain", "all"])
def test_no_tensor_exceeds_the_budget(mode, dtype, options):
    assert max(ROWS, VOCABULARY) * WIDTH * 4 < BUDGET  # so that hidden states and parameters do not hide logits
    assert largest_tensor_of_a_step(mlm_loss, dtype, mode=mode, logits_bytes=BUDGET, **options) <= BUDGET


def test_a_budget_below_one_row_holds_one_row():
    hidden, weight = random(3, WIDTH, seed=1), random(VOCABULARY, WIDTH, seed=2)
    with LargestTensor() as watched:
        mlm_loss(hidden, weight, torch.zeros(3, dtype=torch.int64), logits_bytes=1)
    assert watched.bytes <= max(VOCABULARY * 8, weight.nbytes)


@pytest.mark.parametrize("mode", ["chunked", "recompute"])
def test_nothing_of_the_size_of_a_chunk_is_kept_for_the_backward(mode):
    """ "chunked" keeps the gradients of its parameters, "recompute" its inputs and one number per row."""
    saved = []

    def keep(tensor):
        saved.append(tensor.nbytes)
        return tensor

    hidden, weight = (random(n, WIDTH, seed=n, dtype=torch.float32).requires_grad_() for n in (ROWS, VOCABULARY))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        mlm_loss(hidden, weight, torch.zeros(ROWS, dtype=torch.int64), mode=mode)
    assert saved and sum(saved) <= hidden.nbytes + weight.nbytes + 2 * ROWS * 8


def peak_of_the_allocator(function):
    """Bytes that the CPU allocator handed out and did not get back, at the highest."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        highest = max(highest, live)
    return highest


@pytest.mark.parametrize("mode", ["chunked", "recompute"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, dict(z_loss=0.1, label_smoothing=0.1, softcap=5.0)], ids=["plain", "all"])
def test_the_peak_is_the_budget_and_the_gradients(mode, dtype, options):
    """And, where several chunks add up to a 16-bit gradient of the weight, that sum in fp32."""
    rows, vocabulary, width, budget = 1024, 8192, 64, 4 << 20
    hidden, weight = (random(n, width, seed=n, dtype=dtype).requires_grad_() for n in (rows, vocabulary))
    labels = torch.arange(rows)

    def step():
        loss = mlm_loss(hidden, weight, labels, mode=mode, logits_bytes=budget, **options).loss
        torch.autograd.grad(loss, (hidden, weight))

    step()
    gradients = hidden.nbytes + weight.nbytes
    sums = 0 if dtype == torch.float32 else 4 * vocabulary * width
    small = 200 * rows  # labels, lse, shares; a sixteenth of a chunk
    assert budget < peak_of_the_allocator(step) <= budget + gradients + sums + small


@pytest.mark.parametrize(
    ("mode", "keep", "copies"), [("chunked", False, 1), ("chunked", True, 2), ("recompute", False, 1)]
)
def test_the_peak_where_gradients_are_larger_than_the_budget(mode, keep, copies):
    """Gradients that "chunked" made in the forward are copied only where a later backward may want them again."""
    rows, vocabulary, width, budget = 1024, 8192, 128, 1 << 20
    hidden, weight = (random(n, width, seed=n, dtype=torch.float32).requires_grad_() for n in (rows, vocabulary))
    labels = torch.arange(rows)

    def step():
        loss = mlm_loss(hidden, weight, labels, mode=mode, logits_bytes=budget).loss
        torch.autograd.grad(loss, (hidden, weight), retain_graph=keep)

    step()
    gradients = hidden.nbytes + weight.nbytes
    assert copies * gradients <= peak_of_the_allocator(step) <= copies * gradients + budget + 200 * rows


@pytest.mark.parametrize("mode", ["chunked", "recompute"])
@pytest.mark.parametrize("grad_scale", [None, 8.0])
def test_a_kept_graph_gives_the_same_gradients_again(mode, grad_scale):
    hidden, weight = (random(n, WIDTH, seed=n, dtype=torch.bfloat16).requires_grad_() for n in (24, 40))
    loss = mlm_loss(hidden, weight, torch.arange(24), mode=mode, grad_scale=grad_scale).loss
    first = torch.autograd.grad(loss, (hidden, weight), torch.tensor(3.0), retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    for gradient in first:
        gradient.zero_()  # what the caller does with them is nothing to the graph
    second = torch.autograd.grad(loss, (hidden, weight), torch.tensor(3.0), retain_graph=True)
    last = torch.autograd.grad(loss, (hidden, weight), torch.tensor(3.0))
    for expected, *others in zip(kept, second, last, strict=True):
        assert expected.any()
        assert all(torch.equal(expected, other) for other in others)
