"""Every case of the shared lists on a real card, by each backend, against fp64 under the error rule.

Skipped without one. The same kernels are proven in a simulator (tests/simulation); here it is the card's turn.
"""

import pytest
import torch

import cramkernels
from benchmarks.devices import Card
from benchmarks.operations import Shape, operations
from cramkernels import use_backend
from tests.cramkernels import cases
from tests.cramkernels.cases import ALL_CASES, BF16
from tests.cramkernels.compare import assert_error_rule, exact, ours, plain

if not torch.cuda.is_available():
    pytest.skip("there is no GPU here", allow_module_level=True)

CASES = list(dict.fromkeys([
    *ALL_CASES, *cases.KERNEL_ROW_CASES, *cases.KERNEL_ATTENTION_CASES, *cases.LONG_ATTENTION_CASES,
    *cases.KERNEL_ROTARY_CASES, *cases.KERNEL_LOSS_CASES,
]))  # fmt: skip
every_backend = pytest.mark.parametrize("backend", ["cuda", "triton"])


def require(backend, op, dtype):
    """Skips where the backend cannot serve this card, with its own reason."""
    if dtype == BF16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this card has no bf16")
    try:
        with use_backend(backend):
            cramkernels.backend_for(op, dtype=dtype, device="cuda")
    except ValueError as error:
        pytest.skip(str(error))


def on_the_card(case, run=ours):
    return {name: x.cpu() for name, x in run(case, case.arguments("cuda")).items()}


@every_backend
@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_rule(case, backend):
    require(backend, case.op, case.dtype)
    with use_backend(backend):
        results = on_the_card(case)
    arguments = case.arguments()
    assert_error_rule(results, plain(case, arguments), exact(case, arguments), case.dtype)


@every_backend
@pytest.mark.parametrize("case", CASES[:: len(CASES) // 60], ids=str)
def test_the_same_bits_twice(case, backend):
    require(backend, case.op, case.dtype)
    with use_backend(backend):
        first, second = on_the_card(case), on_the_card(case)
    assert all(torch.equal(x, second[name]) for name, x in first.items())


@every_backend
@pytest.mark.parametrize("operation", operations(Shape(2048, 256, 4096)), ids=str)
def test_at_a_training_shape_eager_agrees_and_a_graph_holds_it(operation, backend):
    """Forward and backward, captured and replayed."""
    card = Card(torch.cuda.current_device())
    require(backend, operation.name.removesuffix("_recompute"), card.dtype)
    problem = operation.problem(card.torch, card.dtype)
    with use_backend(backend):
        step = problem.step("ours")
        expected = problem.functions["eager"](*problem.leaves)
        torch.testing.assert_close(problem.functions["ours"](*problem.leaves).float(), expected.float(),
                                   rtol=0.05, atol=0.05)  # fmt: skip
        assert card.stopwatch([step, step])() > 0
