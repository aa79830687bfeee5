"""Bugs planted in the Triton kernels, one at a time: the cases must notice each."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

from cramkernels import dispatch
from tests.cramkernels.cases import BF16, FP32, RowCase
from tests.cramkernels.compare import assert_error_rule, exact, ours, plain
from tests.simulation.triton import simulated

pytest.importorskip("triton", reason="triton is not installed")
launch = importlib.import_module("cramkernels.triton.launch")
FOLDER = Path(dispatch.__file__).parent / "triton"
NORM, ADD = "layer_norm", "add_layer_norm"
SHAPE = (600, 72)  # several tiles a program, with the multiprocessors below
MUTANTS = [
    ("normalization", "centred = tl.where(inside, x - rough_mean, 0.0)", "centred = x - rough_mean",
     RowCase(NORM, BF16, shape=SHAPE, offset=9.0)),
    ("normalization", "tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), inside)",
     "tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty))", RowCase(NORM, BF16, shape=SHAPE)),
    ("normalization", "tl.num_programs(0) * ROWS):", "2 * tl.num_programs(0) * ROWS):",
     RowCase(NORM, BF16, shape=SHAPE)),
    ("normalization", "tl.arange(0, ROWS) * tl.num_programs(0)", "tl.arange(0, ROWS)",
     RowCase(NORM, BF16, shape=SHAPE)),
    ("normalization", "inside = own & (row < rows)", "inside = own", RowCase(NORM, BF16, shape=SHAPE)),
    ("normalization", "tl.sum(x, 0, keep_dims=True)", "tl.max(x, 0, keep_dims=True)",
     RowCase(NORM, BF16, shape=(25, 600))),
    ("normalization", "dweight += grad * normal", "dweight = grad * normal", RowCase(NORM, FP32, shape=SHAPE)),
    ("normalization", "first in range(0, programs, ROWS)", "first in range(0, programs, 2 * ROWS)",
     RowCase(NORM, FP32, shape=SHAPE)),
    ("normalization", "inside = (row < programs)[:, None] & (columns < width)[None, :]",
     "inside = (row <= programs)[:, None] & (columns < width)[None, :]", RowCase(NORM, FP32, shape=SHAPE)),
    ("normalization", "tl.interleave(w0, w2)", "tl.interleave(w2, w0)",
     RowCase(ADD, FP32, shape=SHAPE, options=(("dropout_p", 0.3), ("seed", 5)))),
    ("normalization", "dx *= slope", "dx += slope", RowCase("gelu_layer_norm", FP32, shape=SHAPE)),
    ("activation", "dlinear_sum += dlinear", "dlinear_sum = dlinear",
     RowCase("geglu", BF16, FP32, shape=SHAPE, linear_bias=True)),
    ("activation", "dgated = grad * linear * slope", "dgated = grad * linear * value",
     RowCase("geglu", BF16, shape=SHAPE)),
    ("activation", "columns < width", "columns < 2 * width", RowCase("geglu", BF16, shape=SHAPE)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "there", "planted", "case"), MUTANTS, ids=[f"{m[0]}:{m[1][:40]}" for m in MUTANTS])
def test_a_planted_bug_is_caught(name, there, planted, case, tmp_path, monkeypatch, proof):
    text = (FOLDER / f"{name}.py").read_text()
    assert there in text, f"{name}.py has changed: {there}"
    (tmp_path / f"{name}.py").write_text(text.replace(there, planted, 1))
    full_name = f"cramkernels.triton.{name}"
    spec = importlib.util.spec_from_file_location(full_name, tmp_path / f"{name}.py")
    mutant = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, full_name, mutant)
    spec.loader.exec_module(mutant)
    monkeypatch.setattr(launch, "SIMULATED_MULTIPROCESSORS", 36)  # programs for more than one turn of the reduction
    arguments = case.arguments()
    expected = plain(case, arguments), exact(case, arguments)
    dispatch._implementation.cache_clear()
    try:
        with pytest.raises(Exception) as caught:  # the simulator's own errors, or a wrong result
            with simulated(80) as executed:
                results = ours(case, arguments)
            assert executed, "the mutant did not run"
            assert_error_rule(results, *expected, case.dtype)
        assert "did not run" not in str(caught.value)
    finally:
        dispatch._implementation.cache_clear()
    proof("planted bugs caught", {f"{name}:{there}"})
