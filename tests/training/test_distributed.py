"""The group of processes, apart from training."""

import subprocess
import sys

import pytest

SCRIPT = """
import os
from pathlib import Path
import torch
from cramming_train.distributed import join_world

world = join_world("cpu")
weight = torch.nn.Parameter(torch.ones(3, 3))
weight.grad = torch.full((3, 3), float(world.rank))
torch.optim.AdamW([weight]).step()  # imports more of PyTorch
world.average([weight.grad])
assert torch.equal(weight.grad, torch.full((3, 3), 0.5))
world.close()
threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
assert not any("gloo" in name for name in threads), threads
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_no_thread_of_the_group_outlives_it(tmp_path):
    """A thread that frees a tensor while the interpreter shuts down aborts the process, once in many runs."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = subprocess.run([*launcher, script], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
