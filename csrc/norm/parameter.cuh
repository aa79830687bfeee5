// A parameter vector during a walk over rows.
//
// Where a warp owns a row its registers are full: the CTA puts the vector into shared memory once, in fp32. Where a CTA
// owns a row, threads own columns: registers (HELD), or, if those are full too, read again for each row, out of the L1
// cache.
#pragma once

#include "layout.cuh"

namespace ck {

template <typename T, typename L, bool HELD = true>
struct Parameter {
    static constexpr int V = L::kVectors, C = L::kCount;
    static constexpr bool kRegisters = HELD && !L::kOneWarp;
    const void *source;  // null: zeros
    int dtype;
    const float *shelf;
    float held[kRegisters ? V : 1][C];

    // With a warp a row, a barrier has to follow.
    __device__ void fetch(const void *p, int parameter_dtype, int width, float *memory) {
        source = p, dtype = parameter_dtype, shelf = memory;
        if (!source) return;
        if constexpr (L::kOneWarp) {
            for (int piece = threadIdx.x; piece * C < width; piece += L::kThreads) {
                float values[C];
                load_parameter<T>(p, dtype, piece * C, values);
                put_shared(memory + piece / 32 * 32 * C, piece % 32, values);
            }
        } else if constexpr (kRegisters) {
#pragma unroll
            for (int v = 0; v < V; ++v)
                if (L::column(v) < width) load_parameter<T>(p, dtype, L::column(v), held[v]);
        }
    }

    __device__ void get(int v, float (&out)[C]) const {
        if (!source) {
#pragma unroll
            for (int c = 0; c < C; ++c) out[c] = 0.0f;
        } else if constexpr (L::kOneWarp) {
            get_shared(shelf + v * 32 * C, threadIdx.x % 32, out);
        } else if constexpr (kRegisters) {
#pragma unroll
            for (int c = 0; c < C; ++c) out[c] = held[v][c];
        } else {
            load_parameter<T>(source, dtype, L::column(v), out);
        }
    }
};

}  // namespace ck
