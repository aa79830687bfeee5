"""What a summary says of the kernels, and how it is written."""

import torch

from cramkernels.dispatch import OPERATIONS
from cramming_train.runs import Run
from cramming_train.summary import kernels_used, write_summary


def test_kernels_of_every_operation():
    assert kernels_used(torch.device("cpu"), torch.float32) == dict.fromkeys(OPERATIONS, "reference")


def test_written_and_read_again(tmp_path):
    run = Run(tmp_path)
    assert run.summary is None
    content = {"name": "x", "train_loss": 3.25, "rules": [{"rule": "one", "kept": None, "why": "-"}]}
    write_summary(run, content)
    assert run.summary == content
    write_summary(run, {**content, "train_loss": 3.0})
    assert run.summary["train_loss"] == 3.0 and [path.name for path in tmp_path.iterdir()] == ["summary.json"]
