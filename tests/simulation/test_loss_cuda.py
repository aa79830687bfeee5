"""The CUDA kernels of the masked-LM loss: real launchers, real PTX, every check of the simulator, the 2x error rule."""

import pytest
import torch

from cramkernels import mlm_loss
from cramkernels.library import KernelError
from tests.cramkernels.cases import (
    BF16,
    FP16,
    FP32,
    KERNEL_LOSS_CASES,
    MANY_TILES,
    MLM_LOSS_CASES,
    TILED_LOSS_CASES,
    LossCase,
)
from tests.cramkernels.compare import assert_error_rule, exact, ours, plain, poisoned_memory
from tests.cramkernels.test_mlm_loss_numbers import SCALE, confident, weight_gradient
from tests.simulation.cuda import all_kernels, simulated
from tests.simulation.operators import GRAPHS, assert_a_graph_can_hold_it

KERNELS = 13
MODES = pytest.mark.parametrize("mode", ["chunked", "recompute"])


def run(case, architecture, proof):
    arguments = case.arguments()
    with simulated(architecture) as executed:
        results = ours(case, arguments)
    proof(f"CUDA C++ sm_{architecture} executed", executed.symbols())
    assert_error_rule(results, plain(case, arguments), exact(case, arguments), case.dtype)
    return executed


@pytest.mark.parametrize("case", [*MLM_LOSS_CASES, *KERNEL_LOSS_CASES], ids=str)
def test_sm_80(case, proof):
    run(case, 80, proof)


SM_75 = [case for case in (*MLM_LOSS_CASES[-6:], *KERNEL_LOSS_CASES) if case.dtype != BF16]


@pytest.mark.parametrize("case", SM_75, ids=str)
def test_sm_75(case, proof):
    run(case, 75, proof)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", [case for case in MLM_LOSS_CASES if case.dtype != BF16], ids=str)
def test_sm_75_everything(case, proof):
    run(case, 75, proof)


SAMPLES = [KERNEL_LOSS_CASES[1], *TILED_LOSS_CASES[1:3]]


@pytest.mark.parametrize("case", SAMPLES, ids=str)
def test_the_same_bits_twice(case):
    arguments = case.arguments()
    with simulated(80):
        first, again = ours(case, arguments), ours(case, arguments)
    assert all(first[name].equal(again[name]) for name in first)


def test_each_size_of_row_has_its_kernel(proof):
    """And shared memory only as far as it is needed, 63 KB at most."""
    shared = {}
    for vocabulary in (32_768, 32_769, 98_304, 98_312, 128_256, 140_000):
        case = LossCase("mlm_loss", BF16, tokens=1, hidden=8, vocabulary=vocabulary, ignored=0.0, bias=False)
        with simulated(80, check="none") as executed:
            ours(case, case.arguments())
        shared[vocabulary] = executed.symbols()[1], executed.launches[1].shared_bytes
    row, long_row = "ck_loss_rows_bf16", "ck_loss_rows_bf16_long"
    assert shared == {
        32_768: (row, 0), 32_769: (long_row, 0), 98_304: (long_row, 0), 98_312: (long_row, 16),
        128_256: (long_row, 59_904), 140_000: (long_row, 63 << 10),
    }  # fmt: skip


@pytest.mark.parametrize(("architecture", "stages"), [(75, 2), (80, 3)])
def test_the_ring_has_the_stages_that_there_is_room_for(architecture, stages):
    """24 KB each. The simulator holds the kernels to it: what they use beyond would be an error."""
    case = LossCase("mlm_loss", FP16, tokens=3, hidden=100, options=(("mode", "recompute"),))
    with simulated(architecture) as executed:
        ours(case, case.arguments())
    asked = {x.symbol.decode(): x.shared_bytes for x in executed.launches if x.shared_bytes}
    assert asked == dict.fromkeys(("ck_loss_tiles_f16", "ck_loss_slice_f16"), stages * 24 << 10)


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
    assert (got[1:, 0] / expected[1:, 0] - 1).abs().max() < 0.02


@MODES
@pytest.mark.parametrize("dtype", [FP32, FP16, BF16], ids=str)
def test_all_rows_ignored(mode, dtype):
    case = LossCase("mlm_loss", dtype, masked=21, ignored=1.0, options=(("mode", mode), ("z_loss", 0.1)))
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


@MODES
@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["hidden", "weight"])
def test_gradients_on_demand(mode, wanted):
    """What nobody asked for is neither computed nor allocated, and what was asked for does not change."""
    case = LossCase("mlm_loss", FP16, tokens=9, options=(("mode", mode),))
    arguments = case.arguments()
    with simulated(80):
        full = ours(case, arguments)
        leaves = {"hidden_TN": arguments["hidden_TN"].clone(), "weight_VN": arguments["weight_VN"].clone()}
        for leaf, flag in zip(leaves.values(), wanted, strict=True):
            leaf.requires_grad_(flag)
        mlm_loss(**{**arguments, **leaves}).loss.backward()
    for (name, leaf), flag in zip(leaves.items(), wanted, strict=True):
        assert (leaf.grad is not None) == flag
        assert not flag or leaf.grad.equal(full[f"gradient of {name}"])


@MODES
def test_tied_weights(mode):
    """The decoder is the embedding: both uses add up in one gradient."""
    embedding = (torch.randn(37, 8) * 0.3).requires_grad_()
    ids, labels = torch.randint(37, (9,)), torch.randint(37, (9,))
    losses = []
    for backend in (simulated(80), torch.enable_grad()):
        with backend:
            loss = mlm_loss(embedding.half()[ids], embedding.half(), labels, mode=mode).loss
            losses.append(torch.autograd.grad(loss, embedding)[0])
    torch.testing.assert_close(*losses, rtol=2e-3, atol=2e-4)


def test_a_bias_that_is_not_aligned():
    bias = torch.randn(1 + 128, dtype=torch.float16)[1:]
    hidden, weight, labels = torch.randn(4, 8).half(), torch.randn(128, 8).half(), torch.arange(4)
    with simulated(80):
        got = mlm_loss(hidden, weight, labels, bias=bias).loss
    torch.testing.assert_close(got, mlm_loss(hidden, weight, labels, bias=bias).loss, rtol=1e-3, atol=1e-3)


def test_a_bad_shape_is_an_error_and_not_a_launch():
    from cramkernels.cuda import mlm_loss as cuda

    hidden, weight = torch.randn(2, 8).half(), torch.randn(5, 8).half()
    problem = cuda.decoder._problem(hidden, weight, torch.zeros(2).long(), None, -100, 0.0, 0.0, None, None)
    with simulated(80) as executed:
        with pytest.raises(KernelError, match=r"ck_loss_rows: a shape that this kernel does not serve"):
            cuda._rows(problem, torch.empty(2, 5, dtype=FP16), 0, 2, True)
        with pytest.raises(KernelError, match=r"ck_loss_slice: a dtype"):
            problem.hidden = hidden.float()
            cuda._slice(problem, torch.empty(2, 8, dtype=FP16), 0, 2, 0, 5)
    assert not executed


def test_every_kernel_of_the_library_ran(request):
    """Together the cases reach each kernel of the family: a new one cannot go untested."""
    from tests.simulation.conftest import _ran

    if hasattr(request.config, "workerinput"):
        pytest.skip("the cases are spread over processes")
    family = {kernel for kernel in all_kernels(80) if kernel.startswith("ck_loss_")}
    assert len(family) == KERNELS
    ran = _ran["CUDA C++ sm_80 executed"]
    if len(ran & family) < 5:
        pytest.skip("only a part of the cases was selected")
    assert family <= ran
