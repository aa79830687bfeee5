"""A fifth more time in any operation of the CPU makes its benchmark fail.

The floors are the ratios of a moment ago, of the same inputs. The operations are slowed where the benchmark finds them:
each takes a fifth more of its own time, in both directions.
"""

import importlib
import time

import pytest
import torch

from benchmarks import devices, timing
from benchmarks import floors as floors_of
from benchmarks.floors import Floors, TooSlow
from benchmarks.operations import Operation, Shape, operations
from benchmarks.test_operations import ON_A_CARD
from cramkernels import dispatch
from cramming_train.allocator import keep_freed_memory

pytestmark = pytest.mark.skipif(ON_A_CARD, reason="of the CPU")
OPERATIONS = operations(Shape(4096, 256))
MORE, SECONDS = 0.2, 2.0


@pytest.fixture(scope="module", name="processor")
def _processor():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()
    yield devices.Processor()
    torch.set_num_threads(before)


def slowed(function):
    """Takes a fifth more of its own processor time, busily."""

    def run(*arguments):
        started = time.process_time()
        result = function(*arguments)
        until = time.process_time() + MORE * (time.process_time() - started)
        while time.process_time() < until:
            pass
        return result

    return run


@pytest.fixture
def slow(monkeypatch):
    """``slow(operation)``: from now on its implementation is."""

    def plant(operation: Operation) -> None:
        op = operation.name.removesuffix("_recompute")
        module = importlib.import_module(f"cramkernels.reference.{dispatch.FAMILIES[op]}")
        for direction in ("forward", "backward"):
            monkeypatch.setattr(module, f"{op}_{direction}", slowed(getattr(module, f"{op}_{direction}")))
        dispatch._implementation.cache_clear()

    yield plant
    monkeypatch.undo()
    dispatch._implementation.cache_clear()


# One stands for the rest, which take minutes
@pytest.mark.parametrize("operation", [
    op if op.name == "geglu" else pytest.param(op, marks=pytest.mark.exhaustive) for op in OPERATIONS
], ids=lambda operation: operation.name)  # fmt: skip
def test_a_fifth_more_time_fails(operation, processor, slow, tmp_path, monkeypatch):
    monkeypatch.setattr(floors_of.time, "sleep", lambda seconds: None)
    watches = timing.stopwatches(processor, operation)
    floors = Floors("here", tmp_path)
    floors.hold(str(operation), timing.Measurement(watches, seconds=SECONDS))
    floors.write()
    floors = Floors("here", tmp_path)
    floors.hold(str(operation), timing.Measurement(watches, seconds=SECONDS))
    slow(operation)
    with pytest.raises(TooSlow, match=f"{operation.name}.* x eager's time, committed .*, allowed"):
        floors.hold(str(operation), timing.Measurement(watches, seconds=SECONDS))
