// Parameter gradients from their partial rows: summed over the CTAs in a fixed order, so the same bits every time.
//
// A CTA owns 32 columns of one parameter; its 8 warps take every eighth partial row, a warp reads 128 bytes at a time.
#include "../common/launch.h"
#include "../common/vector.cuh"

namespace {

constexpr int kWarps = 8;

__device__ void put(void *out, int dtype, int column, float value) {
    if (dtype == CK_F32)
        static_cast<float *>(out)[column] = value;
    else if (dtype == CK_F16)
        static_cast<__half *>(out)[column] = __float2half_rn(value);
    else
        static_cast<__nv_bfloat16 *>(out)[column] = __float2bfloat16_rn(value);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * kWarps) ck_reduce_partials(const __grid_constant__ ck_reduce_args a) {
    __shared__ float sums[kWarps][32];
    const int column = blockIdx.x * 32 + threadIdx.x;
    const float *partials = a.partials + static_cast<int64_t>(blockIdx.y) * a.ctas * a.width + column;
    float sum = 0.0f;
    if (column < a.width)
        for (int cta = threadIdx.y; cta < a.ctas; cta += kWarps) sum += partials[static_cast<int64_t>(cta) * a.width];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y || column >= a.width) return;
    for (int warp = 1; warp < kWarps; ++warp) sum += sums[warp][threadIdx.x];
    put(a.out[blockIdx.y], a.dtype, column, sum);
}

int ck_norm_reduce(const ck_reduce_args *args, void *stream) {
    if (args->count < 1 || args->count > 3 || args->ctas < 1 || args->width < 1) return CK_BAD_SHAPE;
    if (args->dtype < CK_F32 || args->dtype > CK_BF16) return CK_BAD_DTYPE;
    const ck::Kernel kernel = {"ck_reduce_partials", reinterpret_cast<const void *>(ck_reduce_partials)};
    const dim3 grid(static_cast<unsigned>(ck::divide_up(args->width, 32)), args->count);
    return ck::launch(kernel, grid, dim3(32, kWarps), *args, stream);
}
