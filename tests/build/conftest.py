"""Fixtures of the build's tests."""

from __future__ import annotations

import pytest

from tests.build.helpers import StandIn, native_build


@pytest.fixture(scope="session")
def nvcc():
    """The one that an install here would use; skips where there is none."""
    found = native_build.find_nvcc()
    if found is None:
        pytest.skip("nvcc is not installed")
    return found


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """No settings of the user's."""
    for name in ("CRAMKERNELS_CUDA", "CRAMKERNELS_CUDA_ARCHS", "CUDACXX", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def stand_in(tmp_path) -> StandIn:
    """An nvcc that records its calls."""
    return StandIn(tmp_path / "stand-in")
