// Rotary position embedding of packed sequences (Su et al. 2021, rotate-half): one read, one write. A warp takes a token:
// where its sequence begins is found once for all heads.
#include "../attention/run.cuh"
#include "../common/launch.h"
#include "../common/vector.cuh"

namespace {

constexpr int kThreads = 256;

template <typename T>
__device__ __forceinline__ void rotate_token(const ck_rotary_args &a) {
    constexpr int kCount = ck::kPerAccess<T>;
    const int64_t token = blockIdx.x * static_cast<int64_t>(kThreads / 32) + threadIdx.x / 32;
    if (token >= a.tokens) return;
    const int sequence = ck::first_at_least(a.cu_seqlens, a.sequences + 1, static_cast<int>(token) + 1) - 1;
    const bool inside = sequence >= 0 && sequence < a.sequences;
    const int64_t position = inside ? token - a.cu_seqlens[sequence] : 0;
    const int pairs = a.head_dim / 2 / kCount;  // of accesses, in each half of a head
    for (int i = threadIdx.x % 32; i < 3 * a.heads * pairs; i += 32) {
        const int head = i / pairs, column = i % pairs * kCount;  // of queries, keys and values alike
        const int64_t place = (token * 3 * a.heads + head) * a.head_dim + column;
        float low[kCount], high[kCount];
        ck::load(static_cast<const T *>(a.x) + place, low);
        ck::load(static_cast<const T *>(a.x) + place + a.head_dim / 2, high);
        if (inside && head < 2 * a.heads) {
            float cosine[kCount], sine[kCount];
            ck::load(a.cos + position * (a.head_dim / 2) + column, cosine);
            ck::load(a.sin + position * (a.head_dim / 2) + column, sine);
#pragma unroll
            for (int k = 0; k < kCount; ++k) {
                const float s = a.inverse ? -sine[k] : sine[k], x = low[k];
                low[k] = x * cosine[k] - high[k] * s;
                high[k] = high[k] * cosine[k] + x * s;
            }
        }
        ck::store(static_cast<T *>(a.y) + place, low);
        ck::store(static_cast<T *>(a.y) + place + a.head_dim / 2, high);
    }
}

}  // namespace

#define CK_ROTARY(NAME, T)                                                                                             \
    extern "C" __global__ void __launch_bounds__(kThreads)                                                             \
        ck_rotary_##NAME(const __grid_constant__ ck_rotary_args a) {                                                   \
        rotate_token<T>(a);                                                                                            \
    }
#define CK_ENTRY(NAME) {"ck_rotary_" #NAME, reinterpret_cast<const void *>(ck_rotary_##NAME)}

CK_ROTARY(f32, float)
CK_ROTARY(f16, __half)
CK_ROTARY(bf16, __nv_bfloat16)

int ck_rotary(const ck_rotary_args *args, void *stream) {
    static const ck::Kernel kernels[] = {CK_ENTRY(f32), CK_ENTRY(f16), CK_ENTRY(bf16)};
    if (args->dtype < CK_F32 || args->dtype > CK_BF16) return CK_BAD_DTYPE;
    if (args->tokens < 1 || args->tokens > 0x7fffff00 || args->sequences < 0 || args->heads < 1) return CK_BAD_SHAPE;
    if (args->head_dim < 1 || args->head_dim % (args->dtype == CK_F32 ? 8 : 16)) return CK_BAD_SHAPE;
    const dim3 grid(static_cast<unsigned>(ck::divide_up(args->tokens, kThreads / 32)));
    return ck::launch(kernels[args->dtype], grid, dim3(kThreads), *args, stream);
}
