// Global memory in 16-byte pieces, arithmetic in fp32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <stdint.h>

#include "../api.h"

namespace ck {

template <typename T>
inline constexpr int kPerAccess = 16 / sizeof(T);  // elements of one 16-byte access

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>
__device__ __forceinline__ __half from_float<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

// Two neighbours in one 32-bit word
template <typename T>
__device__ __forceinline__ uint32_t pack2(float a, float b);
template <>
__device__ __forceinline__ uint32_t pack2<__half>(float a, float b) {
    const __half2 both = __floats2half2_rn(a, b);
    return reinterpret_cast<const uint32_t &>(both);
}
template <>
__device__ __forceinline__ uint32_t pack2<__nv_bfloat16>(float a, float b) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(a, b);
    return reinterpret_cast<const uint32_t &>(both);
}

template <typename T>
__device__ __forceinline__ float2 unpack2(uint32_t word);
template <>
__device__ __forceinline__ float2 unpack2<__half>(uint32_t word) {
    return __half22float2(reinterpret_cast<const __half2 &>(word));
}
template <>
__device__ __forceinline__ float2 unpack2<__nv_bfloat16>(uint32_t word) {
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}

// COUNT elements from p, which is aligned to 16 bytes unless COUNT is 1.
template <int COUNT, typename T>
__device__ __forceinline__ void load(const T *p, float (&out)[COUNT]) {
    if constexpr (COUNT == 1) {
        out[0] = to_float(*p);
    } else if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (int i = 0; i < COUNT; i += 4) {
            const float4 v = *reinterpret_cast<const float4 *>(p + i);
            out[i] = v.x, out[i + 1] = v.y, out[i + 2] = v.z, out[i + 3] = v.w;
        }
    } else {
        static_assert(COUNT == 8);
        const uint4 v = *reinterpret_cast<const uint4 *>(p);
        const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float2 pair = unpack2<T>(words[i]);
            out[2 * i] = pair.x, out[2 * i + 1] = pair.y;
        }
    }
}

template <int COUNT, typename T>
__device__ __forceinline__ void store(T *p, const float (&in)[COUNT]) {
    if constexpr (COUNT == 1) {
        *p = from_float<T>(in[0]);
    } else if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (int i = 0; i < COUNT; i += 4)
            *reinterpret_cast<float4 *>(p + i) = make_float4(in[i], in[i + 1], in[i + 2], in[i + 3]);
    } else {
        static_assert(COUNT == 8);
        *reinterpret_cast<uint4 *>(p) = make_uint4(pack2<T>(in[0], in[1]), pack2<T>(in[2], in[3]),
                                                   pack2<T>(in[4], in[5]), pack2<T>(in[6], in[7]));
    }
}

// 16 bytes of global memory, asked for here and no later, which the compiler may find better when registers are scarce.
__device__ __forceinline__ uint4 load_piece(const void *from) {
    uint4 piece;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(piece.x), "=r"(piece.y), "=r"(piece.z), "=r"(piece.w)
                 : "l"(__cvta_generic_to_global(from))
                 : "memory");
    return piece;
}

// 16 bytes to global memory in one access: the words of a plain assignment the compiler may well write one by one, and
// then each sector is asked for as many times.
__device__ __forceinline__ void store_piece(void *to, const uint32_t (&words)[4]) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(words[0]),
                 "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
}

// A warp's COUNT floats a lane in shared memory. Four neighbours of each lane lie together, those of the next lane beside
// them, so that the 16-byte accesses of a warp meet no bank twice in a phase.
template <int COUNT>
__device__ __forceinline__ void put_shared(float *memory, int lane, const float (&in)[COUNT]) {
    if constexpr (COUNT == 1) {
        memory[lane] = in[0];
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; i += 4)
            *reinterpret_cast<float4 *>(memory + i * 32 + lane * 4) = make_float4(in[i], in[i + 1], in[i + 2], in[i + 3]);
    }
}

template <int COUNT>
__device__ __forceinline__ void get_shared(const float *memory, int lane, float (&out)[COUNT]) {
    if constexpr (COUNT == 1) {
        out[0] = memory[lane];
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; i += 4) {
            const float4 four = *reinterpret_cast<const float4 *>(memory + i * 32 + lane * 4);
            out[i] = four.x, out[i + 1] = four.y, out[i + 2] = four.z, out[i + 3] = four.w;
        }
    }
}

// A parameter vector is of the activations' type T or fp32: a branch that is the same for the whole launch.
template <typename T, int COUNT>
__device__ __forceinline__ void load_parameter(const void *p, int dtype, int column, float (&out)[COUNT]) {
    if (sizeof(T) == 4 || dtype == CK_F32)
        load(static_cast<const float *>(p) + column, out);
    else
        load(static_cast<const T *>(p) + column, out);
}

}  // namespace ck
