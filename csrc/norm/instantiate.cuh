// Names the kernels of one operation: ck_<operation>_<direction>_<type of x>[_<type of the residual>]_<capacity>.
#pragma once

#include "backward.cuh"
#include "forward.cuh"
#include "table.h"

#define CK_NORM_PAIR(NAME, OP, T, R, CAPACITY)                                                                         \
    extern "C" __global__ void __launch_bounds__(ck::Layout<T, ck::width_##CAPACITY>::kThreads, 1)                     \
        ck_##NAME##_forward_##CAPACITY(const __grid_constant__ ck_norm_args a) {                                       \
        ck::norm_forward<T, R, OP, ck::width_##CAPACITY>(a);                                                           \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(ck::BackwardLayout<T, R, OP, ck::width_##CAPACITY>::kThreads, 1)      \
        ck_##NAME##_backward_##CAPACITY(const __grid_constant__ ck_norm_args a) {                                      \
        ck::norm_backward<T, R, OP, ck::width_##CAPACITY>(a);                                                          \
    }
#define CK_NORM_KERNELS(NAME, OP, T, R)                                                                                \
    CK_NORM_PAIR(NAME, OP, T, R, any)                                                                                  \
    CK_NORM_PAIR(NAME, OP, T, R, 768)                                                                                  \
    CK_NORM_PAIR(NAME, OP, T, R, 1024)                                                                                 \
    CK_NORM_PAIR(NAME, OP, T, R, 8192)

#define CK_NORM_ENTRY(NAME, OP, DTYPE, RDTYPE, T, R, CAPACITY)                                                         \
    {DTYPE, RDTYPE, ck::width_##CAPACITY,                                                                              \
     {"ck_" #NAME "_forward_" #CAPACITY, reinterpret_cast<const void *>(ck_##NAME##_forward_##CAPACITY)},              \
     {"ck_" #NAME "_backward_" #CAPACITY, reinterpret_cast<const void *>(ck_##NAME##_backward_##CAPACITY)},            \
     ck::Layout<T, ck::width_##CAPACITY>::kThreads, ck::Layout<T, ck::width_##CAPACITY>::kRows,                        \
     ck::BackwardLayout<T, R, OP, ck::width_##CAPACITY>::kThreads}
// Smallest first: the launcher takes the first that fits
#define CK_NORM_ENTRIES(NAME, OP, DTYPE, RDTYPE, T, R)                                                                 \
    CK_NORM_ENTRY(NAME, OP, DTYPE, RDTYPE, T, R, 768), CK_NORM_ENTRY(NAME, OP, DTYPE, RDTYPE, T, R, 1024),             \
        CK_NORM_ENTRY(NAME, OP, DTYPE, RDTYPE, T, R, 8192), CK_NORM_ENTRY(NAME, OP, DTYPE, RDTYPE, T, R, any)

#define CK_NORM_TABLE(OPERATION)                                                                                       \
    const ck::NormTable ck::OPERATION##_table = {kernels, sizeof(kernels) / sizeof(kernels[0])};

// An operation whose residual, if any, has the type of x
#define CK_NORM_OPERATION(OPERATION, OP)                                                                               \
    CK_NORM_KERNELS(OPERATION##_f32, OP, float, float)                                                                 \
    CK_NORM_KERNELS(OPERATION##_f16, OP, __half, __half)                                                               \
    CK_NORM_KERNELS(OPERATION##_bf16, OP, __nv_bfloat16, __nv_bfloat16)                                                \
    static const ck::NormKernel kernels[] = {                                                                          \
        CK_NORM_ENTRIES(OPERATION##_f32, OP, CK_F32, CK_F32, float, float),                                            \
        CK_NORM_ENTRIES(OPERATION##_f16, OP, CK_F16, CK_F16, __half, __half),                                          \
        CK_NORM_ENTRIES(OPERATION##_bf16, OP, CK_BF16, CK_BF16, __nv_bfloat16, __nv_bfloat16),                         \
    };                                                                                                                 \
    CK_NORM_TABLE(OPERATION)
