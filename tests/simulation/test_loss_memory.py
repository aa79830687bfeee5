"""Peak memory of the GPU backends' loss, counted by shapes: fake CUDA tensors, and launches that do nothing.

A mode watches every storage from its birth to its end. What counts is extra memory: all but the inputs.
"""

import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cramkernels import decoder
from cramkernels.cuda.mlm_loss import TILE

MB = 1 << 20


class Peak(TorchDispatchMode):
    """Live bytes of the storages that operators returned, and their maximum."""

    def __init__(self, inputs):
        super().__init__()
        self.live = self.peak = 0
        self.seen = {x.untyped_storage()._cdata for x in inputs if x is not None}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in self.seen:
                storage = x.untyped_storage()
                self.seen.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._end, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _end(self, key, size):
        self.seen.discard(key)
        self.live -= size


def nothing(*_, **__):
    return None


def finish(problem):
    results = [torch.empty((), dtype=dtype, device="cuda") for dtype in (torch.float32, torch.float32, torch.int64)]
    return results


def tiles(problem):
    """As both backends: partial sums of at most PARTIAL_BYTES."""
    rows = problem.hidden.shape[0]
    splits = decoder.vocabulary_splits(rows, problem.weight.shape[0], 264, TILE)
    partials = torch.empty(splits, 3, rows, device="cuda")
    assert partials.nbytes <= decoder.PARTIAL_BYTES
    return partials, torch.empty(rows, device="cuda")


KERNELS = decoder.Kernels(nothing, nothing, lambda p: nothing(tiles(p)), nothing, finish)


@pytest.fixture(autouse=True)
def _products(monkeypatch):
    """torch's out= products of fake CUDA tensors want a CUDA build: here they only have to allocate nothing."""

    def multiply(a, b, out, add):
        assert out.shape == (a.shape[0], b.shape[1]) and a.shape[1] == b.shape[0]

    monkeypatch.setattr(decoder, "multiply", multiply)
    monkeypatch.setattr(decoder.torch, "mm", lambda a, b, out: multiply(a, b, out, False))


def peak(rows, vocabulary, width, *, dtype=torch.bfloat16, weight_dtype=None, scaled=False, recompute=False, budget):
    """(peak extra bytes of forward and backward, bytes of the gradients)."""
    with FakeTensorMode():
        hidden = torch.empty(rows, width, dtype=dtype, device="cuda")
        weight = torch.empty(vocabulary, width, dtype=weight_dtype or dtype, device="cuda")
        labels = torch.empty(rows, dtype=torch.int64, device="cuda")
        scale = torch.empty((), device="cuda") if scaled else None
        options = -100, 0.0, 0.0, None, budget, scale
        with Peak([hidden, weight, labels, scale]) as watched:
            outputs = decoder.forward(KERNELS, hidden, weight, labels, None, *options, recompute, True, True, False)
            gradients = outputs[5:]
            if recompute:
                lse = outputs[4]
                del outputs, gradients
                gradients = decoder.backward(KERNELS, hidden, weight, labels, None, lse, *options, True, True, False)
        return watched.peak, sum(x.nbytes for x in gradients)


SMALL = MB  # scalars, lse and stats of each row


@pytest.mark.parametrize("budget", [256 * MB, 64 * MB, 16 * MB])
@pytest.mark.parametrize("weight_dtype", [None, torch.float32], ids=["16-bit weight", "fp32 weight"])
def test_chunked_is_the_budget_and_the_gradients(budget, weight_dtype):
    """And, where several chunks add up to a 16-bit gradient, that sum in fp32; a 16-bit copy of fp32 weights."""
    used, gradients = peak(4096, 32768, 768, weight_dtype=weight_dtype, budget=budget)
    weights = 32768 * 768
    several = 256 * MB > budget
    extra = 2 * weights if weight_dtype else 4 * weights * several
    assert used <= budget + gradients + extra + SMALL


def test_one_chunk_writes_the_gradients_as_they_are():
    used, gradients = peak(4096, 32768, 768, budget=256 * MB)
    assert gradients == 2 * (4096 + 32768) * 768 and used <= 256 * MB + gradients + SMALL


@pytest.mark.parametrize(("rows", "vocabulary"), [(4096, 32768), (4096, 131072), (16384, 32768), (16384, 131072)])
def test_recompute_does_not_grow_with_rows_times_vocabulary(rows, vocabulary):
    """The gradients, hidden's sum in fp32, and one slice; logits would be up to 4 GiB."""
    used, gradients = peak(rows, vocabulary, 768, recompute=True, budget=256 * MB)
    sums = 4 * rows * 768
    assert used <= gradients + sums + decoder.SLICE_BYTES + decoder.PARTIAL_BYTES + 32 * rows + SMALL


def test_the_watch_sees_what_is_allocated():
    used, gradients = peak(4096, 32768, 768, budget=256 * MB)
    assert used >= 256 * MB + gradients
