"""The Triton kernels of the row family, compiled for real architectures and executed with every check."""

import importlib
import subprocess

import pytest

from benchmarks.resources import read_report
from tests.cramkernels.cases import BF16, FP32, GEGLU_CASES, KERNEL_ROW_CASES, MANY_ROWS, NORM_CASES, NORMS, RowCase
from tests.cramkernels.compare import assert_error_rule, exact, ours, plain
from tests.cramkernels.turns import in_turns
from tests.simulation.triton import simulated

pytest.importorskip("triton", reason="triton is not installed")
launch = importlib.import_module("cramkernels.triton.launch")
CASES = [*NORM_CASES, *GEGLU_CASES, *KERNEL_ROW_CASES]


def run(case, architecture, proof):
    arguments = case.arguments()
    with simulated(architecture) as executed:
        results = ours(case, arguments)
    proof(f"Triton sm_{architecture} executed", {f"{case.op} {case.dtype} {name}" for name in executed.symbols()})
    assert_error_rule(results, plain(case, arguments), exact(case, arguments), case.dtype)


@pytest.mark.parametrize("case", in_turns(CASES), ids=str)
def test_sm_80(case, proof):
    run(case, 80, proof)


@pytest.mark.parametrize("case", MANY_ROWS, ids=str)
def test_more_programs_than_one_turn_of_the_reduction(case, proof, monkeypatch):
    monkeypatch.setattr(launch, "SIMULATED_MULTIPROCESSORS", 40)
    run(case, 80, proof)


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
@pytest.mark.parametrize("op", NORMS)
def test_no_spills(op, dtype, tmp_path):
    """A tile of the backward has most of a multiprocessor's registers."""
    from native_build import find_nvcc

    kernel = importlib.import_module("cramkernels.triton.normalization")._backward_kernel
    dropout = (("dropout_p", 0.3), ("seed", 5)) if op == "add_layer_norm" else ()
    case = RowCase(op, dtype, FP32, shape=(5, 1024), linear_bias=op == "gelu_layer_norm", options=dropout)
    kernel.device_caches.clear()
    with simulated(80, check="none"):
        ours(case, case.arguments())
    ((compiled, *_),) = kernel.device_caches.values()
    (made,) = compiled.values()
    (tmp_path / "kernel.ptx").write_text(made.asm["ptx"])
    for architecture in (86, 120):
        ptxas = [find_nvcc().with_name("ptxas"), "-v", f"-arch=sm_{architecture}", "-o", tmp_path / "kernel.cubin"]
        report = subprocess.run([*ptxas, tmp_path / "kernel.ptx"], capture_output=True, text=True, check=True).stderr
        ((*_, spilled, _),) = read_report(report)
        assert spilled == 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("architecture", [86, 89])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_other_architectures(case, architecture, proof):
    run(case, architecture, proof)
