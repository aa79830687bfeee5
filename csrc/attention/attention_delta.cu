// delta = rowsum(dO * O), which the long backward subtracts: a warp takes 32 tokens of one head, so that it reads whole rows
// and writes 128 bytes.
#include "../common/vector.cuh"
#include "table.h"

namespace {

constexpr int kThreads = 256, kTokens = 32;

template <typename T, int D>
__device__ __forceinline__ void delta(const ck_attention_args &a) {
    constexpr int kCount = ck::kPerAccess<T>, kLanes = D / kCount, kAtOnce = 32 / kLanes;  // lanes of a row; rows
    const int64_t warp = blockIdx.x * static_cast<int64_t>(kThreads / 32) + threadIdx.x / 32;
    const int head = static_cast<int>(warp % a.heads), lane = threadIdx.x % 32;
    const int64_t first = warp / a.heads * kTokens;
    if (first >= a.tokens) return;
    float mine = 0.0f;
#pragma unroll
    for (int i = 0; i < kTokens; i += kAtOnce) {
        const int64_t token = first + i + lane / kLanes;
        float sum = 0.0f;
        if (token < a.tokens) {
            const int64_t place = (token * a.heads + head) * D + lane % kLanes * kCount;
            float x[kCount], y[kCount];
            ck::load(static_cast<const T *>(a.grad) + place, x);
            ck::load(static_cast<const T *>(a.out) + place, y);
#pragma unroll
            for (int k = 0; k < kCount; ++k) sum = fmaf(x[k], y[k], sum);
        }
#pragma unroll
        for (int k = 1; k < kLanes; k *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, k);
        const float found = __shfl_sync(0xffffffffu, sum, lane % kAtOnce * kLanes);
        if (lane / kAtOnce == i / kAtOnce) mine = found;
    }
    if (first + lane < a.tokens) a.delta[head * a.tokens + first + lane] = mine;
}

}  // namespace

#define CK_DELTA(NAME, T, D)                                                                                           \
    extern "C" __global__ void __launch_bounds__(kThreads)                                                             \
        ck_attention_delta_##NAME##_##D(const __grid_constant__ ck_attention_args a) {                                 \
        delta<T, D>(a);                                                                                                \
    }
#define CK_ENTRY(NAME, D)                                                                                              \
    {"ck_attention_delta_" #NAME "_" #D, reinterpret_cast<const void *>(ck_attention_delta_##NAME##_##D)}

CK_DELTA(f16, __half, 32)
CK_DELTA(f16, __half, 64)
CK_DELTA(f16, __half, 128)
CK_DELTA(bf16, __nv_bfloat16, 32)
CK_DELTA(bf16, __nv_bfloat16, 64)
CK_DELTA(bf16, __nv_bfloat16, 128)

int ck::launch_delta(const ck_attention_args &a, void *stream) {
    static const Kernel kernels[2][3] = {{CK_ENTRY(f16, 32), CK_ENTRY(f16, 64), CK_ENTRY(f16, 128)},
                                         {CK_ENTRY(bf16, 32), CK_ENTRY(bf16, 64), CK_ENTRY(bf16, 128)}};
    const int which = a.head_dim == 32 ? 0 : a.head_dim == 64 ? 1 : a.head_dim == 128 ? 2 : -1;
    if (which < 0 || a.dtype < CK_F16 || a.dtype > CK_BF16) return CK_BAD_DTYPE;
    if (a.tokens < 1 || a.tokens > 0x7fffff00 || a.heads < 1 || a.sequences < 0) return CK_BAD_SHAPE;
    const int64_t ctas = divide_up(divide_up(a.tokens, kTokens) * a.heads, kThreads / 32);
    if (ctas > 0x7fffffff) return CK_BAD_SHAPE;
    return launch(kernels[a.dtype - CK_F16][which], dim3(static_cast<unsigned>(ctas)), dim3(kThreads), a, stream);
}
