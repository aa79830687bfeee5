"""summary.json: what a run was and what came of it."""

from __future__ import annotations

from typing import Any

import torch

from cramkernels import backend_for
from cramkernels.dispatch import OPERATIONS
from cramming_train.checkpoint import write_json_atomically
from cramming_train.runs import SUMMARY_FILE, Run


def kernels_used(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Operation -> backend."""
    return {op: backend_for(op, dtype=dtype, device=device).backend for op in OPERATIONS}


def write_summary(run: Run, summary: dict[str, Any]) -> None:
    """Write summary.json."""
    write_json_atomically(run.path / SUMMARY_FILE, summary)
