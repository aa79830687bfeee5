// Forward of LayerNorm and its fusions: one read of each input, one write of each output, two floats a row.
//
// A row stays in registers from its load to its store; mean and variance are two passes over those registers. A CTA
// loads the parameters once and then walks over rows.
#pragma once

#include "../common/gelu.cuh"
#include "../common/reduce.cuh"
#include "dropout.cuh"
#include "parameter.cuh"

namespace ck {

// T: type of x and y. R: type of the residual (ADD_LAYER_NORM only; else T).
template <typename T, typename R, int OP, int CAPACITY>
__device__ __forceinline__ void norm_forward(const ck_norm_args &a) {
    using L = Layout<T, CAPACITY>;
    constexpr int V = L::kVectors, C = L::kCount;
    __shared__ float slots[L::kWarps], more_slots[2][L::kWarps];
    const int width = a.width;
    const float inverse_width = 1.0f / width;

    constexpr bool kGeluFirst = OP == CK_GELU_LAYER_NORM;
    __shared__ __align__(16) float memory[2 + kGeluFirst][L::kShared];
    Parameter<T, L, C != 1> weight, bias, linear_bias;
    weight.fetch(a.weight, a.parameter_dtype, width, memory[0]);
    bias.fetch(a.bias, a.parameter_dtype, width, memory[1]);
    linear_bias.fetch(kGeluFirst ? a.linear_bias : nullptr, a.parameter_dtype, width, memory[1 + kGeluFirst]);
    if constexpr (L::kOneWarp) __syncthreads();
    Dropout<L> dropout(a, OP == CK_ADD_LAYER_NORM);

    for (int64_t row = L::first_row(); row < a.rows; row += L::row_step()) {
        const int64_t start = row * width;
        float x[V][C] = {}, sum = 0.0f;
        dropout.begin(row);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const int column = L::column(v);
            if (column >= width) continue;
            load(static_cast<const T *>(a.x) + start + column, x[v]);
            if constexpr (OP == CK_ADD_LAYER_NORM) {
                float residual[C];
                load(static_cast<const R *>(a.residual) + start + column, residual);
                dropout.apply(v, x[v]);
#pragma unroll
                for (int c = 0; c < C; ++c) x[v][c] = to_float(from_float<R>(x[v][c] + residual[c]));
                store(static_cast<R *>(a.new_residual) + start + column, x[v]);
            }
            if constexpr (kGeluFirst) {
                float b[C];
                linear_bias.get(v, b);
#pragma unroll
                for (int c = 0; c < C; ++c) x[v][c] += b[c];
                Gelu activated[C];
                gelu(x[v], a.tanh, activated);
#pragma unroll
                for (int c = 0; c < C; ++c) x[v][c] = activated[c].value;
            }
#pragma unroll
            for (int c = 0; c < C; ++c) sum += x[v][c];
        }
        // The first mean carries the rounding of a sum of large numbers; the deviations from it do not
        const float rough_mean = row_sum<L::kWarps>(sum, slots) * inverse_width;
        float deviation = 0.0f, squares = 0.0f;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            if (L::column(v) >= width) continue;
#pragma unroll
            for (int c = 0; c < C; ++c) {
                const float d = x[v][c] - rough_mean;
                deviation += d;
                squares = fmaf(d, d, squares);
            }
        }
        row_sums<L::kWarps>(deviation, squares, more_slots);
        deviation *= inverse_width;
        const float mean = rough_mean + deviation;
        const float rstd = rsqrtf(fmaf(squares, inverse_width, -deviation * deviation) + a.eps);

#pragma unroll
        for (int v = 0; v < V; ++v) {
            const int column = L::column(v);
            if (column >= width) continue;
            float y[C], w[C], b[C];
            weight.get(v, w);
            bias.get(v, b);
#pragma unroll
            for (int c = 0; c < C; ++c) y[c] = fmaf((x[v][c] - mean) * rstd, w[c], b[c]);
            if constexpr (OP == CK_LAYER_NORM_GELU) {
                Gelu activated[C];
                gelu(y, a.tanh, activated);
#pragma unroll
                for (int c = 0; c < C; ++c) y[c] = activated[c].value;
            }
            store(static_cast<T *>(a.y) + start + column, y);
        }
        if (L::column(0) == 0) a.mean[row] = mean, a.rstd[row] = rstd;
    }
}

}  // namespace ck
