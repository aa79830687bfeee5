// Forward of LayerNorm and its fusions: one read of each input, one write of each output, two floats a row.
//
// A row stays in registers from its load to its store; mean and variance are two passes over those registers. The
// parameters are loaded once a CTA, which then walks over rows.
#pragma once

#include "../common/gelu.cuh"
#include "../common/philox.cuh"
#include "../common/reduce.cuh"
#include "layout.cuh"

namespace ck {

// T: type of x and y. R: type of the residual (ADD_LAYER_NORM only; else T).
template <typename T, typename R, int OP, int CAPACITY>
__device__ __forceinline__ void norm_forward(const ck_norm_args &a) {
    using L = Layout<T, CAPACITY>;
    constexpr int V = L::kVectors, C = L::kCount;
    constexpr bool kAccurate = sizeof(T) == 4;
    __shared__ float slots[2][L::kWarps];
    const int width = a.width;
    const float inverse_width = 1.0f / width;

    float weight[V][C], bias[V][C] = {}, linear_bias[V][C] = {};
#pragma unroll
    for (int v = 0; v < V; ++v) {
        if (L::column(v) >= width) continue;
        load_parameter<T>(a.weight, a.parameter_dtype, L::column(v), weight[v]);
        if (a.bias) load_parameter<T>(a.bias, a.parameter_dtype, L::column(v), bias[v]);
        if (OP == CK_GELU_LAYER_NORM && a.linear_bias)
            load_parameter<T>(a.linear_bias, a.parameter_dtype, L::column(v), linear_bias[v]);
    }
    const uint64_t seed = OP == CK_ADD_LAYER_NORM && a.drop_threshold ? *a.seed : 0;

    for (int64_t row = L::first_row(); row < a.rows; row += L::row_step()) {
        const int64_t start = row * width;
        float x[V][C] = {}, sum = 0.0f;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const int column = L::column(v);
            if (column >= width) continue;
            load(static_cast<const T *>(a.x) + start + column, x[v]);
            if constexpr (OP == CK_ADD_LAYER_NORM) {
                float residual[C];
                load(static_cast<const R *>(a.residual) + start + column, residual);
                if (a.drop_threshold) drop(x[v], row, column, seed, a.drop_threshold, a.keep_scale);
#pragma unroll
                for (int c = 0; c < C; ++c) x[v][c] = to_float(from_float<R>(x[v][c] + residual[c]));
                store(static_cast<R *>(a.new_residual) + start + column, x[v]);
            }
            if constexpr (OP == CK_GELU_LAYER_NORM) {
#pragma unroll
                for (int c = 0; c < C; ++c) x[v][c] = gelu<kAccurate>(x[v][c] + linear_bias[v][c], a.tanh).value;
            }
#pragma unroll
            for (int c = 0; c < C; ++c) sum += x[v][c];
        }
        const float mean = row_sum<L::kWarps>(sum, slots[0]) * inverse_width;

        float squares = 0.0f;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            if (L::column(v) >= width) continue;
#pragma unroll
            for (int c = 0; c < C; ++c) squares = fmaf(x[v][c] - mean, x[v][c] - mean, squares);
        }
        const float rstd = rsqrtf(row_sum<L::kWarps>(squares, slots[1]) * inverse_width + a.eps);

#pragma unroll
        for (int v = 0; v < V; ++v) {
            const int column = L::column(v);
            if (column >= width) continue;
            float y[C];
#pragma unroll
            for (int c = 0; c < C; ++c) {
                y[c] = fmaf((x[v][c] - mean) * rstd, weight[v][c], bias[v][c]);
                if constexpr (OP == CK_LAYER_NORM_GELU) y[c] = gelu<kAccurate>(y[c], a.tanh).value;
            }
            store(static_cast<T *>(a.y) + start + column, y);
        }
        if (L::column(0) == 0) a.mean[row] = mean, a.rstd[row] = rstd;
    }
}

}  // namespace ck
