"""One way to make a differentiable operation out of a forward and a backward function.

Eager calls go through a plain ``autograd.Function`` (a few microseconds); under ``torch.compile`` and for anything
that inspects the dispatcher the same pair is registered as ``cramkernels::<name>`` and ``cramkernels::<name>_backward``
with fake implementations. Forward and backward take and return plain tensors; a missing gradient is an empty tensor.
There are no second derivatives: asking for one is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from cramkernels.dispatch import forced_backends, resume_backends

Tensors = tuple[torch.Tensor, ...]


def make_operator(
    name: str,
    *,
    forward: Callable[..., Any],
    forward_fake: Callable[..., Any],
    backward: Callable[..., Any],
    backward_fake: Callable[..., Any],
    save: Callable[[Any, tuple, Any], None],
    gradients: Callable[..., tuple],
) -> Callable[..., Any]:
    """Build the callable of one operation.

    Args:
        forward, backward: typed functions; their annotations become the operators' schemas.
        forward_fake, backward_fake: the same signatures on fake tensors.
        save: ``save(ctx, inputs, outputs)`` keeps what the backward needs. ``ctx.is_eager`` is there in both: false
            where a compiler may be tracing.
        gradients: ``gradients(ctx, call_backward, *grad_outputs)`` returns one gradient (or None) per forward input.
    """
    forward_op = torch.library.custom_op(f"cramkernels::{name}", forward, mutates_args=())
    forward_op.register_fake(forward_fake)
    backward_schema = torch.library.infer_schema(backward, mutates_args=())
    backward_op = torch.library.custom_op(
        f"cramkernels::{name}_backward", _unshared(backward), mutates_args=(), schema=backward_schema
    )
    backward_op.register_fake(backward_fake)

    def setup_context(ctx: Any, inputs: tuple, output: Any, is_eager: bool = False) -> None:
        ctx.is_eager = is_eager
        ctx.set_materialize_grads(False)
        save(ctx, inputs, output)

    def operator_backward(ctx: Any, *grads: Any) -> tuple:
        return gradients(ctx, backward_op, *grads)

    forward_op.register_autograd(operator_backward, setup_context=setup_context)

    class EagerFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            with _without_autocast(inputs[0].device):
                outputs = (forward_op if _is_fake(inputs[0]) else forward)(*inputs)
            setup_context(ctx, inputs, outputs, is_eager=True)
            ctx.backends = forced_backends()
            return outputs

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> tuple:
            if torch.is_grad_enabled():  # create_graph=True
                raise RuntimeError(f"cramkernels.{name} has no second derivative; leave out create_graph=True")
            device = next((grad.device for grad in grads if grad is not None), torch.device("cpu"))
            with _without_autocast(device), _as_in_forward(ctx.backends):
                return gradients(ctx, backward_op if any(map(_is_fake, grads)) else backward, *grads)

    EagerFunction.__name__ = EagerFunction.__qualname__ = f"{name}_eager"

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            return forward_op(*inputs)
        if torch.is_grad_enabled():
            return EagerFunction.apply(*inputs)
        with _without_autocast(inputs[0].device):
            return (forward_op if _is_fake(inputs[0]) else forward)(*inputs)

    return call


def _is_fake(x: Any) -> bool:
    """Without data: the registered operator then gives the shapes, whatever backend serves here."""
    return isinstance(x, FakeTensor)


def _unshared(function: Callable[..., Any]) -> Callable[..., Any]:
    """A registered operator's outputs must not be its inputs or each other; eager autograd does not mind."""

    def with_own_outputs(*inputs: Any) -> Any:
        outputs = function(*inputs)
        if isinstance(outputs, torch.Tensor):
            return outputs
        seen = {id(x) for x in inputs if isinstance(x, torch.Tensor)}
        own = []
        for output in outputs:
            own.append(output.clone() if id(output) in seen else output)
            seen.add(id(output))
        return tuple(own)

    return with_own_outputs


_NOTHING = nullcontext()


def _as_in_forward(backends: Mapping[str, str]) -> AbstractContextManager:
    return _NOTHING if backends is forced_backends() else resume_backends(backends)


def _without_autocast(device: torch.device) -> AbstractContextManager:
    """An operation fixes its own formats: autocast must not reach inside."""
    # first whether it is on at all: to ask for one device takes ten times as long
    if torch._C._is_any_autocast_enabled() and _is_autocast_on(device.type):
        return torch.autocast(device.type, enabled=False)
    return _NOTHING


def _is_autocast_on(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def autocast_cast(x: torch.Tensor) -> torch.Tensor:
    """``x`` in the autocast dtype where autocast is on for its device: for operations that multiply matrices."""
    if _is_autocast_on(x.device.type) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def optional(x: torch.Tensor) -> torch.Tensor | None:
    """Operators return tensors only: an empty one stands for a gradient that nobody asked for."""
    return x if x.numel() else None
