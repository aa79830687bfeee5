"""Which cases run by default where fp16 and bf16 differ in conversions alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.cramkernels.cases import BF16, FP16, Case


def in_turns(cases: Sequence[Case]) -> list:
    """Parameters of a test: of two cases that differ in the 16-bit type one runs, in turns; the other is exhaustive."""
    numbers: dict[Case, int] = {}
    parameters = []
    for case in cases:
        number = numbers.setdefault(replace(case, dtype=BF16), len(numbers))
        twin = {FP16: BF16, BF16: FP16}.get(case.dtype)
        waits = (
            twin is not None
            and replace(case, dtype=twin) in cases
            and case.dtype == (FP16 if number % 2 == 0 else BF16)
        )
        parameters.append(pytest.param(case, marks=pytest.mark.exhaustive if waits else ()))
    return parameters
