"""``python -m cramkernels.info``."""

import subprocess
import sys
from types import SimpleNamespace

import torch

from cramkernels import backend_for, library
from cramkernels.dispatch import OPERATIONS
from cramkernels.info import devices, report


def test_the_command(tmp_path):
    """One line per operation and device: its backend and the reason; no warning on the way."""
    run = subprocess.run([sys.executable, "-m", "cramkernels.info"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr
    lines = run.stdout.splitlines()
    assert lines[0].startswith("python ") and f"torch {torch.__version__}" in lines[0]
    assert lines[1].startswith("triton: ")
    for op in OPERATIONS:
        choice = backend_for(op, dtype=torch.float32, device="cpu")
        assert any(line.split()[:2] == [op, choice.backend] and choice.reason in line for line in lines), op
    assert ("no CUDA device" in run.stdout) == (not torch.cuda.is_available())


def test_devices_are_listed_with_the_dtype_that_training_uses(monkeypatch):
    """Two cards: bf16 where there is bf16, else fp16."""
    capabilities = {0: (7, 5), 1: (9, 0)}

    def capability(device):
        return capabilities[device if isinstance(device, int) else torch.device(device).index]

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
    found = devices()
    assert [(str(device), dtype) for device, dtype, _ in found] == [
        ("cpu", torch.float32), ("cuda:0", torch.float16), ("cuda:1", torch.bfloat16),
    ]  # fmt: skip
    assert found[1][2] == "Card 0, sm_75" and found[2][2] == "Card 1, sm_90"
    text = report()
    assert "cuda:0 (Card 0, sm_75), torch.float16:" in text and "no CUDA device" not in text


def test_a_missing_library_is_explained(monkeypatch):
    monkeypatch.setattr(library, "load", lambda: "the CUDA library was not built (no nvcc)")
    assert "CUDA library: the CUDA library was not built (no nvcc)" in report()


def test_an_old_library_is_pointed_out(monkeypatch):
    """Its architectures, the driver, and that the sources are newer."""
    driver = SimpleNamespace(ck_driver_version=lambda: 12040)
    monkeypatch.setattr(library, "load", lambda: library.Library(driver, (75, 86), {}))
    monkeypatch.setattr(library, "is_older_than_sources", lambda: True)
    text = report()
    assert "for sm_75, sm_86, driver for CUDA 12.4; OLDER THAN csrc/" in text


def test_without_triton(monkeypatch):
    monkeypatch.setattr("cramkernels.info._version", lambda package: "not installed")
    assert "triton: not installed" in report()
