// Gated GELU: y = a * GELU(g), with a and g the halves of x + bias.
//
// Element-wise: one read of each input, one write of each output. A CTA owns 32 pieces of 16 bytes of the columns (of
// both halves) and four rows at a time, so that the bias stays in registers and so does, in the backward, a thread's
// share of its gradient; those are added up over the CTA's warps in order, one partial row a CTA, for reduce.cu.
#include "../common/gelu.cuh"
#include "../common/launch.h"
#include "../common/vector.cuh"

namespace {

constexpr int kRows = 4;  // of a CTA, at a time

// The two halves of a row at this thread's column; `linear` and `gated` are offsets into the row of 2 * width.
struct Place {
    int column, linear, gated;
};

template <int COUNT>
__device__ __forceinline__ Place place_of(const ck_geglu_args &a) {
    const int column = (blockIdx.x * 32 + threadIdx.x) * COUNT;
    return {column, a.gate_first ? a.width + column : column, a.gate_first ? column : a.width + column};
}

template <typename T, int COUNT>
__device__ __forceinline__ void load_bias(const ck_geglu_args &a, Place at, float (&linear)[COUNT], float (&gated)[COUNT]) {
    if (!a.bias) return;
    ck::load_parameter<T>(a.bias, a.parameter_dtype, at.linear, linear);
    ck::load_parameter<T>(a.bias, a.parameter_dtype, at.gated, gated);
}

template <int COUNT>
__device__ __forceinline__ void add(float (&x)[COUNT], const float (&bias)[COUNT]) {
#pragma unroll
    for (int c = 0; c < COUNT; ++c) x[c] += bias[c];
}

template <typename T, int COUNT>
__device__ __forceinline__ void geglu_forward(const ck_geglu_args &a) {
    const Place at = place_of<COUNT>(a);
    if (at.column >= a.width) return;
    float linear_bias[COUNT] = {}, gated_bias[COUNT] = {};
    load_bias<T>(a, at, linear_bias, gated_bias);
    for (int64_t row = blockIdx.y * kRows + threadIdx.y; row < a.rows; row += gridDim.y * kRows) {
        const T *x = static_cast<const T *>(a.x) + row * 2 * a.width;
        float linear[COUNT], gated[COUNT];
        ck::load(x + at.linear, linear);
        ck::load(x + at.gated, gated);
        ck::Gelu gelu[COUNT];
        add(gated, gated_bias);
        ck::gelu(gated, a.tanh, gelu);
#pragma unroll
        for (int c = 0; c < COUNT; ++c) linear[c] = (linear[c] + linear_bias[c]) * gelu[c].value;
        ck::store(static_cast<T *>(a.y) + row * a.width + at.column, linear);
    }
}

template <typename T, int COUNT>
__device__ __forceinline__ void geglu_backward(const ck_geglu_args &a) {
    __shared__ __align__(16) float sums[2][32 * COUNT];
    const Place at = place_of<COUNT>(a);
    const bool inside = at.column < a.width;
    float linear_bias[COUNT] = {}, gated_bias[COUNT] = {}, dlinear_sum[COUNT] = {}, dgated_sum[COUNT] = {};
    if (inside) load_bias<T>(a, at, linear_bias, gated_bias);
    for (int64_t row = blockIdx.y * kRows + threadIdx.y; inside && row < a.rows; row += gridDim.y * kRows) {
        const T *x = static_cast<const T *>(a.x) + row * 2 * a.width;
        T *dx = static_cast<T *>(a.dx) + row * 2 * a.width;
        float linear[COUNT], gated[COUNT], grad[COUNT];
        ck::load(x + at.linear, linear);
        ck::load(x + at.gated, gated);
        ck::load(static_cast<const T *>(a.grad) + row * a.width + at.column, grad);
        ck::Gelu gelu[COUNT];
        add(gated, gated_bias);
        ck::gelu(gated, a.tanh, gelu);
#pragma unroll
        for (int c = 0; c < COUNT; ++c) {
            gated[c] = grad[c] * (linear[c] + linear_bias[c]) * gelu[c].slope;
            linear[c] = grad[c] * gelu[c].value;
            dlinear_sum[c] += linear[c], dgated_sum[c] += gated[c];
        }
        ck::store(dx + at.linear, linear);
        ck::store(dx + at.gated, gated);
    }
    if (!a.bias) return;
    float *out = a.partials + static_cast<int64_t>(blockIdx.y) * 2 * a.width;
    for (int turn = 0; turn < kRows; ++turn) {
        __syncthreads();
        if (threadIdx.y != turn || !inside) continue;
        float linear[COUNT] = {}, gated[COUNT] = {};
        if (turn > 0) ck::get_shared(sums[0], threadIdx.x, linear), ck::get_shared(sums[1], threadIdx.x, gated);
#pragma unroll
        for (int c = 0; c < COUNT; ++c) linear[c] += dlinear_sum[c], gated[c] += dgated_sum[c];
        if (turn + 1 < kRows)
            ck::put_shared(sums[0], threadIdx.x, linear), ck::put_shared(sums[1], threadIdx.x, gated);
        else
            ck::store(out + at.linear, linear), ck::store(out + at.gated, gated);
    }
}

}  // namespace

#define CK_GEGLU(NAME, T, COUNT)                                                                                       \
    extern "C" __global__ void __launch_bounds__(32 * kRows) ck_geglu_##NAME##_forward(                                \
        const __grid_constant__ ck_geglu_args a) {                                                                     \
        geglu_forward<T, COUNT>(a);                                                                                    \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(32 * kRows) ck_geglu_##NAME##_backward(                               \
        const __grid_constant__ ck_geglu_args a) {                                                                     \
        geglu_backward<T, COUNT>(a);                                                                                   \
    }
#define CK_GEGLU_ENTRY(NAME, DTYPE, COUNT)                                                                             \
    {DTYPE, COUNT, {"ck_geglu_" #NAME "_forward", reinterpret_cast<const void *>(ck_geglu_##NAME##_forward)},          \
     {"ck_geglu_" #NAME "_backward", reinterpret_cast<const void *>(ck_geglu_##NAME##_backward)}}

CK_GEGLU(f32, float, 4)
CK_GEGLU(f16, __half, 8)
CK_GEGLU(bf16, __nv_bfloat16, 8)
CK_GEGLU(f32_any, float, 1)
CK_GEGLU(f16_any, __half, 1)
CK_GEGLU(bf16_any, __nv_bfloat16, 1)

namespace {

struct GegluKernel {
    int dtype, count;  // count: elements of one access; 1 serves any width and address
    ck::Kernel forward, backward;
};

const GegluKernel kernels[] = {CK_GEGLU_ENTRY(f32, CK_F32, 4),      CK_GEGLU_ENTRY(f16, CK_F16, 8),
                               CK_GEGLU_ENTRY(bf16, CK_BF16, 8),    CK_GEGLU_ENTRY(f32_any, CK_F32, 1),
                               CK_GEGLU_ENTRY(f16_any, CK_F16, 1),  CK_GEGLU_ENTRY(bf16_any, CK_BF16, 1)};

int choose(const ck_geglu_args &a, const GegluKernel **chosen, dim3 *grid) {
    if (a.width < 1 || a.rows < 1 || a.ctas < 1 || a.ctas > 65535) return CK_BAD_SHAPE;
    uintptr_t bits = 0;
    for (const void *tensor : {a.x, a.bias, a.grad, static_cast<const void *>(a.y), static_cast<const void *>(a.dx)})
        bits |= reinterpret_cast<uintptr_t>(tensor);
    for (const GegluKernel &kernel : kernels) {
        if (kernel.dtype != a.dtype) continue;
        if (kernel.count > 1 && (a.width % kernel.count || bits % 16)) continue;
        *chosen = &kernel;
        *grid = dim3(static_cast<unsigned>(ck::divide_up(a.width, 32 * kernel.count)), a.ctas);
        return 0;
    }
    return CK_BAD_DTYPE;
}

}  // namespace

// The grid's second dimension is `ctas` exactly: the number of partial rows.
int ck_geglu_forward(const ck_geglu_args *args, void *stream) {
    const GegluKernel *kernel = nullptr;
    dim3 grid;
    if (const int status = choose(*args, &kernel, &grid)) return status;
    return ck::launch(kernel->forward, grid, dim3(32, kRows), *args, stream);
}

int ck_geglu_backward(const ck_geglu_args *args, void *stream) {
    const GegluKernel *kernel = nullptr;
    dim3 grid;
    if (const int status = choose(*args, &kernel, &grid)) return status;
    return ck::launch(kernel->backward, grid, dim3(32, kRows), *args, stream);
}
