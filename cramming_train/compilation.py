"""torch.compile, on proof: a compiled model that does not agree with eager is not used.

A compiler setting once silently ruined the original's convergence (its issue 45). So the compiled model runs one
micro-batch beside the eager one, losses and gradients are compared, and eager goes on where they part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from cramming_train.engine import Trainer

# Relative difference of the loss, and of each parameter's gradient (norm of difference over norm)
TOLERANCE = {torch.float32: (1e-5, 1e-3), torch.float16: (2e-3, 5e-2), torch.bfloat16: (1e-2, 1e-1)}

Results = tuple[torch.Tensor, dict[str, torch.Tensor]]


class Compilation(NamedTuple):
    """Whether the compiled model is used, and why."""

    compiled: bool
    reason: str


def wants_compilation(setting: str, device: torch.device) -> bool:
    """ "on", "off", or "auto": on a GPU. On a CPU the fused operations already keep it at its GEMM rate."""
    return setting == "on" or (setting == "auto" and device.type == "cuda")


def compile_checked(trainer: Trainer, compiler: Callable[[Callable], Callable] = torch.compile) -> Compilation:
    """Put the compiled model in the trainer's place where it agrees with eager on the next micro-batch."""
    plan = trainer.plan(0.0)
    arguments, options = trainer.micro_batch_inputs(plan, 0)
    try:
        compiled = compiler(trainer.model)
        expected = _loss_and_gradients(trainer, trainer.model, arguments, options)
        actual = _loss_and_gradients(trainer, compiled, arguments, options)
    except Exception as error:  # a compiler may fail in any way, and eager does the same work
        trainer.model.zero_grad(set_to_none=True)
        return Compilation(
            False, f"not compiled: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        )
    reason = disagreement(trainer.precision.gemm_dtype, expected, actual)
    if reason:
        return Compilation(False, f"compiled and not used: {reason}")
    trainer.forward = compiled
    return Compilation(True, "compiled; loss and gradients agree with eager")


def _loss_and_gradients(trainer: Trainer, forward: Callable, arguments: tuple, options: dict):
    trainer.model.zero_grad(set_to_none=True)
    with trainer.precision.autocast():
        loss = forward(*arguments, **options).loss
    trainer.precision.scaled(loss).backward()
    gradients = {n: p.grad.detach().clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad(set_to_none=True)
    return loss.detach(), gradients


def disagreement(dtype: torch.dtype, expected: Results, actual: Results) -> str | None:
    """Where two pairs (loss, gradients by name) part by more than the format explains, in words."""
    loss_tolerance, gradient_tolerance = TOLERANCE[dtype]
    loss_error = float((actual[0] - expected[0]).abs() / expected[0].abs())
    if not loss_error <= loss_tolerance:
        return f"its loss differs from eager's by {loss_error:.1e} (relative)"
    if expected[1].keys() != actual[1].keys():
        return "it gives gradients to other parameters than eager"
    for name, gradient in expected[1].items():
        error = float((actual[1][name] - gradient).norm() / gradient.norm().clamp(min=1e-30))
        if not error <= gradient_tolerance:
            return f"the gradient of {name} differs from eager's by {error:.1e} (relative)"
    return None
