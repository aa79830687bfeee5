#include "fp32.cuh"
#include "table.h"

namespace ck {

template <int D, int TILES>
struct Fp32Kernel : Fp32<D> {
    static constexpr int kResident = 1;
    using Memory = typename Fp32<D>::template Memory<TILES>;
};
template <int D>
using Fp32Forward = Fp32Kernel<D, 1>;
template <int D>
using Fp32Backward = Fp32Kernel<D, 2>;

}  // namespace ck

#define CK_KERNELS(D)                                                                                                  \
    CK_ATTENTION_KERNEL(fp32_forward, Fp32Forward, true, f32, float, D)                                                \
    CK_ATTENTION_KERNEL(fp32_dq, Fp32Backward, true, f32, float, D)                                                    \
    CK_ATTENTION_KERNEL(fp32_dkv, Fp32Backward, true, f32, float, D)

CK_KERNELS(32)
CK_KERNELS(64)
CK_KERNELS(128)

#define CK_TABLE(WHAT, SHAPE)                                                                                          \
    {CK_ATTENTION_ENTRY(WHAT, SHAPE, f32, CK_F32, 32), CK_ATTENTION_ENTRY(WHAT, SHAPE, f32, CK_F32, 64),               \
     CK_ATTENTION_ENTRY(WHAT, SHAPE, f32, CK_F32, 128)}

static const ck::AttentionKernel forward_kernels[] = CK_TABLE(fp32_forward, Fp32Forward);
static const ck::AttentionKernel dq_kernels[] = CK_TABLE(fp32_dq, Fp32Backward);
static const ck::AttentionKernel dkv_kernels[] = CK_TABLE(fp32_dkv, Fp32Backward);

int ck_attention_fp32_forward(const ck_attention_args *args, void *stream) {
    return ck::launch_attention(forward_kernels, *args, stream);
}

int ck_attention_fp32_backward(const ck_attention_args *args, void *stream) {
    if (const int status = ck::launch_attention(dq_kernels, *args, stream)) return status;
    return ck::launch_attention(dkv_kernels, *args, stream);
}
