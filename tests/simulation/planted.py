"""Bugs planted in kernels, one at a time: which are tried, and what it takes for one to count as caught."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.cramkernels.cases import Case
from tests.cramkernels.compare import assert_error_rule, exact, ours, plain
from tests.simulation import cuda


def the_first_by_default(mutants: Sequence[tuple], name: Callable[[tuple], str]) -> list:
    """Parameters: the first is tried by default, all under ``exhaustive``.

    Each is compiled, which takes many seconds; run ``pytest -m exhaustive tests/simulation`` when a kernel is changed.
    """
    marks = [(), *[pytest.mark.exhaustive] * (len(mutants) - 1)]
    return [pytest.param(*mutant, id=name(mutant), marks=mark) for mutant, mark in zip(mutants, marks, strict=True)]


def assert_passes(case: Case, sources: Path = cuda.SOURCES, *, conflicts: bool = False) -> None:
    """The case runs without a fault and within the error rule; with ``conflicts``, without bank conflicts too."""
    arguments = case.arguments()
    with cuda.simulated(80, sources=sources) as executed:
        results = ours(case, arguments)
    assert_error_rule(results, plain(case, arguments), exact(case, arguments), case.dtype)
    if not executed:  # no AssertionError: a mutant that never ran is not caught
        raise RuntimeError(f"{case}: no kernel ran")
    for symbol, result in executed if conflicts else ():
        assert result.stats.shared_load.bank_conflicts + result.stats.shared_store.bank_conflicts == 0, symbol


def assert_caught(case: Case, folder: Path, file: str, there: str, planted: str, **options) -> None:
    """A fault that the simulator names or a wrong result: a mutant that does not compile is not caught."""
    cuda.simulator()
    from ptxsim.errors import SimulationError

    sources = cuda.planted(folder, file, there, planted)
    with pytest.raises((SimulationError, AssertionError)):
        assert_passes(case, sources, **options)
