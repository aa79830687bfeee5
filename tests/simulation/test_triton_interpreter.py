"""Triton's own interpreter in fp32 and fp16 (it computes bf16 wrongly), in its own process: it is chosen at import.

python -m tests.simulation.test_triton_interpreter [STEP]    runs every STEP-th case and prints how many there were
"""

import os
import subprocess
import sys

import pytest

from cramkernels.dispatch import simulate_backend
from tests.cramkernels.cases import (
    BF16,
    FP16,
    FP32,
    FP64,
    GEGLU_CASES,
    KERNEL_ATTENTION_CASES,
    KERNEL_ROTARY_CASES,
    LONG_ATTENTION_CASES,
    MLM_LOSS_CASES,
    NORM_CASES,
)
from tests.cramkernels.compare import assert_error_rule, exact, ours, plain

CASES = [
    case
    for case in (*NORM_CASES, *GEGLU_CASES)
    if case.dtype not in (BF16, FP64) and case.shape[-1] < 1000  # long rows are slow here
] + [case for case in (*MLM_LOSS_CASES, *KERNEL_ROTARY_CASES) if case.dtype != BF16]
# of attention in fp32 those without options: numpy adds up products in an order that depends on the tile, so that
# recomputed scores are not quite those of the log-sum-exp
CASES += [case for case in (*KERNEL_ATTENTION_CASES, *LONG_ATTENTION_CASES) if case.dtype == FP16][2::3]
CASES += [case for case in LONG_ATTENTION_CASES if case.dtype == FP32 and not (case.rope or case.options)][:3]


def interpret(step: int) -> int:
    for case in CASES[::step]:
        arguments = case.arguments()
        with simulate_backend("triton"):
            results = ours(case, arguments)
        assert_error_rule(results, plain(case, arguments), exact(case, arguments), case.dtype)
    return len(CASES[::step])


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_in_the_interpreter(step, proof):
    pytest.importorskip("triton", reason="triton is not installed")
    run = subprocess.run(
        [sys.executable, "-m", "tests.simulation.test_triton_interpreter", str(step)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.split() == [str(len(CASES[::step])), "cases"]
    proof("Triton interpreted", {f"{case.op} {case.dtype}" for case in CASES[::step]})


if __name__ == "__main__":
    print(interpret(int(sys.argv[1]) if sys.argv[1:] else 1), "cases")
