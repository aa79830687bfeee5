// Sums over a warp, and over the warps of a CTA.
#pragma once

namespace ck {

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

// The sum over all WARPS warps, in every thread. `slots` has WARPS floats of shared memory that no thread still reads:
// callers alternate between two sets, so that one barrier a sum is enough.
template <int WARPS>
__device__ __forceinline__ float row_sum(float x, float *slots) {
    x = warp_sum(x);
    if constexpr (WARPS == 1) return x;
    if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = x;
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) total += slots[warp];
    return total;
}

// Two sums at once, in place.
template <int WARPS>
__device__ __forceinline__ void row_sums(float &x, float &y, float (&slots)[2][WARPS]) {
    x = warp_sum(x), y = warp_sum(y);
    if constexpr (WARPS > 1) {
        if (threadIdx.x % 32 == 0) slots[0][threadIdx.x / 32] = x, slots[1][threadIdx.x / 32] = y;
        __syncthreads();
        x = y = 0.0f;
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) x += slots[0][warp], y += slots[1][warp];
    }
}

}  // namespace ck
