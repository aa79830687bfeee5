"""What was proven: printed at the end, so that a skipped kernel is not mistaken for a passed one."""

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


def pytest_terminal_summary(terminalreporter):
    """One line a proof."""
    for kind in sorted(_ran):
        terminalreporter.write_line(f"{kind}: {len(_ran[kind])} kernels")
