// The row kernels, for rows that two CTAs of a multiprocessor hold in registers, and for longer ones.
#include "../common/launch.h"
#include "rows.cuh"
#include "status.h"

#define CK_LOSS_ROWS(NAME, T)                                                                                          \
    extern "C" __global__ void __launch_bounds__(ck::kLossThreads, 2)                                                  \
        ck_loss_rows_##NAME(const __grid_constant__ ck_loss_args a) {                                                  \
        ck::loss_row<T, 8, false>(a);                                                                                  \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(ck::kLossThreads, 1)                                                  \
        ck_loss_rows_##NAME##_long(const __grid_constant__ ck_loss_args a) {                                           \
        ck::loss_row<T, 24, true>(a);                                                                                  \
    }
#define CK_LOSS_ENTRY(NAME)                                                                                            \
    {{"ck_loss_rows_" #NAME, reinterpret_cast<const void *>(ck_loss_rows_##NAME)},                                     \
     {"ck_loss_rows_" #NAME "_long", reinterpret_cast<const void *>(ck_loss_rows_##NAME##_long)}}

CK_LOSS_ROWS(f32, float)
CK_LOSS_ROWS(f16, __half)
CK_LOSS_ROWS(bf16, __nv_bfloat16)

int ck_loss_rows(const ck_loss_args *args, void *stream) {
    static const ck::Kernel kernels[3][2] = {CK_LOSS_ENTRY(f32), CK_LOSS_ENTRY(f16), CK_LOSS_ENTRY(bf16)};
    if (const int status = ck::loss_status(*args)) return status;
    const int count = args->dtype == CK_F32 ? 4 : 8;
    if (args->rows < 1 || args->rows > 0x7fffffff || args->stride % count ||
        args->stride < args->vocabulary || reinterpret_cast<uintptr_t>(args->logits) % 16)
        return CK_BAD_SHAPE;
    const int64_t pieces = ck::divide_up(args->vocabulary, count);
    const bool is_long = pieces > 8 * ck::kLossThreads;
    int64_t beyond = pieces - 24 * ck::kLossThreads;
    beyond = beyond < 0 ? 0 : beyond > ck::kLossSharedPieces ? ck::kLossSharedPieces : beyond;
    return ck::launch(kernels[args->dtype][is_long], dim3(static_cast<unsigned>(args->rows)), dim3(ck::kLossThreads),
                      *args, stream, is_long ? static_cast<uint32_t>(16 * beyond) : 0);
}
