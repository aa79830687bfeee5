"""When a machine counts as quiet: by the rate of products that was committed for it."""

from __future__ import annotations

from benchmarks.results import Results
from benchmarks.test_contenders import QUIET, quiet

CEILINGS = {"copy_bytes_per_second": 1e10, "gemm_flops_per_second": 7e10}


def committed(folder, **row) -> Results:
    results = Results(folder)
    results.machine = {"name": "test", "dtype": "float32", "ceilings": CEILINGS}
    results.add(name="training", direction="step", family="training", seconds={"ours": 1.0}, ratios={}, **row)
    results.write()
    return results


def test_products_at_the_committed_rate(tmp_path):
    results = committed(tmp_path, gemm_flops_per_second=6e10)
    assert quiet(results, "training", 6e10)
    assert quiet(results, "training", 1.001 * QUIET * 6e10)
    assert not quiet(results, "training", 0.999 * QUIET * 6e10)


def test_nothing_committed(tmp_path):
    assert quiet(Results(tmp_path / "none"), "training", 1.0)
    results = committed(tmp_path)
    assert quiet(results, "training", 1.0)  # a row without a rate
    assert quiet(results, "another", 1.0)
