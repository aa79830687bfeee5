#include "short_forward.cuh"
#include "table.h"

#define CK_KERNEL(NAME, T, D) CK_ATTENTION_KERNEL(short_forward, ShortForward, (ck::is_served<T, D>()), NAME, T, D)
#define CK_ENTRY(NAME, DTYPE, D) CK_ATTENTION_ENTRY(short_forward, ShortForward, NAME, DTYPE, D)

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

int ck_attention_short_forward(const ck_attention_args *args, void *stream) {
    return ck::launch_attention(kernels, *args, stream, 1, 1, 32 * args->warps);  // one CTA a head for what is outside sequences
}
