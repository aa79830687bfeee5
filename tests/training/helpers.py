"""A tiny recipe, and commands run as a user runs them."""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from cramming_train.calibration import gemm_flops_per_second

TINY = [
    "architecture.layers=2", "architecture.hidden=32", "architecture.heads=2", "architecture.ffn_hidden=64",
    "data.vocab_size=1024", "data.row_length=32", "training.batch_size=8", "training.micro_batch_size=8",
]  # fmt: skip


def environment(tmp_path: Path) -> dict[str, str]:
    """No hub, a cache of its own, one thread."""
    return {
        **os.environ, "CRAMMING_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def command(module: str, *arguments: object) -> list[str]:
    """The command line of one of our modules."""
    return [sys.executable, "-m", f"cramming_train.{module}", *map(str, arguments)]


def run(module: str, *arguments: object, tmp_path: Path, report: bool = True) -> subprocess.CompletedProcess:
    """Run a command to its end, within this process: one of its own would import PyTorch for seconds.

    The machine's rate is measured once a process; without ``report`` no pictures are drawn, which takes seconds too.
    """
    main = importlib.import_module(f"cramming_train.{module}").main
    before = dict(os.environ)
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(StringIO()) as stdout,
        redirect_stderr(StringIO()) as stderr,
        chdir(tmp_path),
    ):
        patch.setattr("cramming_train.pretrain.gemm_flops_per_second", _gemm_rate)
        if not report:
            patch.setattr("cramming_train.report.write_report", lambda _: None)
        os.environ.update(environment(tmp_path))
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as usage:  # argparse's
            status = usage.code
        finally:
            os.environ.clear()
            os.environ.update(before)
    return subprocess.CompletedProcess(arguments, status, stdout.getvalue(), stderr.getvalue())


_gemm_rate = functools.cache(gemm_flops_per_second)


def run_apart(module: str, *arguments: object, tmp_path: Path) -> subprocess.CompletedProcess:
    """Run a command to its end, in a process of its own."""
    return subprocess.run(
        command(module, *arguments), env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip


@contextmanager
def chdir(folder: Path) -> Iterator[None]:
    """contextlib's, which Python 3.10 has not yet."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def summary(run_folder: Path) -> dict:
    """summary.json."""
    return json.loads((run_folder / "summary.json").read_text())


def final_tensors(run_folder: Path) -> dict[str, bytes]:
    """Bytes of the newest checkpoint's tensors."""
    newest = sorted((run_folder / "checkpoints").glob("step-*"))[-1]
    return {path.name: path.read_bytes() for path in newest.glob("*.safetensors")}
