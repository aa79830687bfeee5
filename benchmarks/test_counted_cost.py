"""No kernel asks for more bytes than committed, counted in the simulator (benchmarks/guard.py)."""

from __future__ import annotations

import pytest

from benchmarks import cost, guard

pytest.importorskip("triton", reason="triton is not installed")


@pytest.fixture(scope="module", name="committed")
def _committed():
    if (missing := cost.obstacle()) is not None:
        pytest.skip(missing)
    compilers, counts = guard.read()
    return counts, compilers == guard.compilers()


@pytest.mark.parametrize("kernel", guard.guarded(), ids=lambda one: str(one).replace(", ", "-").replace(" ", "_"))
def test_no_more_than_committed(benchmark, kernel, committed):
    counts, same_compilers = committed
    found = benchmark.pedantic(kernel.counts, rounds=1)
    benchmark.extra_info["counted"] = found
    exceeded = guard.exceeded(counts.get(str(kernel)), found, same_compilers=same_compilers)
    assert not exceeded, "; ".join(exceeded)
