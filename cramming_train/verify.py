"""The proof of a run's kernels, on the run's own model and data, before they are trusted with a day.

For a few steps, loss and gradients are computed three times from the same weights and rows: exactly (plain PyTorch in
fp32, or fp64 where the run is in fp32), in plain PyTorch in the run's own number format, and through the operations as
the run will call them. The operations may err at most twice as much as plain PyTorch does. Where they err more, each is
tried alone among references; those found guilty are served by their reference from then on, and the run says so.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from cramkernels import backend_for, use_backend
from cramkernels.dispatch import OPERATIONS, fall_back
from cramming_train.engine import Trainer
from cramming_train.errors import RunError
from cramming_train.model import MaskedLM
from cramming_train.model.plain import plain_loss

STEPS = 3
ROWS = 4
FACTOR = 2.0  # times the error of plain PyTorch
LOSS_SCALE = 1024.0  # in fp16
SMALL = 64  # numbers; the error of fewer is chance
Loss = Callable[..., torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Verification:
    """What the proof found, as summary.json keeps it."""

    steps: int
    rows: int  # of one step
    worst: str  # the loss, or the parameter whose gradient is furthest from what the rule allows
    worst_share: float  # its error over the allowed one
    fallen_back: dict[str, str]  # operation -> why

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        found = f"{self.worst} errs {self.worst_share:.2f} x what the rule allows, the most of all"
        if not self.fallen_back:
            return f"kernels verified against plain PyTorch in {self.steps} steps: {found}"
        return f"{'; '.join(f'{op} {why}' for op, why in self.fallen_back.items())}; now {found}"


def verify(trainer: Trainer, steps: int = STEPS) -> Verification:
    """Prove the operations that the trainer's model uses; the trainer is left as it was.

    Raises:
        RunError: the results are wrong even where references serve every operation.
    """
    proof = _Proof(trainer, steps)
    worst, share = proof.worst()
    fallen_back = {}
    if not share <= 1:
        for op in _guilty(proof) or _replaceable(trainer):
            fallen_back[op] = f"failed the proof ({worst} erred {share:.1f} x what is allowed): its reference serves"
            fall_back(op, "it failed the proof against plain PyTorch")
        worst, share = proof.worst()
    if not share <= 1:
        raise RunError(
            f"the model's results are wrong on this machine: {worst} errs {share:.1f} x what is allowed, with the "
            "reference operations too; try another release of PyTorch, and look for failing hardware"
        )
    return Verification(steps, proof.rows, worst, round(share, 3), fallen_back)


def _guilty(proof: _Proof) -> list[str]:
    """Operations that break the rule alone, all others being references."""
    guilty = []
    for op in _replaceable(proof.trainer):
        with use_backend("reference", [other for other in OPERATIONS if other != op]):
            if not proof.worst()[1] <= 1:
                guilty.append(op)
    return guilty


def _replaceable(trainer: Trainer) -> list[str]:
    """Operations that something else than the reference serves."""
    formats = {"dtype": trainer.precision.gemm_dtype, "device": trainer.device}
    return [op for op in OPERATIONS if backend_for(op, **formats).backend != "reference"]


class _Proof:
    """Batches, weights before each of their steps, and the results that the operations are held against."""

    def __init__(self, trainer: Trainer, steps: int):
        self.trainer = trainer
        plan = trainer.plan(0.0)
        self.rows = min(plan.micro_rows, ROWS)
        plan = dataclasses.replace(plan, micro_rows=self.rows)
        self.window = plan.window
        self.batches = [trainer.micro_batch_inputs(plan, number)[0] for number in range(steps)]
        exact_dtype = torch.float64 if trainer.precision.gemm_dtype == torch.float32 else torch.float32
        exact_model = copy.deepcopy(trainer.model).to(exact_dtype)
        self.model = copy.deepcopy(trainer.model)
        self.weights, self.exact, plain = [], [], []  # on the host: a card of 8 GB has no room for them
        for batch in self.batches:
            self.weights.append([p.detach().to("cpu", torch.float32, copy=True) for p in exact_model.parameters()])
            self._load(self.weights[-1])
            with _exact_products():
                self.exact.append(
                    _results(exact_model, partial(plain_loss, exact_model, window=plan.window), batch, 1.0)
                )
            plain.append(self._in_own_format(partial(plain_loss, self.model, window=plan.window), batch))
            _descend(exact_model, batch, trainer.training.peak_lr)
        self.allowed = self._allowed(self._errors(plain))

    def worst(self) -> tuple[str, float]:
        """(loss or parameter, its error over the allowed one) through the operations as dispatched now."""
        results = []
        for weights, batch in zip(self.weights, self.batches, strict=True):
            self._load(weights)
            results.append(
                self._in_own_format(lambda *a: self.model(*a, grad_scale=self._scale, window=self.window).loss, batch)
            )
        shares = {name: error / self.allowed[name] for name, error in self._errors(results).items()}
        return max(shares.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])

    @property
    def _scale(self) -> torch.Tensor | None:
        is_scaled = self.trainer.precision.scaler is not None
        return torch.full((), LOSS_SCALE, device=self.trainer.device) if is_scaled else None

    def _load(self, weights: list[torch.Tensor]) -> None:
        with torch.no_grad():
            torch._foreach_copy_(list(self.model.parameters()), weights)

    def _in_own_format(self, loss_of: Loss, batch: tuple) -> dict[str, torch.Tensor]:
        with self.trainer.precision.autocast():
            return _results(self.model, loss_of, batch, 1.0 if self._scale is None else LOSS_SCALE)

    def _errors(self, results: list[dict[str, torch.Tensor]]) -> dict[str, float]:
        """Relative to the exact results, in the Euclidean norm over all steps."""
        errors = {}
        for name in self.exact[0]:
            pairs = [(ours[name], exact[name]) for ours, exact in zip(results, self.exact, strict=True)]
            error = sum(float((ours - exact).double().square().sum()) for ours, exact in pairs)
            norm = sum(float(exact.double().square().sum()) for _, exact in pairs)
            errors[name] = math.sqrt(error / max(norm, 1e-300))
        return errors

    def _allowed(self, plain: dict[str, float]) -> dict[str, float]:
        """Twice the error of plain PyTorch, or of its median tensor where it had luck, and a unit in the last place."""
        typical = statistics.median(error for name, error in plain.items() if name != "loss")
        ulp = torch.finfo(self.trainer.precision.gemm_dtype).eps
        return {
            name: FACTOR * (error if name == "loss" else max(error, typical)) + ulp for name, error in plain.items()
        }


def _results(model: MaskedLM, loss_of: Loss, batch: tuple, scale: float) -> dict[str, torch.Tensor]:
    """The loss, and the gradient of every parameter of some size."""
    loss = loss_of(*batch)
    with torch.autocast(loss.device.type, enabled=False):
        (loss * scale).backward()
    gradients = {
        f"the gradient of {name}": (p.grad / scale).cpu()
        for name, p in model.named_parameters()
        if p.grad is not None and p.numel() >= SMALL
    }
    model.zero_grad(set_to_none=True)
    return {"loss": loss.detach().cpu(), **gradients}


def _descend(model: MaskedLM, batch: tuple, learning_rate: float) -> None:
    """A step about as long as Adam's first, without its memory; weights stay numbers that fp32 can hold."""
    plain_loss(model, *batch).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            size = parameter.grad.square().mean().sqrt().clamp(min=1e-30)
            parameter.sub_(learning_rate * parameter.grad / size).copy_(parameter.float())
    model.zero_grad(set_to_none=True)


@contextmanager
def _exact_products() -> Iterator[None]:
    """No TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
