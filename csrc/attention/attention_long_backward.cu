#include "long_backward.cuh"
#include "table.h"

#define CK_KERNEL(NAME, T, D) CK_ATTENTION_KERNEL(long_backward, LongBackward, ck::is_multiplied<T>(), NAME, T, D)
#define CK_ENTRY(NAME, DTYPE, D) CK_ATTENTION_ENTRY(long_backward, LongBackward, NAME, DTYPE, D)

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

int ck_attention_long_backward(const ck_attention_args *args, void *stream) {
    if (const int status = ck_attention_delta(args, stream)) return status;
    return ck::launch_attention(kernels, *args, stream, 2);
}
