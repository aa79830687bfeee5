"""A micro-batch without data: forward and backward on fake tensors show what is multiplied, moved and held.

The model itself runs, so what is counted is what it does: the last block on masked rows alone, the casts of autocast,
what each operator saves for its backward and when that is freed. A fused operation counts as one, with the bytes of
its inputs and outputs; what it needs beside these (the logits of the loss) is added by hand.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from cramming_train.masking import masking_counts
from cramming_train.model import MaskedLM, parameter_count
from cramming_train.optim.muon import COEFFICIENTS
from cramming_train.optim.optimizer import matrices_of
from cramming_train.recipes import Recipe

BLOCK = 512  # bytes: what PyTorch's allocator for GPUs rounds up to
LOGITS_BYTES = 256 << 20  # as cramkernels.mlm_loss has it by default
CPU_LOGITS_BYTES = 64 << 20  # and its reference on a CPU
MATMUL, ATTENTION, LOSS, MEMORY, OPTIMIZER = "matmul", "attention", "loss", "memory-bound", "optimizer"
ALLOCATES = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
GATHERS = {"embedding", "index_select", "index", "gather"}


class Operation(NamedTuple):
    """What one operation asks of the machine."""

    kind: str
    name: str
    flops: float
    bytes: int


@dataclass(frozen=True)
class DryStep:
    """What a micro-batch of ``rows`` rows costs, and an optimizer step."""

    rows: int
    tokens: int
    parameters: int
    operations: tuple[Operation, ...]
    optimizer: Operation
    parameter_bytes: int
    gradient_bytes: int
    moment_bytes: int
    activation_bytes: int  # at the highest, beside the three above

    @property
    def bytes(self) -> int:
        """Memory at the highest."""
        return self.parameter_bytes + self.gradient_bytes + self.moment_bytes + self.activation_bytes


def dry_step(recipe: Recipe, rows: int, dtype: torch.dtype, device_type: str) -> DryStep:
    """Count a micro-batch of ``rows`` rows in ``dtype`` (under autocast where that is not fp32).

    The gradients of an earlier micro-batch are there, as in an accumulation; 16-bit formats count the loss scaling of
    fp16. Attention within documents is counted as attention within rows, an upper bound.
    """
    t, data = recipe.training, recipe.data
    with torch.device("meta"):
        model = MaskedLM(recipe.architecture, data.vocab_size)
    counts = masking_counts(data.row_length, max(t.masking_rate, t.masking_rate_final), t.random_share, t.keep_share)
    masked = rows * counts.masked
    # Fake tensors of a CPU: autograd has no streams for those of a GPU that this machine may lack. Autocast and
    # the operators' fake implementations treat both alike.
    with FakeTensorMode():
        _without_data(model)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        ids_T = torch.empty(rows * data.row_length, dtype=torch.int64)
        labels_M, positions_M = torch.empty(masked, dtype=torch.int64), torch.empty(masked, dtype=torch.int64)
        cu_seqlens = torch.empty(rows + 1, dtype=torch.int32)
        seed = torch.empty((), dtype=torch.int64) if t.dropout else None
        scale = torch.empty(()) if dtype == torch.float16 else None
        with Watch() as watch:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                result = model.train()(
                    ids_T, labels_M, positions_M, cu_seqlens, data.row_length, dropout_seed=seed, grad_scale=scale
                )
            (result.loss if scale is None else result.loss * scale).backward()
    parameters, matrices = parameter_count(model), matrices_of(model) if t.optimizer == "muon" else []
    workspace = _loss_workspace(masked, recipe, dtype, device_type)
    return DryStep(
        rows, rows * data.row_length, parameters, tuple(watch.operations),
        _optimizer(parameters, matrices, t.matrix_interval, scale is not None),
        parameter_bytes=4 * parameters,
        gradient_bytes=4 * parameters,
        moment_bytes=8 * parameters - 4 * sum(rows * columns for rows, columns in matrices),
        activation_bytes=watch.highest(workspace),
    )  # fmt: skip


def _without_data(model: torch.nn.Module) -> None:
    """Fake tensors in place of parameters and buffers; must be called within FakeTensorMode."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _loss_workspace(masked: int, recipe: Recipe, dtype: torch.dtype, device_type: str) -> int:
    """What ``mlm_loss`` holds beside inputs and outputs: a chunk of logits, and the decoder in 16 bit."""
    vocabulary = recipe.data.vocab_size
    cast = 0 if dtype == torch.float32 else vocabulary * recipe.architecture.hidden * dtype.itemsize
    limit = CPU_LOGITS_BYTES if device_type == "cpu" else LOGITS_BYTES
    return min(masked * vocabulary * dtype.itemsize, limit) + cast


def _optimizer(parameters: int, matrices: list[tuple[int, int]], interval: int, scaled: bool) -> Operation:
    """An update in fp32; ``matrices`` are those that Muon takes, one step in ``interval``, AdamW takes the rest.

    The norm reads the gradients, clipping reads and writes them, and so does unscaling; the fused AdamW reads weights,
    gradients and two moments and writes all but the gradients. Muon has one moment, and passes over its update once
    more on either side of the iteration, which is three products each time.
    """
    taken = sum(rows * columns for rows, columns in matrices)
    before, adam, muon = 4 + 8 + (8 if scaled else 0), 28, 40
    moved = parameters * before + (parameters - taken) * adam + taken * muon
    flops = 0
    for sides in matrices:
        short, long = sorted(sides)
        flops += len(COEFFICIENTS) * (4 * short * short * long + 2 * short**3)
    return Operation(OPTIMIZER, "Muon and AdamW" if matrices else "AdamW", flops / interval, moved)


class Watch(TorchDispatchMode):
    """Collects operations, and the bytes of tensors that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._live = self._highest = self._at_loss = 0
        self._seen: set[int] = set()

    def highest(self, loss_workspace: int) -> int:
        """Bytes alive at the highest, with what the loss holds while it runs."""
        return max(self._highest, self._at_loss + loss_workspace)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        made = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
        known = {tensor.untyped_storage()._cdata for tensor in given}
        for tensor in made:
            self._hold(tensor.untyped_storage(), known)
        operation = _operation(function, args, given, made, known, outputs)
        if operation is not None:
            self.operations.append(operation)
            if operation.kind == LOSS:
                self._at_loss = max(self._at_loss, self._live)
        return outputs

    def _hold(self, storage: torch.UntypedStorage, known: set[int]) -> None:
        key = storage._cdata
        if key in known or key in self._seen:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._seen.add(key)
        self._live += size
        self._highest = max(self._highest, self._live)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._live -= size


def _operation(function, args, given, made, known, outputs) -> Operation | None:
    """What a call of the dispatcher costs; None for views and allocations."""
    name = function._schema.name.split("::")[1]
    is_alias = not function._schema.is_mutable and all(t.untyped_storage()._cdata in known for t in made)
    if name in ALLOCATES or is_alias:
        return None
    moved = sum(map(_bytes, made)) + sum(map(_bytes, given))
    if function.namespace == "cramkernels":
        return _fused(name, args, moved)
    if function.overloadpacket in flop_registry:
        flops = flop_registry[function.overloadpacket](*args, out_val=outputs)
        return Operation(MATMUL, name, float(flops), moved)
    if name in GATHERS:  # of a table, the rows that are asked for
        moved = 2 * sum(map(_bytes, made)) + sum(_bytes(t) for t in given if not t.is_floating_point())
    return Operation(MEMORY, name, 0.0, moved)


def _fused(name: str, args: tuple, moved: int) -> Operation:
    """An operation of cramkernels: inputs and outputs once; the loss also its logits."""
    if name.startswith("attention"):
        # scores and their product with the values; in the backward the scores again and four products more
        qkv, longest, products = (args[1], args[5], 5) if name.endswith("backward") else (args[0], args[2], 2)
        tokens, _, heads, width = qkv.shape
        return Operation(ATTENTION, name, 2.0 * products * tokens * longest * heads * width, moved)
    if name == "mlm_loss":
        hidden, weight = args[:2]
        rows, (vocabulary, width) = hidden.shape[0], weight.shape
        logits = rows * vocabulary * hidden.itemsize
        cast = 0 if weight.dtype == hidden.dtype else weight.numel() * (weight.itemsize + hidden.itemsize)
        # three products; the logits' own pass reads and writes each once
        return Operation(LOSS, name, 6.0 * rows * width * vocabulary, 2 * logits + cast)
    return Operation(MEMORY, name, 0.0, moved)


def _bytes(tensor: torch.Tensor) -> int:
    """What there is to read or write: a broadcast tensor's own elements."""
    return min(tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes())
