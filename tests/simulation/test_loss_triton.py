"""The Triton kernels of the masked-LM loss, compiled for real architectures and executed with every check."""

import pytest
import torch

from cramkernels import mlm_loss
from tests.cramkernels.cases import FP32, KERNEL_LOSS_CASES, MANY_TILES, MLM_LOSS_CASES, TILED_LOSS_CASES, LossCase
from tests.cramkernels.compare import assert_error_rule, exact, ours, plain, poisoned_memory
from tests.cramkernels.test_mlm_loss_numbers import SCALE, confident, weight_gradient
from tests.cramkernels.turns import in_turns
from tests.simulation.operators import GRAPHS, assert_a_graph_can_hold_it
from tests.simulation.triton import simulated

pytest.importorskip("triton", reason="triton is not installed")
MODES = pytest.mark.parametrize("mode", ["chunked", "recompute"])


def run(case, architecture, proof):
    arguments = case.arguments()
    with simulated(architecture) as executed:
        results = ours(case, arguments)
    proof(f"Triton sm_{architecture} executed", {f"{case.op} {case.dtype} {name}" for name in executed.symbols()})
    assert_error_rule(results, plain(case, arguments), exact(case, arguments), case.dtype)


LONGEST_TO_RUN = pytest.param(MANY_TILES[0], marks=pytest.mark.exhaustive)  # half a minute


@pytest.mark.parametrize("case", [*in_turns([*MLM_LOSS_CASES, *KERNEL_LOSS_CASES[:-1]]), LONGEST_TO_RUN], ids=str)
def test_sm_80(case, proof):
    run(case, 80, proof)


@pytest.mark.exhaustive
@pytest.mark.parametrize("architecture", [86, 89])
@pytest.mark.parametrize("case", [*MLM_LOSS_CASES, *KERNEL_LOSS_CASES], ids=str)
def test_other_architectures(case, architecture, proof):
    run(case, architecture, proof)


@pytest.mark.parametrize("case", [KERNEL_LOSS_CASES[1], *TILED_LOSS_CASES[1:3]], ids=str)
def test_the_same_bits_twice(case):
    arguments = case.arguments()
    with simulated(80):
        first, again = ours(case, arguments), ours(case, arguments)
    assert all(first[name].equal(again[name]) for name in first)


@pytest.mark.exhaustive
def test_the_largest_vocabulary_without_logits(proof):
    run(MANY_TILES[1], 80, proof)


@MODES
@pytest.mark.parametrize("options", GRAPHS, ids=["plain", "more"])
def test_nothing_waits_and_no_shape_depends_on_a_value(mode, options):
    assert_a_graph_can_hold_it(simulated, mode=mode, **options)


@MODES
def test_small_probabilities_survive_fp16_under_a_loss_scale(mode):
    """Probabilities below 1e-7: announced, a scale of 2^16 keeps their gradients."""
    hidden, weight, labels = confident(torch.float16)
    expected = weight_gradient(hidden.double(), weight.double(), labels, mlm_loss, 1.0)
    with simulated(80):
        got = weight_gradient(hidden, weight.float(), labels, mlm_loss, SCALE, grad_scale=SCALE, mode=mode)
    assert (got - expected)[1:].norm() < 0.02 * expected[1:].norm()


@MODES
def test_all_rows_ignored(mode):
    case = LossCase("mlm_loss", FP32, masked=21, ignored=1.0, options=(("mode", mode), ("z_loss", 0.1)))
    with simulated(80):
        results = ours(case, case.arguments())
    assert not any(x.any() for x in results.values())  # NaN would be true


@MODES
@pytest.mark.parametrize("label", [-1, 37, 1 << 40])
def test_a_label_outside_the_vocabulary_gives_nan_and_reads_nothing(mode, label):
    hidden, weight = torch.randn(4, 8).half().requires_grad_(), torch.randn(37, 8).half()
    with simulated(80), poisoned_memory():
        loss = mlm_loss(hidden, weight, torch.tensor([0, label, 2, 3]), mode=mode).loss
        (gradient,) = torch.autograd.grad(loss, hidden)
    assert loss.isnan() and gradient.isfinite().all()
