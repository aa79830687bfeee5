"""What was proven: noted here and printed by ../conftest.py; a skipped kernel is not to pass for a proven one."""

from __future__ import annotations

import gc
from collections import defaultdict

import pytest

_ran: dict[str, set[str]] = defaultdict(set)


@pytest.fixture(scope="module", autouse=True)
def _collected_once():
    """The kernels that the simulator has read are millions of objects; no collection is to go through them again."""
    gc.set_threshold(100_000, 20, 100)
    yield
    gc.collect()
    gc.freeze()


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
