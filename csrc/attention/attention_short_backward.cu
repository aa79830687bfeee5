#include "short_backward.cuh"
#include "table.h"

#define CK_KERNEL(NAME, T, D)                                                                                          \
    extern "C" __global__ void __launch_bounds__(ck::ShortBackward<D>::kThreads, ck::ShortBackward<D>::kResident)      \
        ck_attention_short_backward_##NAME##_##D(const __grid_constant__ ck_attention_args a) {                        \
        if constexpr (ck::is_served<T, D>())                                                                           \
            ck::short_backward<T, D>(a);                                                                               \
        else                                                                                                           \
            __trap();                                                                                                  \
    }
#define CK_ENTRY(NAME, DTYPE, D)                                                                                       \
    CK_ATTENTION_ENTRY(ck_attention_short_backward_##NAME##_##D, DTYPE, D, sizeof(ck::ShortBackward<D>::Memory))

CK_KERNEL(f16, __half, 32)
CK_KERNEL(f16, __half, 64)
CK_KERNEL(f16, __half, 128)
CK_KERNEL(bf16, __nv_bfloat16, 32)
CK_KERNEL(bf16, __nv_bfloat16, 64)
CK_KERNEL(bf16, __nv_bfloat16, 128)

static const ck::AttentionKernel kernels[] = {
    CK_ENTRY(f16, CK_F16, 32),   CK_ENTRY(f16, CK_F16, 64),   CK_ENTRY(f16, CK_F16, 128),
    CK_ENTRY(bf16, CK_BF16, 32), CK_ENTRY(bf16, CK_BF16, 64), CK_ENTRY(bf16, CK_BF16, 128),
};

int ck_attention_short_backward(const ck_attention_args *args, void *stream) {
    return ck::launch_attention(kernels, *args, ck::divide_up(args->tokens, ck::kRunTokens) + 1, ck::ShortBackward<32>::kThreads, stream);
}
