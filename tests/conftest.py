"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"


@pytest.fixture(scope="session", autouse=True)
def _threads():
    """Two threads whatever the machine: bit-for-bit comparisons need one thread count throughout."""
    torch.set_num_threads(min(2, torch.get_num_threads()))


def _shared_folder(name: str) -> Path:
    folder = SHARED / "data" / name
    if not folder.is_dir():
        pytest.skip(f"{name}: no ../shared/data/{name} beside the checkout")
    return folder.resolve()


@pytest.fixture(scope="session")
def corpus_dir() -> Path:
    """The real text corpus (jsonl.gz files with a validation file); skips where it is absent."""
    return _shared_folder("corpus")


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """Real GLUE data as TSV; skips where it is absent."""
    return _shared_folder("glue")
