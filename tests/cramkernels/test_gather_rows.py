"""The gather of mlm_loss's masked rows: its backward adds duplicates up in their order, on any device."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cramkernels.mlm_loss import _gather_rows, _scatter
from tests.cramkernels.strategies import random

POSITIONS = torch.tensor([3, 0, 3, 3, 1])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_gradient(dtype):
    x, positions = random(5, 4, seed=1).requires_grad_(), POSITIONS.to(dtype)
    grad = random(5, 4, seed=2)
    expected = torch.autograd.grad(x[POSITIONS], x, grad)[0]
    got = torch.autograd.grad(_gather_rows(x, positions), x, grad)[0]
    torch.testing.assert_close(got, expected)
    assert not got[[2, 4]].any()


def test_operators():
    x = random(5, 4, seed=1, dtype=torch.float32).requires_grad_()
    torch.library.opcheck(torch.ops.cramkernels.gather_rows.default, (x, POSITIONS))
    torch.library.opcheck(torch.ops.cramkernels.gather_rows_backward.default, (x.detach(), POSITIONS, 7))


def test_a_gpu_sorts_instead_of_adding_atomically():
    """index_add on a GPU adds in the order of arrival: three equal positions would give other bits each time."""

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.append(function.__name__)
            return function(*args, **(kwargs or {}))

    with FakeTensorMode(), Seen() as seen:
        out = _scatter(torch.empty(5, 4, device="cuda"), torch.empty(5, dtype=torch.int32, device="cuda"), 7)
    assert out.shape == (7, 4) and any("index_put" in name for name in seen.names), seen.names
    assert not any("index_add" in name for name in seen.names)
