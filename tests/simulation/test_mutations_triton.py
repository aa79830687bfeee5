"""Bugs planted in the Triton kernels, one at a time: the cases must notice each."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

from cramkernels import dispatch
from tests.cramkernels.cases import BF16, EVERY_LOSS_OPTION, FP16, FP32, AttentionCase, LossCase, RowCase
from tests.cramkernels.compare import assert_error_rule, exact, ours, plain
from tests.simulation.planted import the_first_by_default
from tests.simulation.triton import simulated

pytest.importorskip("triton", reason="triton is not installed")
CompilationError = importlib.import_module("triton.compiler.errors").CompilationError
launch = importlib.import_module("cramkernels.triton.launch")
FOLDER = Path(dispatch.__file__).parent / "triton"
NORM, ADD = "layer_norm", "add_layer_norm"
SHAPE = (600, 72)  # several tiles a program, with the multiprocessors below
LOSS_ROWS = LossCase("mlm_loss", BF16, tokens=9, masked=21, vocabulary=1003)
LOSS_SHORT = LossCase("mlm_loss", BF16, tokens=9, masked=21, vocabulary=700)
LOSS_OPTIONS = LossCase("mlm_loss", FP32, tokens=9, masked=21, vocabulary=1003, options=EVERY_LOSS_OPTION)
LOSS_LONG = LossCase("mlm_loss", BF16, tokens=3, hidden=8, vocabulary=40_003, spread=0.7)
LOSS_TILED = LossCase(
    "mlm_loss", FP16, tokens=9, masked=21, hidden=40, vocabulary=701, options=(("mode", "recompute"),)
)
ATTENTION = "attention"
EVERYTHING = dict(heads=2, head_dim=32, outside=(2, 3), rope=True, masked=0.2)
EVERY_OPTION = (("window", 20), ("dropout_p", 0.2), ("seed", 2**40 + 3))
PLAIN_SHORT = AttentionCase(ATTENTION, BF16, lengths=(33, 60), heads=1, head_dim=32, outside=(2, 3))
PLAIN_LONG = AttentionCase(ATTENTION, BF16, lengths=(150, 37), heads=1, head_dim=32, outside=(2, 0), spread=3.0)
PLAIN_RAGGED = AttentionCase(ATTENTION, BF16, lengths=(150, 37), heads=1, head_dim=32)
WINDOWED = AttentionCase(ATTENTION, BF16, lengths=(150, 37), heads=1, head_dim=32, options=(("window", 20),))
CUT = AttentionCase(ATTENTION, BF16, lengths=(150, 37), heads=1, head_dim=128, outside=(2, 0), spread=3.0)
SHORT = AttentionCase(ATTENTION, BF16, lengths=(30, 0, 17, 60, 5), options=EVERY_OPTION, **EVERYTHING)
LONG = AttentionCase(ATTENTION, BF16, lengths=(30, 0, 140, 5), options=EVERY_OPTION, **EVERYTHING)
LONG_CUT = AttentionCase(ATTENTION, BF16, lengths=(30, 140), options=EVERY_OPTION, **{**EVERYTHING, "head_dim": 128})
ODD = AttentionCase(ATTENTION, BF16, lengths=(3, 128), heads=1, head_dim=32, options=(("dropout_p", 0.3), ("seed", 5)))
WIDE = AttentionCase(ATTENTION, FP32, lengths=(20, 17), heads=1, head_dim=128)
ROTARY = AttentionCase("rotary", BF16, lengths=(7, 0, 40), heads=3, head_dim=32, outside=(2, 5))
# Of the reduction's kernel more than one turn; but of LOSS_TILED's 6 tiles of the vocabulary 3 to a program
MULTIPROCESSORS = {"normalization": 36, "activation": 36, "mlm_loss": 2}
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
    ("mlm_loss", "return tl.where(inside, x, float(\"-inf\"))", "return tl.where(inside, x, 0.0)", LOSS_OPTIONS),
    ("mlm_loss", "_exp(x - maximum), 0)", "_exp(x), 0)", LossCase("mlm_loss", BF16, tokens=9, spread=40.0)),
    ("mlm_loss", "sums = sums * _exp(maxima - higher) + _exp(x - higher)", "sums += _exp(x - higher)", LOSS_LONG),
    ("mlm_loss", "tl.store(logits_ptr + columns, d.to(logits_ptr.dtype.element_ty), inside)",
     "tl.store(logits_ptr + columns, d.to(logits_ptr.dtype.element_ty))", LOSS_SHORT),
    ("mlm_loss", "tl.load(share_ptr), z, smoothing,\n                          softcap",
     "1.0, z, smoothing,\n                          softcap", LOSS_ROWS),
    ("mlm_loss", "d *= 1.0 - part * part", "d *= 1.0", LOSS_OPTIONS),
    ("mlm_loss", "1.0 + 2.0 * z * lse", "1.0 + z * lse", LOSS_OPTIONS),
    ("mlm_loss", "if label == ignore_index:", "if label == -7:", LOSS_ROWS),
    ("mlm_loss", "row < total, ignore_index) != ignore_index", "row < total, 0) != ignore_index", LOSS_ROWS),
    ("mlm_loss", "exponentials * _exp(maximum - higher) + tl.sum(", "exponentials + tl.sum(", LOSS_TILED),
    ("mlm_loss", "for split in range(0, splits):", "for split in range(0, splits - 1):", LOSS_TILED),
    ("mlm_loss", "tl.num_programs(1) * COLUMNS):", "2 * tl.num_programs(1) * COLUMNS):", LOSS_TILED),
    ("mlm_loss", "(columns < vocabulary)[:, None] & (at < width)", "(columns <= vocabulary)[:, None] & (at < width)",
     LOSS_TILED),
    ("mlm_loss", "(local_rows < count)[:, None] & inside)", "inside & (local_rows >= 0)[:, None])", LOSS_TILED),
    ("attention_forward", "total = total * shrink[:, None] + tl.sum(", "total = total + tl.sum(", PLAIN_LONG),
    ("attention_forward", "out * shrink[:, None]", "out", PLAIN_LONG),
    ("attention_forward", "scores *= scale_log2", "scores *= 1.0", PLAIN_SHORT),
    ("attention_forward", "chunks_end, CHUNK", "chunks_end // CHUNK * CHUNK, CHUNK", PLAIN_SHORT),
    ("attention_forward", "present = key < last", "present = key >= 0", PLAIN_LONG),
    ("attention_forward", "first + (last - first) // CHUNK", "first + (last - first + CHUNK - 1) // CHUNK",
     PLAIN_RAGGED),
    ("attention_forward", "key[None, :] >= low[:, None]", "key[None, :] > low[:, None]", PLAIN_SHORT),
    ("attention_forward", "(highest + tl.log2(total)) * 0.6931471805599453", "highest + tl.log2(total)", PLAIN_SHORT),
    ("attention_forward", "visible &= (tl", "visible |= (tl", SHORT),
    ("attention_forward", "factor *= keep_scale", "factor *= 1.0", SHORT),
    ("attention_backward", "(dp - delta[None, :])", "dp", PLAIN_SHORT),
    ("attention_backward", "(dp - delta[:, None])", "dp", CUT),
    ("attention_backward", "tl.sum(do * out, 1)", "tl.sum(do, 1)", CUT),
    ("attention_backward", "dk * scale", "dk", PLAIN_SHORT),
    ("attention_backward", "slices_start, slices_end = tl.minimum(first, begin), tl.maximum(last, end)", "pass",
     PLAIN_SHORT),
    ("attention_backward", "(query >= first) & (query < last)", "query >= first", PLAIN_LONG),
    ("attention_backward", "dropped = tl.where(keep, p, 0.0)", "dropped = p", SHORT),
    ("attention_backward", "dp = tl.where(keep, dp * keep_scale, 0.0)", "dp = dp * keep_scale", SHORT),
    ("attention_backward", "tl.load(key_mask_ptr + row, real, 0) != 0, high, 0)",
     "tl.load(key_mask_ptr + row, real, 0) != 0, high, high)", LONG),
    ("attention_backward", "kept(seed_ptr, head, row, chunk,", "kept(seed_ptr, head, row, chunk + 4,", LONG_CUT),
    ("attention_mid_backward", "written = key_gradients(", "key_gradients(", PLAIN_LONG),
    ("attention_mid_backward", "tl.minimum(stop, origin + TILE)", "origin + TILE", PLAIN_LONG),
    ("attention_mid_backward", "tl.range(begin, stop, TILE)", "tl.range(begin, stop, 2 * TILE)", PLAIN_LONG),
    ("attention_tiles", "x += load_tile(", "x += 0.0 * load_tile(", PLAIN_LONG),
    ("attention_tiles", "if first_row < written:", "if first_row < 0:", PLAIN_LONG),
    ("attention_tiles", "in_one & (window >= first_stop - first_start)", "in_one", WINDOWED),
    ("attention_tiles", "(not inside) | (x < start) | (x >= end)", "(not inside) | (x < start)", PLAIN_LONG),
    ("attention_tiles", "row - window)", "row - window + 1)", SHORT),
    ("attention_tiles", "tl.minimum(stop, row + window + 1)", "row + window + 1", SHORT),
    ("attention_tiles", "inside = (count >= 1) & (count <= sequences)", "inside = count >= 1", PLAIN_SHORT),
    ("attention_tiles", "tl.where(real, token - start, 0)", "tl.where(real, token, 0)", SHORT),
    ("attention_tiles", "x * cos - y * sin", "x * cos + y * sin", LONG),
    ("attention_tiles", "first * cos + second * sin", "first * cos - second * sin", SHORT),
    ("attention_tiles", "end = _last_start(cu_ptr, origin + TILE,", "end = _last_start(cu_ptr, origin + 2 * TILE,",
     PLAIN_SHORT),
    ("attention_tiles", "(first_block + tl.arange", "(tl.arange", LONG),
    ("attention_tiles", "block + 1, limit", "block, limit", ODD),
    ("attention_tiles", "k0, k1, k2, k3 = (", "_ = (", ODD),
    ("attention_tiles", "y_first, y_second = _halves(y)", "y_second, y_first = _halves(y)", WIDE),
    ("rotary", "sin = -sin", "sin = sin", ROTARY),
    ("rotary", "y * cos + x * sin", "y * cos - x * sin", ROTARY),
    ("rotary", "tl.where(inside[:, None], turned_first, first)", "turned_first", ROTARY),
    ("rotary", "real = row < tokens", "real = row <= tokens", ROTARY),
    ("rotary", "position = row - start", "position = row", ROTARY),
    ("rotary", "range(tl.program_id(1), 2 * heads", "range(tl.program_id(1), heads", ROTARY),
]  # fmt: skip
# what a mutant is part of, in the order of imports: each is loaded again, so that all of them see the mutant
FAMILY = (
    "attention_tiles", "rotary", "attention_forward", "attention_backward", "attention_mid_backward", "attention",
)  # fmt: skip


def load(name, folder, monkeypatch):
    """Load a module of the Triton backend from this folder, in the place of the true one."""
    full_name = f"cramkernels.triton.{name}"
    spec = importlib.util.spec_from_file_location(full_name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, full_name, module)
    monkeypatch.setattr(importlib.import_module("cramkernels.triton"), name, module, raising=False)
    spec.loader.exec_module(module)


@pytest.mark.parametrize(
    ("name", "there", "planted", "case"), the_first_by_default(MUTANTS, lambda m: f"{m[0]}:{m[1][:40]}")
)
def test_a_planted_bug_is_caught(name, there, planted, case, tmp_path, monkeypatch, proof):
    text = (FOLDER / f"{name}.py").read_text()
    assert there in text, f"{name}.py has changed: {there}"
    (tmp_path / f"{name}.py").write_text(text.replace(there, planted, 1))
    for module in FAMILY if name in FAMILY else (name,):
        load(module, tmp_path if module == name else FOLDER, monkeypatch)
    monkeypatch.setattr(launch, "SIMULATED_MULTIPROCESSORS", MULTIPROCESSORS.get(name, 2))
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
        assert not isinstance(caught.value, NameError | SyntaxError | CompilationError), "the mutant did not compile"
    finally:
        dispatch._implementation.cache_clear()
    proof("planted bugs caught", {f"{name}:{there}"})


@pytest.mark.parametrize("case", [PLAIN_SHORT, PLAIN_LONG, CUT, SHORT, LONG, LONG_CUT, ODD, WIDE, ROTARY], ids=str)
def test_without_a_bug_the_cases_pass(case, monkeypatch):
    for module in FAMILY:
        load(module, FOLDER, monkeypatch)
    arguments = case.arguments()
    dispatch._implementation.cache_clear()
    try:
        with simulated(80) as executed:
            results = ours(case, arguments)
        assert executed
    finally:
        dispatch._implementation.cache_clear()
    assert_error_rule(results, plain(case, arguments), exact(case, arguments), case.dtype)
