"""What the masked-LM loss asks of memory: each logit once for reading and once for writing; no more than its peers."""

import json
from functools import cache

import pytest

from benchmarks import cost, cost_loss
from benchmarks.cost_cases import CUDA, TRITON
from benchmarks.cost_loss import CCE, CI, LIGER, SLACK, Shape

pytest.importorskip("triton", reason="triton is not installed")
languages = pytest.mark.parametrize("language", [CUDA, TRITON], ids=["cuda", "triton"])


@pytest.fixture(scope="module", autouse=True)
def _simulator():
    if (missing := cost.obstacle()) is not None:
        pytest.skip(missing)


@cache
def measured(mode, language, shape=CI):
    return cost_loss.measure(mode, language, shape)


@languages
def test_each_logit_is_read_once_and_written_once(language):
    row = measured("chunked", language)
    assert 1.0 <= row["logits_read"] <= SLACK and 1.0 <= row["logits_written"] <= SLACK


@pytest.mark.parametrize("vocabulary", [32_768, 50_257, 50_368, 128_256])
def test_so_are_those_of_long_rows(vocabulary):
    """In CUDA C++, on every architecture: registers and 63 KB of shared memory hold them."""
    row = measured("chunked", CUDA, Shape(4, vocabulary, 8))
    assert row["logits_read"] <= SLACK and row["logits_written"] <= SLACK


def test_of_a_row_beyond_that_the_rest_is_read_twice():
    """And Triton reads rows of more than 32768 twice."""
    row = measured("chunked", CUDA, Shape(4, 163_840, 8))
    assert row["logits_read"] == pytest.approx(2 - 130_560 / 163_840, abs=0.01) and row["logits_written"] <= SLACK
    row = measured("chunked", TRITON, Shape(4, 50_368, 8))
    assert row["logits_read"] == pytest.approx(2, abs=0.01) and row["logits_written"] <= SLACK


@languages
@pytest.mark.parametrize(("mode", "peer"), [("chunked", LIGER), ("recompute", CCE)])
def test_no_more_bytes_than_the_peer(mode, peer, language):
    theirs = measured(mode, peer)
    if "absent" in theirs:
        pytest.skip(f"{peer}: {theirs['absent']}")
    ours = measured(mode, language)
    assert ours["total"] <= theirs["total"]
    assert cost_loss.misses([ours, theirs]) == []
    if mode == "recompute":
        for direction in ("forward", "backward"):
            both = [row["kernels"][direction] + row["products"][direction] for row in (ours, theirs)]
            assert both[0] <= both[1], direction


def test_a_miss_is_named():
    ours = measured("chunked", CUDA) | {"logits_read": 2.0}
    theirs = ours | {"language": LIGER, "total": ours["total"] - 1}
    lines = cost_loss.misses([ours, theirs])
    assert len(lines) == 2 and "read 2.0 x" in lines[0] and "Liger" in lines[1]
    absent = {"mode": "recompute", "language": CCE, "shape": str(CI), "absent": "not installed"}
    assert "| not installed |" in cost_loss.markdown([ours, absent])


def committed():
    return [json.loads(line) for line in (cost_loss.RESULTS / "loss.jsonl").read_text().splitlines()]


def test_the_committed_table_is_whole_and_misses_nothing():
    shapes = [str(shape) for shape in (CI, cost_loss.BETWEEN, cost_loss.FULL)]
    rows = committed()
    expected = [(s, mode, name) for s in shapes for mode, names in cost_loss.LANGUAGES.items() for name in names]
    assert [(row["shape"], row["mode"], row["language"]) for row in rows] == expected
    assert not any("absent" in row for row in rows) and cost_loss.misses(rows) == []


@pytest.mark.parametrize("mode", ["chunked", "recompute"])
def test_the_committed_table_is_of_these_kernels(mode):
    """In CUDA C++: of Triton's another version may ask for more or less."""
    (row,) = [r for r in committed() if (r["mode"], r["language"], r["shape"]) == (mode, CUDA, str(CI))]
    now = measured(mode, CUDA)
    assert now["products"] == row["products"]
    assert now["total"] == pytest.approx(row["total"], rel=0.01), "python -m benchmarks.cost_loss --full"
