"""Which of torch's operators the loss calls: what a CUDA graph could not hold."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cramkernels import mlm_loss
from tests.cramkernels.cases import FP16, FP32, LossCase

# They bring a value to the host, or make a shape of one
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero", "bincount")


class Operators(TorchDispatchMode):
    """``seen``: the name of each and the shapes that it returned, in order; not those of a simulated launch."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        shapes = [tuple(x.shape) for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.seen.append((function.overloadpacket.__name__, *shapes))
        return result

    def that_wait(self) -> list[str]:
        """Names of those seen that a CUDA graph could not hold."""
        return [name for name, *_ in self.seen if name.startswith(WAITING)]


GRAPHS: tuple[dict, ...] = ({}, {"grad_scale": 8.0, "logits_bytes": 300, "softcap": 3.0})


def assert_a_graph_can_hold_it(simulated, **options) -> None:
    """The same operators, shapes and launches whatever the labels, and none that reads a value."""
    arguments = LossCase("mlm_loss", FP16, FP32, tokens=9, masked=21).arguments()
    leaves = [arguments[name].requires_grad_() for name in ("hidden_TN", "weight_VN")]
    seen = []
    for ignored in (0, 7, 21):
        arguments["labels_M"] = torch.randint(101, (21,), generator=torch.Generator().manual_seed(ignored))
        arguments["labels_M"][:ignored] = -100
        with simulated(80, check="none") as executed, Operators() as operators:
            torch.autograd.grad(mlm_loss(**arguments, **options).loss, leaves)
        seen.append((operators.seen, executed.symbols()))
    assert seen[0] == seen[1] == seen[2] and len(seen[0][0]) > 10 and len(seen[0][1]) >= 3
    assert not operators.that_wait()
