"""Bugs planted in the kernels, one at a time: the cases must notice each."""

import pytest

from cramkernels.cuda import arguments as arguments_of
from tests.cramkernels.cases import BF16, FP32, RowCase
from tests.cramkernels.compare import assert_error_rule, exact, ours, plain
from tests.simulation import cuda

NORM, ADD = "layer_norm", "add_layer_norm"
WIDE = (170, 72)  # several rows a warp, with the multiprocessors below
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
]  # fmt: skip


@pytest.mark.parametrize(("file", "there", "planted", "case"), MUTANTS, ids=[f"{m[0]}:{m[1].strip()}" for m in MUTANTS])
def test_a_planted_bug_is_caught(file, there, planted, case, tmp_path, proof, monkeypatch):
    cuda.simulator()
    monkeypatch.setattr(arguments_of, "SIMULATED_MULTIPROCESSORS", 9)  # CTAs for more than one turn of the reduction
    sources = cuda.planted(tmp_path, file, there, planted)
    arguments = case.arguments()
    expected = plain(case, arguments), exact(case, arguments)
    with pytest.raises(Exception) as caught:  # the simulator's own errors, or a wrong result
        with cuda.simulated(80, sources=sources):
            results = ours(case, arguments)
        assert_error_rule(results, *expected, case.dtype)
    assert not isinstance(caught.value, LookupError | OSError), "the mutant did not run"
    proof("planted bugs caught", {f"{file}:{there}"})
