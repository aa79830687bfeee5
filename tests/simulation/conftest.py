"""What was proven: noted here and printed by ../conftest.py; a skipped kernel is not to pass for a proven one."""

from __future__ import annotations

from collections import defaultdict

import pytest

_ran: dict[str, set[str]] = defaultdict(set)


@pytest.fixture
def proof():
    """``proof(kind, kernels)`` notes that these kernels ran under that proof."""

    def note(kind: str, kernels) -> None:
        _ran[kind].update(kernels)

    return note


def pytest_sessionfinish(session):
    """From a worker to the process that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["ran"] = {kind: sorted(kernels) for kind, kernels in _ran.items()}
