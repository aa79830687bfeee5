// Backward of LayerNorm and its fusions, with g the gradient of the norm's output and x^ its normalised input:
//
//     gw = g * weight,   dx = rstd * (gw - mean(gw) - x^ * mean(gw * x^))
//     dweight = sum over rows of g * x^,   dbias = sum over rows of g
//
// One read of each input, one write of each output. A CTA walks over rows with its share of the parameter gradients in
// registers and writes one partial row for each parameter at the end; reduce.cu sums those in a fixed order. Nothing of
// the GELU was saved: it is computed again.
#pragma once

#include "../common/gelu.cuh"
#include "../common/reduce.cuh"
#include "dropout.cuh"
#include "parameter.cuh"

namespace ck {

// Where a warp owns a row, one CTA takes all the registers of a multiprocessor: the fewest partial rows that keep every
// multiprocessor busy. With 12 warps a thread has 168 registers, with 8 it has 255.
template <typename T, typename R, int OP, int CAPACITY>
inline constexpr bool kManyRegisters = OP == CK_GELU_LAYER_NORM || (sizeof(R) > sizeof(T) && CAPACITY > 768);
template <typename T, typename R, int OP, int CAPACITY>
using BackwardLayout = Layout<T, CAPACITY, kManyRegisters<T, R, OP, CAPACITY> ? 8 : 12>;

// Sums the warps' registers in their order and writes them, or writes them as they are where threads own columns.
template <typename L>
__device__ __forceinline__ void write_partial(const float (&sums)[L::kVectors][L::kCount], float *memory, float *out,
                                              int width) {
    constexpr int V = L::kVectors, C = L::kCount;
    if constexpr (L::kOneWarp) {
        constexpr int kPiece = 32 * C;
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, place = threadIdx.x;
        const int column_of_place = place % 128 / 4 * C + place / 128 * 4 + place % 4;  // see put_shared
        static_assert(kPiece <= L::kThreads);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            __syncthreads();  // what was here has been read
            put_shared(memory + warp * kPiece, lane, sums[v]);
            __syncthreads();  // what is here has been written
            const int column = v * kPiece + column_of_place;
            if (place >= kPiece || column >= width) continue;
            float total = 0.0f;
#pragma unroll
            for (int row = 0; row < L::kRows; ++row) total += memory[row * kPiece + place];
            out[column] = total;
        }
    } else {
#pragma unroll
        for (int v = 0; v < V; ++v)
            if (L::column(v) < width) store(out + L::column(v), sums[v]);
    }
}

template <typename T, typename R, int OP, int CAPACITY>
__device__ __forceinline__ void norm_backward(const ck_norm_args &a) {
    using L = BackwardLayout<T, R, OP, CAPACITY>;
    constexpr int V = L::kVectors, C = L::kCount;
    constexpr bool kGeluFirst = OP == CK_GELU_LAYER_NORM, kGeluLast = OP == CK_LAYER_NORM_GELU;
    __shared__ float slots[2][2][L::kWarps];
    __shared__ __align__(16) float memory[1 + (kGeluFirst || kGeluLast)][L::kShared];
    __shared__ __align__(16) float sums_of_warps[L::kOneWarp ? L::kRows * 32 * C : 1];
    // The GELU's slopes wait here for the row's sums, each thread's own, where registers would not hold them
    __shared__ __align__(16) float slopes[kGeluFirst && !L::kOneWarp ? L::kCapacity : 1];
    const int width = a.width;
    const float inverse_width = 1.0f / width;

    // other: the norm's bias for LAYER_NORM_GELU, the linear bias for GELU_LAYER_NORM
    Parameter<T, L, !kGeluFirst && !kGeluLast && L::kCount != 1> weight, other;
    weight.fetch(a.weight, a.parameter_dtype, width, memory[0]);
    const void *const other_source = kGeluFirst ? a.linear_bias : kGeluLast ? a.bias : nullptr;
    other.fetch(other_source, a.parameter_dtype, width, memory[kGeluFirst || kGeluLast]);
    if constexpr (L::kOneWarp) __syncthreads();
    Dropout<L> dropout(a, OP == CK_ADD_LAYER_NORM);

    float dweight[V][C] = {}, dbias[V][C] = {}, dlinear[kGeluFirst ? V : 1][C] = {};
    int parity = 0;
    for (int64_t row = L::first_row(); row < a.rows; row += L::row_step(), parity ^= 1) {
        const int64_t start = row * width;
        const float mean = a.mean[row], rstd = a.rstd[row];
        float g[V][C] = {}, normal[V][C] = {}, slope[kGeluFirst && L::kOneWarp ? V : 1][C];
        float sum = 0.0f, product = 0.0f;  // of gw, of gw * x^
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const int column = L::column(v);
            if (column >= width) continue;
            float w[C], b[C];
            weight.get(v, w);
            other.get(v, b);
            load(static_cast<const T *>(a.grad) + start + column, g[v]);
            load(static_cast<const R *>(a.x) + start + column, normal[v]);
            if constexpr (kGeluFirst) {
                Gelu activated[C];
#pragma unroll
                for (int c = 0; c < C; ++c) normal[v][c] += b[c];
                gelu(normal[v], a.tanh, activated);
#pragma unroll
                for (int c = 0; c < C; ++c) {
                    normal[v][c] = activated[c].value;
                    slope[L::kOneWarp ? v : 0][c] = activated[c].slope;
                }
            }
#pragma unroll
            for (int c = 0; c < C; ++c) normal[v][c] = (normal[v][c] - mean) * rstd;
            if constexpr (kGeluLast) {
                float y[C];
                Gelu activated[C];
#pragma unroll
                for (int c = 0; c < C; ++c) y[c] = fmaf(normal[v][c], w[c], b[c]);
                gelu(y, a.tanh, activated);
#pragma unroll
                for (int c = 0; c < C; ++c) g[v][c] *= activated[c].slope;
            }
#pragma unroll
            for (int c = 0; c < C; ++c) {
                dweight[v][c] = fmaf(g[v][c], normal[v][c], dweight[v][c]);
                dbias[v][c] += g[v][c];
                g[v][c] *= w[c];
                sum += g[v][c];
                product = fmaf(g[v][c], normal[v][c], product);
            }
            if constexpr (kGeluFirst && !L::kOneWarp) store(slopes + column, slope[0]);
        }
        row_sums<L::kWarps>(sum, product, slots[parity]);
        dropout.begin(row);
        sum *= inverse_width, product *= inverse_width;

#pragma unroll
        for (int v = 0; v < V; ++v) {
            const int column = L::column(v);
            if (column >= width) continue;
            float dx[C];
            if constexpr (kGeluFirst && !L::kOneWarp) load(slopes + column, slope[0]);
#pragma unroll
            for (int c = 0; c < C; ++c) {
                dx[c] = rstd * (g[v][c] - fmaf(normal[v][c], product, sum));
                if constexpr (kGeluFirst) {
                    dx[c] *= slope[L::kOneWarp ? v : 0][c];
                    dlinear[v][c] += dx[c];
                }
            }
            if constexpr (OP == CK_ADD_LAYER_NORM) {
                if (a.grad_residual) {
                    float more[C];
                    load(static_cast<const R *>(a.grad_residual) + start + column, more);
#pragma unroll
                    for (int c = 0; c < C; ++c) dx[c] += more[c];
                }
                if (a.dresidual) store(static_cast<R *>(a.dresidual) + start + column, dx);
                dropout.apply(v, dx);
            }
            store(static_cast<T *>(a.dx) + start + column, dx);
        }
    }

    const int64_t plane = static_cast<int64_t>(gridDim.x) * width;  // of one parameter
    float *out = a.partials + static_cast<int64_t>(blockIdx.x) * width;
    write_partial<L>(dweight, sums_of_warps, out, width);
    if (a.bias) write_partial<L>(dbias, sums_of_warps, out += plane, width);
    if constexpr (kGeluFirst)
        if (a.linear_bias) write_partial<L>(dlinear, sums_of_warps, out + plane, width);
}

}  // namespace ck
