"""Bugs planted in the kernels, one at a time: the cases must notice each."""

import pytest

from cramkernels.cuda import arguments as arguments_of
from tests.cramkernels.cases import BF16, EVERY_LOSS_OPTION, FP16, FP32, LossCase, RowCase
from tests.simulation import cuda
from tests.simulation.planted import assert_caught, assert_passes, the_first_by_default

NORM, ADD = "layer_norm", "add_layer_norm"
WIDE = (170, 72)  # several rows a warp, with the multiprocessors below
ROWS = LossCase("mlm_loss", BF16, tokens=9, masked=21, vocabulary=4099)
LONG_ROW = LossCase("mlm_loss", BF16, tokens=3, hidden=8, vocabulary=40_003, spread=0.7)
LONGER_ROW = LossCase("mlm_loss", BF16, tokens=3, hidden=8, vocabulary=131_075, spread=0.7)
ALL_OPTIONS = LossCase("mlm_loss", FP32, tokens=9, masked=21, vocabulary=2053, options=EVERY_LOSS_OPTION)
RECOMPUTE = dict(options=(("mode", "recompute"),))
TILED = LossCase("mlm_loss", FP16, tokens=9, masked=21, hidden=136, vocabulary=701, spread=0.05, **RECOMPUTE)
MANY_TILES = LossCase("mlm_loss", FP16, tokens=9, masked=1500, hidden=40, vocabulary=701, **RECOMPUTE)
MUTANTS = [
    # file, what is there, what is planted, a case that must fail
    ("norm/forward.cuh", "if constexpr (L::kOneWarp) __syncthreads();", ";", RowCase(NORM, BF16, shape=WIDE)),
    ("norm/forward.cuh", "if (column >= width) continue;", "", RowCase(NORM, BF16, shape=WIDE)),
    ("norm/forward.cuh", "if (L::column(v) >= width) continue;", "", RowCase(NORM, FP32, shape=(6, 40), offset=9.0)),
    ("norm/forward.cuh", "inverse_width, -deviation", "1.0f / 1024, -deviation", RowCase(NORM, BF16, shape=WIDE)),
    ("norm/forward.cuh", "if (L::column(0) == 0) a.mean", "if (row == 0) a.mean", RowCase(NORM, FP32, shape=WIDE)),
    ("norm/backward.cuh", "if constexpr (L::kOneWarp) __syncthreads();", ";", RowCase(NORM, BF16, shape=WIDE)),
    ("norm/backward.cuh", "__syncthreads();  // what was", "// what was", RowCase(NORM, BF16, shape=WIDE)),
    ("norm/backward.cuh", "__syncthreads();  // what is", "// what is", RowCase(NORM, BF16, shape=WIDE)),
    ("norm/backward.cuh", "row < L::kRows; ++row", "row < L::kRows - 1; ++row", RowCase(NORM, BF16, shape=WIDE)),
    ("norm/backward.cuh", "total += memory[", "total = memory[", RowCase(NORM, BF16, shape=WIDE)),
    ("norm/backward.cuh", "place % 128 / 4 * C", "place % 128 / 4 * 4", RowCase(NORM, BF16, shape=WIDE)),
    ("norm/layout.cuh", "* gridDim.x + blockIdx.x", "* kRows + blockIdx.x", RowCase(NORM, BF16, shape=WIDE)),
    ("norm/backward.cuh", "parity ^= 1", "parity ^= 0", RowCase(NORM, FP32, shape=(25, 2056))),
    ("norm/backward.cuh", "dx[c] *= slope", "dx[c] += slope", RowCase("gelu_layer_norm", BF16, shape=WIDE)),
    ("norm/backward.cuh", "dx[c] += more[c];", ";", RowCase(ADD, BF16, shape=WIDE)),
    ("norm/backward.cuh", "dropout.apply(v, dx);", ";",
     RowCase(ADD, BF16, shape=WIDE, options=(("dropout_p", 0.3), ("seed", 5)))),
    ("norm/reduce.cu", "    __syncthreads();\n", "", RowCase(NORM, BF16, shape=WIDE)),
    ("norm/reduce.cu", "warp = 1; warp < kWarps", "warp = 1; warp < kWarps - 1", RowCase(NORM, BF16, shape=WIDE)),
    ("geglu/geglu.cu", "        __syncthreads();\n", "",
     RowCase("geglu", BF16, shape=WIDE, linear_bias=True)),
    ("geglu/geglu.cu", "if (at.column >= a.width) return;", "", RowCase("geglu", BF16, shape=WIDE)),
    ("geglu/geglu.cu", "gelu[c].slope;", "gelu[c].value;", RowCase("geglu", FP32, shape=WIDE)),
    ("common/philox.cuh", "key0 += 0x9E3779B9u, key1", "key1",
     RowCase(ADD, FP32, shape=WIDE, options=(("dropout_p", 0.3), ("seed", 5)))),
    ("loss/rows.cuh", "if (threadIdx.x % 32 == 0) slots[0][warp] = highest;\n    __syncthreads();",
     "if (threadIdx.x % 32 == 0) slots[0][warp] = highest;", ROWS),
    ("loss/rows.cuh", "if (last < a.vocabulary) {", "if (false) {", ALL_OPTIONS),
    ("loss/rows.cuh", "last < a.vocabulary", "last < a.vocabulary + 64", ROWS),
    ("loss/rows.cuh", "if (piece < pieces) put_gradient", "if (piece < pieces - 1) put_gradient", ROWS),
    ("loss/rows.cuh", "sums.exponentials * exp_fast(sums.maximum - maximum)", "sums.exponentials", LONG_ROW),
    ("loss/rows.cuh", "if (slot < kLossSharedPieces) beyond[slot] = raw;", "beyond[slot] = raw;", LONGER_ROW),
    ("loss/rows.cuh", "sums.logits += x[c];", "sums.logits = x[c];", ALL_OPTIONS),
    ("loss/rows.cuh", "if (a.labels[row] == a.ignore_index) return ignore_row(a, row, logits);", ";", ROWS),
    ("loss/rows.cuh", "if (!a.write) return;\n    constexpr", "return;\n    constexpr", ROWS),
    ("loss/row.cuh", "if (c == target) d -= hit;", ";", ROWS),
    ("loss/row.cuh", "2.0f * a.z, lse, 1.0f", "a.z, lse, 1.0f", ALL_OPTIONS),
    ("loss/row.cuh", "d *= fmaf(-share_of_cap, share_of_cap, 1.0f);", ";", ALL_OPTIONS),
    ("loss/row.cuh", "share * a.smoothing / a.vocabulary", "share * a.smoothing", ALL_OPTIONS),
    ("loss/loss_sums.cu", "warp = 1; warp < kWarps", "warp = 1; warp < 2", MANY_TILES),
    ("loss/loss_sums.cu", "*a.share = count ? scale / count : 0.0f;", "*a.share = scale / a.total;", ROWS),
    ("loss/product.cuh", "__syncthreads();  // this stage", ";  // this stage", TILED),
    ("loss/product.cuh", "wait_copies<kStages - 2>();", ";", TILED),
    ("loss/product.cuh", "column < width;", "column < width + 8;", TILED),
    ("loss/product.cuh", "commit_copies();  // an", "if (step < steps) commit_copies();  // an", TILED),
    ("loss/product.cuh", "one[0] = kMinusInfinity;", "one[0] = 0.0f;", TILED),
    ("loss/product.cuh", "within % 8 / 2 != at.lane % 4", "false", TILED),
    ("loss/loss_recompute.cu", "offset < 4; offset *= 2", "offset < 2; offset *= 2", TILED),
    ("loss/loss_recompute.cu", "split < a.splits", "split < a.splits - 1", TILED),
    ("loss/loss_recompute.cu", "ck::transpose_quad(words);", ";", TILED),
    ("loss/loss_recompute.cu", "row < end && column", "column", TILED),
    ("loss/loss_recompute.cu", "column += a.splits * kTileColumns", "column += 2 * a.splits * kTileColumns",
     MANY_TILES),
    ("loss/loss_recompute.cu", "so_far = joined(so_far, sums);", "so_far = sums;", MANY_TILES),
]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "there", "planted", "case"), the_first_by_default(MUTANTS, lambda m: f"{m[0]}:{m[1].strip()}")
)
def test_a_planted_bug_is_caught(file, there, planted, case, tmp_path, proof, monkeypatch):
    monkeypatch.setattr(arguments_of, "SIMULATED_MULTIPROCESSORS", 9)  # CTAs for more than one turn of the reduction
    assert_caught(case, tmp_path, file, there, planted)
    proof("planted bugs caught", {f"{file}:{there}"})


@pytest.mark.parametrize("case", dict.fromkeys(mutant[3] for mutant in MUTANTS), ids=str)
def test_without_a_bug_the_cases_pass(case, monkeypatch):
    cuda.simulator()
    monkeypatch.setattr(arguments_of, "SIMULATED_MULTIPROCESSORS", 9)
    assert_passes(case)
