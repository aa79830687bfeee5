#include "mid_backward.cuh"
#include "table.h"

#define CK_KERNEL(NAME, T, D) CK_ATTENTION_KERNEL(mid_backward, MidBackward, (ck::is_mid<T, D>()), NAME, T, D)
#define CK_ENTRY(NAME, DTYPE, D) CK_ATTENTION_ENTRY(mid_backward, MidBackward, NAME, DTYPE, D)

CK_KERNEL(f16, __half, 32)
CK_KERNEL(f16, __half, 64)
CK_KERNEL(bf16, __nv_bfloat16, 32)
CK_KERNEL(bf16, __nv_bfloat16, 64)

static const ck::AttentionKernel kernels[] = {CK_ENTRY(f16, CK_F16, 32), CK_ENTRY(f16, CK_F16, 64),
                                              CK_ENTRY(bf16, CK_BF16, 32), CK_ENTRY(bf16, CK_BF16, 64)};

int ck_attention_mid_backward(const ck_attention_args *args, void *stream) {
    return ck::launch_attention(kernels, *args, stream);
}
