"""The modules that pyproject.toml lists are clean under mypy, and their types reach a user's program."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """
import torch

import cramkernels
import cramming_train

x = torch.randn(2, 4)
reveal_type(cramkernels.layer_norm(x, x[0], eps=1e-5))
reveal_type(cramkernels.mlm_loss(x, x, x[0].long()).loss)
reveal_type(cramming_train.load("first").embed(["a text"]))
cramkernels.geglu("not a tensor")
"""

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")


def mypy(*words: str) -> subprocess.CompletedProcess:
    """Its cache is kept, so that the second time takes a second."""
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *words]
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_listed_modules_are_clean():
    run = mypy()
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_users_program_sees_the_types(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    said = mypy(str(tmp_path / "program.py")).stdout
    revealed = [line.rpartition("Revealed type is ")[2] for line in said.splitlines() if "Revealed type" in line]
    assert len(revealed) == 3 and all("torch._tensor.Tensor" in kind for kind in revealed), said
    assert 'Argument 1 to "geglu" has incompatible type "str"' in said
