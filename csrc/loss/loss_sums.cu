// What is counted before and summed after the rows: one CTA each, in a fixed order, so the same bits every time.
#include "../common/launch.h"
#include "../common/reduce.cuh"
#include "status.h"

namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;

__device__ float over_rows(const float *values, int64_t rows, float *slots) {
    float sum = 0.0f;
    for (int64_t row = threadIdx.x; row < rows; row += kThreads) sum += values[row];
    return ck::row_sum<kWarps>(sum, slots);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads) ck_loss_count_kernel(const __grid_constant__ ck_loss_args a) {
    __shared__ int slots[kWarps];
    int count = 0;
    for (int64_t row = threadIdx.x; row < a.total; row += kThreads) count += a.labels[row] != a.ignore_index;
    for (int offset = 16; offset > 0; offset /= 2) count += __shfl_xor_sync(0xffffffffu, count, offset);
    if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = count;
    __syncthreads();
    if (threadIdx.x) return;
    for (int warp = 1; warp < kWarps; ++warp) count += slots[warp];
    *a.num_tokens = count;
    const float scale = a.grad_scale ? *a.grad_scale : 1.0f;
    *a.share = count ? scale / count : 0.0f;
}

extern "C" __global__ void __launch_bounds__(kThreads) ck_loss_finish_kernel(const __grid_constant__ ck_loss_args a) {
    __shared__ float slots[3][kWarps];
    const float loss = over_rows(a.stats, a.total, slots[0]);
    const float z = over_rows(a.stats + a.total, a.total, slots[1]);
    const float hits = over_rows(a.stats + 2 * a.total, a.total, slots[2]);  // exact below 2^24 rows
    if (threadIdx.x) return;
    const int64_t count = *a.num_tokens;
    const float tokens = count ? static_cast<float>(count) : 1.0f;
    *a.loss = loss / tokens + z / tokens;
    *a.z_loss = z / tokens;
    *a.num_correct = static_cast<int64_t>(hits);
}

int ck_loss_count(const ck_loss_args *args, void *stream) {
    if (const int status = ck::loss_status(*args)) return status;
    const ck::Kernel kernel = {"ck_loss_count_kernel", reinterpret_cast<const void *>(ck_loss_count_kernel)};
    return ck::launch(kernel, dim3(1), dim3(kThreads), *args, stream);
}

int ck_loss_finish(const ck_loss_args *args, void *stream) {
    if (const int status = ck::loss_status(*args)) return status;
    const ck::Kernel kernel = {"ck_loss_finish_kernel", reinterpret_cast<const void *>(ck_loss_finish_kernel)};
    return ck::launch(kernel, dim3(1), dim3(kThreads), *args, stream);
}
