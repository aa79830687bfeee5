"""The Triton kernels without a GPU: compiled for a real architecture, their PTX executed in a simulator."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cramkernels import configurations
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
    before = configurations.SIMULATED_PART
    configurations.SIMULATED_PART = architecture
    with bridge(architecture, check=check, global_races=check == "full") as session, simulate_backend("triton"):
        try:
            yield executed
        finally:
            executed.extend(session.results)
            configurations.SIMULATED_PART = before


@contextmanager
def compiled_only(architecture: int) -> Iterator[list]:
    """Within this context Triton compiles for an architecture, and launches nothing; yields the compiled kernels."""
    sys.path.insert(0, str(SIMULATOR.resolve()))
    from ptxsim.triton_bridge import SimulatedDriver
    from triton.compiler.compiler import CompiledKernel
    from triton.runtime import driver

    kernels: list = []
    active, run, metadata = driver._active, CompiledKernel.run, CompiledKernel.launch_metadata
    before = configurations.SIMULATED_PART
    configurations.SIMULATED_PART = architecture
    driver.set_active(SimulatedDriver(architecture))
    CompiledKernel.run = property(lambda kernel: lambda *_: kernels.append(kernel))
    CompiledKernel.launch_metadata = lambda kernel, *_: None
    try:
        with simulate_backend("triton"):
            yield kernels
    finally:
        CompiledKernel.run, CompiledKernel.launch_metadata = run, metadata
        driver.set_active(active)
        configurations.SIMULATED_PART = before


def taken(kernel, architecture: int) -> tuple[int, int]:
    """(registers a thread, bytes of spill stores and loads) of a compiled kernel, by Triton's own assembler."""
    from triton.backends.nvidia.compiler import get_ptxas

    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernel.ptx"
        ptx.write_text(kernel.asm["ptx"])
        target = re.search(r"^\.target (\w+)", kernel.asm["ptx"], re.M).group(1)
        command = [get_ptxas(architecture).path, "-v", f"-arch={target}", "-o", ptx.with_suffix(".cubin"), ptx]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    registers = int(re.search(r"Used (\d+) registers", report).group(1))
    return registers, sum(int(stores) + int(loads) for stores, loads in spills)
