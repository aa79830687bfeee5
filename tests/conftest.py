"""Fixtures shared by all tests."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import defaultdict
from pathlib import Path

import hypothesis
import pytest
import torch

from cramming_train.data import PreparedData, prepare_data
from cramming_train.data.embedded import read_embedded
from cramming_train.recipes import Data

# The same examples each time: what a change breaks fails at once, and nothing else does
hypothesis.settings.register_profile("same-examples", derandomize=True)
hypothesis.settings.load_profile("same-examples")

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"


@pytest.fixture(scope="session", autouse=True)
def _threads():
    """One thread, in commands too: there is a process of tests for every core, and threads that share one wait."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _interruptible():
    """A shell has what it starts in the background ignore SIGINT, as would all commands that tests interrupt."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture(scope="session")
def documentation_text(tmp_path_factory) -> Path:
    """About 3 MB of real English that every machine has: documentation of the standard library, as .jsonl."""
    path = tmp_path_factory.mktemp("text") / "documentation.jsonl"
    written = 0
    with open(path, "w", encoding="utf-8") as file:
        for text in read_embedded():
            file.write(json.dumps({"text": text}) + "\n")
            written += len(text)
            if written > 3_000_000:
                break
    return path


SMALL_DATA = Data("small", vocab_size=1024, row_length=32, validation_fraction=0.05, compression_threshold=None)


@pytest.fixture(scope="session")
def small_data(documentation_text, tmp_path_factory) -> PreparedData:
    """Prepared rows of 32 tokens, vocabulary 1024, of that text."""
    return prepare_data(
        [str(documentation_text)], SMALL_DATA, out=tmp_path_factory.mktemp("prepared") / "small", progress=False
    )


_proven: dict[str, set[str]] = defaultdict(set)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """What a worker's tests have proven."""
    for kind, kernels in getattr(node, "workeroutput", {}).get("ran", {}).items():
        _proven[kind].update(kernels)


def pytest_terminal_summary(terminalreporter):
    """One line a proof of the simulator."""
    own = sys.modules.get("tests.simulation.conftest")
    for kind, kernels in getattr(own, "_ran", {}).items():
        _proven[kind].update(kernels)
    for kind in sorted(_proven):
        terminalreporter.write_line(f"{kind}: {len(_proven[kind])} kernels")
