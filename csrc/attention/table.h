// The kernels of attention by dtype and head dim, and their launching.
#pragma once

#include "../common/launch.h"

// SHAPE<D> has a CTA's kThreads and kRows of tokens, and its shared Memory; RUN<T, D> is what the kernel does.
#define CK_ATTENTION_KERNEL(WHAT, SHAPE, SERVED, NAME, T, D)                                                           \
    extern "C" __global__ void __launch_bounds__(ck::SHAPE<D>::kThreads, ck::SHAPE<D>::kResident)                      \
        ck_attention_##WHAT##_##NAME##_##D(const __grid_constant__ ck_attention_args a) {                              \
        if constexpr (SERVED)                                                                                          \
            ck::WHAT<T, D>(a);                                                                                         \
        else                                                                                                           \
            __trap();                                                                                                  \
    }
#define CK_ATTENTION_ENTRY(WHAT, SHAPE, NAME, DTYPE, D)                                                                \
    {DTYPE,                                                                                                            \
     D,                                                                                                                \
     ck::SHAPE<D>::kRows,                                                                                              \
     ck::SHAPE<D>::kThreads,                                                                                           \
     sizeof(ck::SHAPE<D>::Memory),                                                                                     \
     {"ck_attention_" #WHAT "_" #NAME "_" #D, reinterpret_cast<const void *>(ck_attention_##WHAT##_##NAME##_##D)}}
// All kernels of 16 bits and their table, `kernels`. SERVES<T, D>() says which are more than traps.
#define CK_ATTENTION_KERNELS(WHAT, SHAPE, SERVES)                                                                      \
    CK_ATTENTION_KERNEL(WHAT, SHAPE, (ck::SERVES<__half, 32>()), f16, __half, 32)                                      \
    CK_ATTENTION_KERNEL(WHAT, SHAPE, (ck::SERVES<__half, 64>()), f16, __half, 64)                                      \
    CK_ATTENTION_KERNEL(WHAT, SHAPE, (ck::SERVES<__half, 128>()), f16, __half, 128)                                    \
    CK_ATTENTION_KERNEL(WHAT, SHAPE, (ck::SERVES<__nv_bfloat16, 32>()), bf16, __nv_bfloat16, 32)                       \
    CK_ATTENTION_KERNEL(WHAT, SHAPE, (ck::SERVES<__nv_bfloat16, 64>()), bf16, __nv_bfloat16, 64)                       \
    CK_ATTENTION_KERNEL(WHAT, SHAPE, (ck::SERVES<__nv_bfloat16, 128>()), bf16, __nv_bfloat16, 128)                     \
    static const ck::AttentionKernel kernels[] = {                                                                     \
        CK_ATTENTION_ENTRY(WHAT, SHAPE, f16, CK_F16, 32),   CK_ATTENTION_ENTRY(WHAT, SHAPE, f16, CK_F16, 64),          \
        CK_ATTENTION_ENTRY(WHAT, SHAPE, f16, CK_F16, 128),  CK_ATTENTION_ENTRY(WHAT, SHAPE, bf16, CK_BF16, 32),        \
        CK_ATTENTION_ENTRY(WHAT, SHAPE, bf16, CK_BF16, 64), CK_ATTENTION_ENTRY(WHAT, SHAPE, bf16, CK_BF16, 128)};

namespace ck {

struct AttentionKernel {
    int dtype, head_dim, rows, threads;
    uint32_t shared_bytes;
    Kernel kernel;
};

// Row sums, before the long backward.
int launch_delta(const ck_attention_args &a, void *stream);

// `times` CTAs for each head and `rows` tokens, `more` CTAs a head; fewer threads than the kernel's where they are given.
template <int N>
int launch_attention(const AttentionKernel (&kernels)[N], const ck_attention_args &a, void *stream, int times = 1,
                     int more = 0, int threads = -1) {
    for (const AttentionKernel &k : kernels) {
        if (k.dtype != a.dtype || k.head_dim != a.head_dim) continue;
        if (threads < 0) threads = k.threads;
        const int64_t ctas = (divide_up(a.tokens, k.rows) * times + more) * a.heads;
        // tokens and sequences are counted in 32 bits, and so are CTAs
        if (a.tokens < 1 || a.tokens > 0x7fffff00 || a.sequences < 0 || a.heads < 1 || ctas > 0x7fffffff)
            return CK_BAD_SHAPE;
        if (threads < 32 || threads > k.threads || threads % 32) return CK_BAD_SHAPE;
        return launch(k.kernel, static_cast<unsigned>(ctas), threads, a, stream, k.shared_bytes);
    }
    return CK_BAD_DTYPE;
}

}  // namespace ck
