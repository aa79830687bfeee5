#include "long_backward.cuh"
#include "table.h"

#define CK_KERNELS(NAME, T, D)                                                                                         \
    CK_ATTENTION_KERNEL(long_dq, LongDq, ck::is_multiplied<T>(), NAME, T, D)                                           \
    CK_ATTENTION_KERNEL(long_dkv, LongDkv, ck::is_multiplied<T>(), NAME, T, D)

CK_KERNELS(f16, __half, 32)
CK_KERNELS(f16, __half, 64)
CK_KERNELS(f16, __half, 128)
CK_KERNELS(bf16, __nv_bfloat16, 32)
CK_KERNELS(bf16, __nv_bfloat16, 64)
CK_KERNELS(bf16, __nv_bfloat16, 128)

#define CK_TABLE(WHAT, SHAPE)                                                                                          \
    {CK_ATTENTION_ENTRY(WHAT, SHAPE, f16, CK_F16, 32),   CK_ATTENTION_ENTRY(WHAT, SHAPE, f16, CK_F16, 64),             \
     CK_ATTENTION_ENTRY(WHAT, SHAPE, f16, CK_F16, 128),  CK_ATTENTION_ENTRY(WHAT, SHAPE, bf16, CK_BF16, 32),           \
     CK_ATTENTION_ENTRY(WHAT, SHAPE, bf16, CK_BF16, 64), CK_ATTENTION_ENTRY(WHAT, SHAPE, bf16, CK_BF16, 128)}

static const ck::AttentionKernel dq_kernels[] = CK_TABLE(long_dq, LongDq);
static const ck::AttentionKernel dkv_kernels[] = CK_TABLE(long_dkv, LongDkv);

int ck_attention_long_backward(const ck_attention_args *args, void *stream) {
    if (const int status = ck::launch_attention(dq_kernels, *args, stream)) return status;
    return ck::launch_attention(dkv_kernels, *args, stream);
}
