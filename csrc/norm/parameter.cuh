// A parameter vector during a walk over rows.
//
// Where a warp owns a row its registers are full: the CTA puts the vector into shared memory once, in fp32, laid out so
// that a warp reads 512 bytes without a bank conflict. Where a CTA owns a row, threads own columns: registers (HELD), or,
// if those are full too, read again for each row, out of the L1 cache.
#pragma once

#include "layout.cuh"

namespace ck {

// Floats of a warp's row in shared memory: element i of lane's piece v, four neighbours together.
template <typename L>
struct Shelf {
    static constexpr int C = L::kCount;
    static constexpr int kSize = L::kOneWarp ? L::kCapacity : 1;

    __device__ static void put(float *shelf, int v, int lane, const float (&in)[C]) {
#pragma unroll
        for (int i = 0; i < C; i += 4)
            *reinterpret_cast<float4 *>(shelf + (v * C + i) * 32 + lane * 4) =
                make_float4(in[i], in[i + 1], in[i + 2], in[i + 3]);
    }
    __device__ static void get(const float *shelf, int v, int lane, float (&out)[C]) {
#pragma unroll
        for (int i = 0; i < C; i += 4) {
            const float4 four = *reinterpret_cast<const float4 *>(shelf + (v * C + i) * 32 + lane * 4);
            out[i] = four.x, out[i + 1] = four.y, out[i + 2] = four.z, out[i + 3] = four.w;
        }
    }
};

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
                Shelf<L>::put(memory, piece / 32, piece % 32, values);
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
            Shelf<L>::get(shelf, v, threadIdx.x % 32, out);
        } else if constexpr (kRegisters) {
#pragma unroll
            for (int c = 0; c < C; ++c) out[c] = held[v][c];
        } else {
            load_parameter<T>(source, dtype, L::column(v), out);
        }
    }
};

}  // namespace ck
