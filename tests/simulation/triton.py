"""The Triton kernels without a GPU: compiled for a real architecture, their PTX executed in a simulator."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cramkernels.dispatch import simulate_backend
from tests.simulation.cuda import SIMULATOR, Executed


@contextmanager
def simulated(architecture: int, check: str = "full") -> Iterator[Executed]:
    """Within this context Triton launches on CPU tensors execute in the simulator, with all its checks."""
    pytest.importorskip("triton", reason="triton is not installed")
    if not SIMULATOR.is_dir():
        pytest.skip("ptxsim: no ../shared/tools/ptxsim beside the checkout")
    sys.path.insert(0, str(SIMULATOR.resolve()))
    from ptxsim.triton_bridge import simulated as bridge

    executed = Executed()
    with bridge(architecture, check=check, global_races=check == "full") as session, simulate_backend("triton"):
        try:
            yield executed
        finally:
            executed.extend(session.results)
