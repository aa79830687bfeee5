"""Run an operation forward and backward on a case, and compare results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

import cramkernels
from tests.cramkernels import oracle
from tests.cramkernels.cases import DIFFERENTIABLE, Case

Results = dict[str, torch.Tensor]


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Memory that an operation allocates and does not write holds NaN (the largest value, for integers)."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def ours(case: Case, arguments: dict) -> Results:
    """Outputs and gradients of the package's operation, on poisoned memory."""
    with poisoned_memory():
        return evaluate(getattr(cramkernels, case.op), case, arguments)


def plain(case: Case, arguments: dict) -> Results:
    """Outputs and gradients of plain PyTorch."""
    return evaluate(getattr(oracle, case.op), case, arguments)


def exact(case: Case, arguments: dict) -> Results:
    """Outputs and gradients in fp64, for the very same (rounded) inputs."""
    return evaluate(getattr(oracle, case.op), case, in_double(arguments))


def in_double(value):
    """Every float tensor in fp64."""
    if isinstance(value, dict):
        return {name: in_double(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(in_double(part) for part in value)
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def evaluate(function: Callable, case: Case, arguments: dict) -> Results:
    """Call, then pull a random gradient back: the same one, rounded to the case's dtype, for every caller."""
    leaves = {
        name: arguments[name].detach().clone().requires_grad_()
        for name in DIFFERENTIABLE[case.op]
        if arguments.get(name) is not None
    }
    outputs = function(**{**arguments, **leaves})
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    differentiable = [output for output in outputs if output.requires_grad]
    gradients = torch.autograd.grad(differentiable, list(leaves.values()), incoming_gradients(case, differentiable))
    results = {f"output {number}": output.detach() for number, output in enumerate(outputs)}
    for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
        assert gradient.shape == leaf.shape and gradient.dtype == leaf.dtype, f"gradient of {name}"
        results[f"gradient of {name}"] = gradient
    return results


def incoming_gradients(case: Case, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Random, except for the loss: there it is the scale that was announced to the operation, or one."""
    if case.op == "mlm_loss":
        return [torch.full_like(outputs[0], dict(case.options).get("grad_scale", 1.0))]
    generator = torch.Generator().manual_seed(20)
    return [
        torch.randn(output.shape, generator=generator, dtype=torch.float64).to(case.dtype).to(output)
        for output in outputs
    ]


def assert_same(results: Results, expected: Results, relative: float) -> None:
    """Each result within ``relative`` x (its largest expected magnitude, at least one); counts exactly."""
    assert results.keys() == expected.keys()
    for name, want in expected.items():
        got = results[name]
        assert got.shape == want.shape, name
        if not want.is_floating_point():
            assert torch.equal(got, want), name
        elif want.numel():
            error = (got.double() - want.double()).abs().max().item()
            assert error <= relative * max(1.0, want.double().abs().max().item()), f"{name}: off by {error}"


def assert_error_rule(results: Results, plain_results: Results, expected: Results, dtype: torch.dtype) -> None:
    """Our error is at most twice that of plain PyTorch, plus a floor for where plain PyTorch happens to be exact.

    For the maximum error the floor is one ulp of the dtype times max |expected|; for the RMS error, which averages
    over small elements too, one ulp times the RMS of expected.
    """
    ulp = torch.finfo(dtype).eps
    for name, want in expected.items():
        if not want.numel():
            continue
        if not want.is_floating_point():  # a hit may turn on rounding: then ours agrees with the other
            assert results[name] in (want, plain_results[name]), name
            continue
        got, theirs = (side[name].double() - want for side in (results, plain_results))
        for measure, norm in (("maximum", _maximum), ("RMS", _rms)):
            allowed = 2 * norm(theirs) + ulp * norm(want)
            assert norm(got) <= allowed, f"{name}: {measure} error {norm(got):.3g}, allowed {allowed:.3g}"


def _maximum(x: torch.Tensor) -> float:
    return x.abs().max().item()


def _rms(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()
