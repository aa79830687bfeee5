// Rows of queries, gradients and sums between global memory and the registers of a quad, and what all kernels share.
#pragma once

#include "tile.cuh"

namespace ck {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// sm_75 multiplies no bf16: there, kernels that cannot be are traps, never launched.
template <typename T, int D>
__host__ __device__ constexpr bool is_multiplied() {
#if __CUDA_ARCH__ == 750
    return __is_same(T, __half);
#else
    return true;
#endif
}

// 16 bytes a thread and group of 32 columns, of the row that a quad shares; zeros where it is not valid.
template <typename T, int D>
__device__ __forceinline__ void load_row(const T *from, bool valid, uint4 (&pieces)[D / 32]) {
#pragma unroll
    for (int i = 0; i < D / 32; ++i)
        pieces[i] =
            valid ? *reinterpret_cast<const uint4 *>(from + 32 * i + 8 * (threadIdx.x % 4)) : make_uint4(0, 0, 0, 0);
}

template <typename T, int D>
__device__ __forceinline__ void rotate_row(const ck_attention_args &a, int position, uint4 (&pieces)[D / 32]) {
    constexpr int kGroups = D / 32;
    const int t = threadIdx.x % 4;
    if constexpr (D >= 64) {
#pragma unroll
        for (int i = 0; i < kGroups / 2; ++i)
            rotate<T>(pieces[i], pieces[i + kGroups / 2], a, static_cast<int64_t>(position) * (D / 2) + 32 * i + 8 * t);
    } else {  // the other half of the row is the next but one thread's
        uint4 other;
        other.x = __shfl_xor_sync(0xffffffffu, pieces[0].x, 2), other.y = __shfl_xor_sync(0xffffffffu, pieces[0].y, 2);
        other.z = __shfl_xor_sync(0xffffffffu, pieces[0].z, 2), other.w = __shfl_xor_sync(0xffffffffu, pieces[0].w, 2);
        uint4 low = t < 2 ? pieces[0] : other, high = t < 2 ? other : pieces[0];
        rotate<T>(low, high, a, static_cast<int64_t>(position) * (D / 2) + 8 * (t % 2));
        pieces[0] = t < 2 ? low : high;
    }
}

// Row `half` (g, or g + 8) of the fragments of a first factor.
template <int D>
__device__ __forceinline__ void to_fragments(const uint4 (&pieces)[D / 32], int half, uint32_t (&fragments)[D / 16][4]) {
#pragma unroll
    for (int i = 0; i < D / 32; ++i) {
        uint32_t w[4] = {pieces[i].x, pieces[i].y, pieces[i].z, pieces[i].w};
        transpose_quad(w);
        fragments[2 * i][half] = w[0], fragments[2 * i][half + 2] = w[1];
        fragments[2 * i + 1][half] = w[2], fragments[2 * i + 1][half + 2] = w[3];
    }
}

// A row of sums, two columns a thread and piece of 8, times `factor`, written in pieces of 16 bytes.
template <typename T, int D>
__device__ __forceinline__ void store_row(const float (&sums)[D / 8][4], int half, float factor, T *to, bool valid) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < D / 32; ++i) {
        uint32_t w[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
            w[j] = pack2<T>(sums[4 * i + j][2 * half] * factor, sums[4 * i + j][2 * half + 1] * factor);
        transpose_quad(w);
        if (valid) store_piece(to + 32 * i + 8 * t, w);
    }
}

// The inverse rotation of two neighbouring columns (x) and the two D / 2 further on (y); `table` is their place there.
__device__ __forceinline__ void unrotate(float &x0, float &x1, float &y0, float &y1, const ck_attention_args &a,
                                         int64_t table) {
    const float2 cosine = *reinterpret_cast<const float2 *>(a.cos + table);
    const float2 sine = *reinterpret_cast<const float2 *>(a.sin + table);
    const float first = x0 * cosine.x + y0 * sine.x, second = x1 * cosine.y + y1 * sine.y;
    y0 = y0 * cosine.x - x0 * sine.x, y1 = y1 * cosine.y - x1 * sine.y;
    x0 = first, x1 = second;
}

}  // namespace ck
