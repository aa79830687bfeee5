// The residual may be fp32 beside a 16-bit x.
#include "instantiate.cuh"

CK_NORM_KERNELS(add_layer_norm_f32, CK_ADD_LAYER_NORM, float, float)
CK_NORM_KERNELS(add_layer_norm_f16, CK_ADD_LAYER_NORM, __half, __half)
CK_NORM_KERNELS(add_layer_norm_bf16, CK_ADD_LAYER_NORM, __nv_bfloat16, __nv_bfloat16)
CK_NORM_KERNELS(add_layer_norm_f16_f32, CK_ADD_LAYER_NORM, __half, float)
CK_NORM_KERNELS(add_layer_norm_bf16_f32, CK_ADD_LAYER_NORM, __nv_bfloat16, float)

static const ck::NormKernel kernels[] = {
    CK_NORM_ENTRIES(add_layer_norm_f32, CK_ADD_LAYER_NORM, CK_F32, CK_F32, float, float),
    CK_NORM_ENTRIES(add_layer_norm_f16, CK_ADD_LAYER_NORM, CK_F16, CK_F16, __half, __half),
    CK_NORM_ENTRIES(add_layer_norm_bf16, CK_ADD_LAYER_NORM, CK_BF16, CK_BF16, __nv_bfloat16, __nv_bfloat16),
    CK_NORM_ENTRIES(add_layer_norm_f16_f32, CK_ADD_LAYER_NORM, CK_F16, CK_F32, __half, float),
    CK_NORM_ENTRIES(add_layer_norm_bf16_f32, CK_ADD_LAYER_NORM, CK_BF16, CK_F32, __nv_bfloat16, float),
};
CK_NORM_TABLE(add_layer_norm)
