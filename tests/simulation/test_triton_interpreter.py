"""Triton's own interpreter in fp32 and fp16 (it computes bf16 wrongly), in its own process: it is chosen at import.

python -m tests.simulation.test_triton_interpreter    runs the cases and prints how many there were
"""

import os
import subprocess
import sys

import pytest

from cramkernels.dispatch import simulate_backend
from tests.cramkernels.cases import BF16, FP64, GEGLU_CASES, MLM_LOSS_CASES, NORM_CASES
from tests.cramkernels.compare import assert_error_rule, exact, ours, plain

CASES = [
    case
    for case in (*NORM_CASES, *GEGLU_CASES)
    if case.dtype not in (BF16, FP64) and case.shape[-1] < 1000  # long rows are slow here
] + [case for case in MLM_LOSS_CASES if case.dtype != BF16]


def interpret() -> int:
    for case in CASES:
        arguments = case.arguments()
        with simulate_backend("triton"):
            results = ours(case, arguments)
        assert_error_rule(results, plain(case, arguments), exact(case, arguments), case.dtype)
    return len(CASES)


def test_in_the_interpreter(proof):
    pytest.importorskip("triton", reason="triton is not installed")
    run = subprocess.run(
        [sys.executable, "-m", "tests.simulation.test_triton_interpreter"],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.split() == [str(len(CASES)), "cases"]
    proof("Triton interpreted", {f"{case.op} {case.dtype}" for case in CASES})


if __name__ == "__main__":
    print(interpret(), "cases")
