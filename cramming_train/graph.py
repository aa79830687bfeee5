"""A micro-batch's forward and backward as one CUDA graph: hundreds of launches for the price of one.

Captured once for each set of shapes, from static copies of the inputs into which every micro-batch's are copied.
Gradients accumulate in tensors that stay where they are; an optimizer that sets ``.grad`` to None finds them again,
zeroed, at the next micro-batch. As with the compiler, a replay that does not agree with eager is not used.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from cramming_train.backoff import back_off
from cramming_train.compilation import disagreement
from cramming_train.engine import MicroStep, Trainer

Replay = Callable[[], None]
Capture = Callable[[Callable[[], Any]], tuple[Replay, Any]]
WARM_UPS = 3  # as PyTorch's documentation has it: allocators, libraries and autotuning settle
AHEAD = 2  # micro-batches


class Graphing(NamedTuple):
    """Whether micro-batches are replayed, and why."""

    graphed: bool
    reason: str


def capture_on_gpu(function: Callable[[], Any]) -> tuple[Replay, Any]:
    """(what repeats ``function`` on the GPU, its results, which each replay overwrites)."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph.replay, results


class GraphedMicroStep:
    """Takes the place of a trainer's ``micro_step``."""

    def __init__(self, step: MicroStep, parameters: list[torch.Tensor], capture: Capture = capture_on_gpu):
        self._step, self._capture, self._parameters = step, capture, parameters
        self._gradients: list[torch.Tensor] = []
        self._key: tuple | None = None
        self._inputs: list[torch.Tensor] = []
        self._replay: Replay | None = None
        self._results: tuple = ()

    def __call__(self, arguments: tuple, options: dict, divisor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``Trainer.eager_micro_step``. Both results are overwritten by the next call."""
        inputs, key = _tensors(arguments, options, divisor)
        if key != self._key:
            self._renew(arguments, options, divisor, key)
        self._attach_gradients()
        torch._foreach_copy_(self._inputs, inputs)
        self._replay()
        return self._results

    def _renew(self, arguments: tuple, options: dict, divisor: torch.Tensor, key: tuple) -> None:
        """Capture for these shapes, which change between optimizer steps alone: gradients are zero then."""
        self._key, self._replay, self._results = None, None, ()  # the graph before this one gives its memory back
        arguments = tuple(_static(x) for x in arguments)
        options = {name: _static(x) for name, x in options.items()}
        divisor = divisor.clone()
        self._inputs, _ = _tensors(arguments, options, divisor)
        if not self._gradients:
            self._gradients = [torch.zeros_like(p) for p in self._parameters]
        self._attach_gradients()
        self._replay, self._results = self._capture(lambda: self._step(arguments, options, divisor))
        torch._foreach_zero_(self._gradients)  # the warm-ups'
        self._key = key

    def _attach_gradients(self) -> None:
        if all(p.grad is g for p, g in zip(self._parameters, self._gradients, strict=True)):
            return
        torch._foreach_zero_(self._gradients)
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient


def _static(x: Any) -> Any:
    return x.clone() if isinstance(x, torch.Tensor) else x


def _tensors(arguments: tuple, options: dict, divisor: torch.Tensor) -> tuple[list[torch.Tensor], tuple]:
    """(the tensors among the inputs, in order; what a capture depends on)."""
    values = [*arguments, *options.values(), divisor]
    tensors = [x for x in values if isinstance(x, torch.Tensor)]
    key = tuple((tuple(x.shape), x.dtype) if isinstance(x, torch.Tensor) else x for x in values)
    return tensors, key


def graph_checked(trainer: Trainer, capture: Capture = capture_on_gpu) -> Graphing:
    """Put a graph in the place of the trainer's micro-step where its replay agrees with eager on a micro-batch."""
    arguments, options = trainer.micro_batch_inputs(trainer.plan(0.0), 0)
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    graphed = GraphedMicroStep(trainer.eager_micro_step, parameters, capture)
    try:
        results = [
            _loss_and_gradients(trainer, step, arguments, options) for step in (trainer.eager_micro_step, graphed)
        ]
        reason = disagreement(trainer.precision.gemm_dtype, *results)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a capture may fail in any way, and eager does the same work
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    trainer.model.zero_grad(set_to_none=True)
    if reason:
        return Graphing(False, f"no CUDA graph: {reason}")
    trainer.micro_step = graphed
    return Graphing(True, "micro-batches are replayed as a CUDA graph, which agrees with eager")


def graph_that_fits(trainer: Trainer, capture: Capture = capture_on_gpu) -> tuple[bool, list[str]]:
    """As :func:`graph_checked`, with smaller micro-batches until memory holds one: (graphed, reasons)."""
    reasons = []
    while True:
        try:
            graphed, reason = graph_checked(trainer, capture)
            return graphed, [*reasons, reason]
        except torch.OutOfMemoryError:  # no more than noted here: its traceback holds the activations
            pass
        reasons.append(back_off(trainer))


def _loss_and_gradients(trainer: Trainer, step: MicroStep, arguments: tuple, options: dict):
    trainer.model.zero_grad(set_to_none=True)
    loss, _ = step(arguments, options, torch.ones((), device=trainer.device))
    gradients = {n: p.grad.detach().clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    return loss.clone(), gradients


class Pace:
    """Keeps the host at most ``AHEAD`` micro-batches ahead of the GPU: the clock that ends the budget is the host's."""

    def __init__(self) -> None:
        self._events: deque[torch.cuda.Event] = deque()

    def __call__(self) -> None:
        """After each micro-batch's launches. Waits for an earlier micro-batch, never for this one."""
        event = torch.cuda.Event()
        event.record()
        self._events.append(event)
        if len(self._events) > AHEAD:
            self._events.popleft().synchronize()
