// The loss without logits in memory: hidden times decoder, tile by tile, ends in registers.
//
// Forward (ck_loss_tiles): a CTA owns 256 rows and every splits-th tile of the vocabulary, and keeps each row's running
// maximum and sums; ck_loss_combine joins the splits in their order. Backward (ck_loss_slice): the tile again, made into
// its gradient and written as a slice of the vocabulary, [rows, columns] of a bounded buffer, which two GEMMs consume.
// No atomics: the same bits every time.
#include "../common/launch.h"
#include "product.cuh"
#include "status.h"

namespace {

using ck::kTileColumns, ck::kTileRows, ck::kTileThreads, ck::RowSums, ck::TilePlace;

__device__ __forceinline__ RowSums joined(RowSums one, RowSums other) {
    const float maximum = fmaxf(one.maximum, other.maximum);
    const float shift = maximum == ck::kMinusInfinity ? 0.0f : maximum;  // neither has a column yet
    return {maximum,
            one.exponentials * ck::exp_fast(one.maximum - shift) + other.exponentials * ck::exp_fast(other.maximum - shift),
            one.logits + other.logits};
}

__device__ __forceinline__ RowSums sums_of(const float (&x)[16], bool smoothing) {
    RowSums sums = {x[0], 0.0f, 0.0f};
#pragma unroll
    for (int c = 1; c < 16; ++c) sums.maximum = fmaxf(sums.maximum, x[c]);
    const float shift = sums.maximum == ck::kMinusInfinity ? 0.0f : sums.maximum;
#pragma unroll
    for (int c = 0; c < 16; ++c) sums.exponentials += ck::exp_fast(x[c] - shift);
    if (smoothing) {
#pragma unroll
        for (int c = 0; c < 16; ++c)
            if (x[c] != ck::kMinusInfinity) sums.logits += x[c];
    }
    return sums;
}

__device__ __forceinline__ RowSums over_quad(RowSums sums) {
#pragma unroll
    for (int offset = 1; offset < 4; offset *= 2)
        sums = joined(sums, {__shfl_xor_sync(0xffffffffu, sums.maximum, offset),
                             __shfl_xor_sync(0xffffffffu, sums.exponentials, offset),
                             __shfl_xor_sync(0xffffffffu, sums.logits, offset)});
    return sums;
}

template <typename T>
__device__ __forceinline__ void loss_tiles(const ck_loss_args &a) {
    extern __shared__ __align__(16) char ring[];
    // Of each half of the columns; a row's is one thread's until the end. In registers these would spill
    __shared__ RowSums halves[2][kTileRows];
    const TilePlace at;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * kTileRows;
    RowSums *mine = halves[at.warp_column / 64];
    if (at.lane % 4 == 0) {
#pragma unroll
        for (int i = 0; i < 4; ++i) mine[at.row(i / 2, i % 2)] = {ck::kMinusInfinity, 0.0f, 0.0f};
    }
    for (int column = blockIdx.y * kTileColumns; column < a.vocabulary; column += a.splits * kTileColumns) {
        ck::TileValues d;
        ck::product<T>(a, first, column, ring, at, d);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int64_t row = first + at.row(i / 2, i % 2);
            float x[16];
            ck::tile_row<T>(a, d, i / 2, i % 2, column, at, x);
            const int target = row < a.total ? ck::target_in_tile(ck::label_of(a, row), column, at) : -1;
#pragma unroll
            for (int c = 0; c < 16; ++c)
                if (c == target) a.targets[row] = x[c];
            const RowSums sums = over_quad(sums_of(x, a.smoothing > 0.0f));
            RowSums &so_far = mine[at.row(i / 2, i % 2)];
            if (at.lane % 4 == 0) so_far = joined(so_far, sums);
        }
    }
    __syncthreads();
    const int64_t row = first + threadIdx.x;
    if (threadIdx.x >= kTileRows || row >= a.total) return;
    const RowSums all = joined(halves[0][threadIdx.x], halves[1][threadIdx.x]);
    float *out = a.partials + static_cast<int64_t>(blockIdx.y) * 3 * a.total + row;
    out[0] = all.maximum, out[a.total] = all.exponentials, out[2 * a.total] = all.logits;
}

template <typename T>
__device__ __forceinline__ void loss_slice(const ck_loss_args &a) {
    extern __shared__ __align__(16) char ring[];
    const TilePlace at;
    const int64_t first = a.first + static_cast<int64_t>(blockIdx.y) * kTileRows, end = a.first + a.rows;
    const int within = blockIdx.x * kTileColumns;  // the slice
    ck::TileValues d;
    ck::product<T>(a, first, a.first_column + within, ring, at, d);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int64_t row = first + at.row(i / 2, i % 2);
        float x[16] = {};
        if (row < end && a.labels[row] != a.ignore_index) {
            const int column = a.first_column + within;
            const float lse = a.lse[row];
            ck::tile_row<T>(a, d, i / 2, i % 2, column, at, x);
            ck::Gradient(a, lse, lse, 1.0f).apply(a, ck::target_in_tile(ck::label_of(a, row), column, at), x);
        }
        T *out = static_cast<T *>(a.logits) + (row - a.first) * a.stride;
#pragma unroll
        for (int group = 0; group < 2; ++group) {  // 32 columns: four fragments become 16 bytes a thread
            uint32_t words[4];
#pragma unroll
            for (int n = 0; n < 4; ++n) words[n] = ck::pack2<T>(x[8 * group + 2 * n], x[8 * group + 2 * n + 1]);
            ck::transpose_quad(words);
            const int column = within + at.warp_column + 32 * group + at.lane % 4 * 8;
            // whole pieces: of the last one, columns beyond the slice are padding of the buffer
            if (row < end && column < a.columns)
                *reinterpret_cast<uint4 *>(out + column) = make_uint4(words[0], words[1], words[2], words[3]);
        }
    }
}

}  // namespace

#define CK_LOSS_RECOMPUTE(NAME, T)                                                                                     \
    extern "C" __global__ void __launch_bounds__(ck::kTileThreads)                                                     \
        ck_loss_tiles_##NAME(const __grid_constant__ ck_loss_args a) {                                                 \
        loss_tiles<T>(a);                                                                                              \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(ck::kTileThreads)                                                     \
        ck_loss_slice_##NAME(const __grid_constant__ ck_loss_args a) {                                                 \
        loss_slice<T>(a);                                                                                              \
    }
#define CK_LOSS_ENTRY(DIRECTION, NAME)                                                                                 \
    {"ck_loss_" #DIRECTION "_" #NAME, reinterpret_cast<const void *>(ck_loss_##DIRECTION##_##NAME)}

CK_LOSS_RECOMPUTE(f16, __half)
CK_LOSS_RECOMPUTE(bf16, __nv_bfloat16)

extern "C" __global__ void __launch_bounds__(256) ck_loss_combine_kernel(const __grid_constant__ ck_loss_args a) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
    if (row >= a.total) return;
    if (a.labels[row] == a.ignore_index) {
        a.lse[row] = a.stats[row] = a.stats[a.total + row] = a.stats[2 * a.total + row] = 0.0f;
        return;
    }
    RowSums sums = {ck::kMinusInfinity, 0.0f, 0.0f};
    for (int split = 0; split < a.splits; ++split) {
        const float *in = a.partials + static_cast<int64_t>(split) * 3 * a.total + row;
        sums = joined(sums, {in[0], in[a.total], in[2 * a.total]});
    }
    ck::put_row(a, row, sums, ck::label_of(a, row) < 0 ? __int_as_float(0x7fffffff) : a.targets[row]);
}

namespace {

// The ring's
uint32_t shared_bytes(const ck_loss_args &a) { return (a.major < 8 ? 2 : 3) * ck::kStageBytes; }

// Of the kernels that multiply: 16-bit operands alone
int status_of(const ck_loss_args &a) { return a.dtype == CK_F32 ? CK_BAD_DTYPE : ck::loss_status(a); }

}  // namespace

int ck_loss_tiles(const ck_loss_args *args, void *stream) {
    static const ck::Kernel kernels[] = {CK_LOSS_ENTRY(tiles, f16), CK_LOSS_ENTRY(tiles, bf16)};
    if (const int status = status_of(*args)) return status;
    if (args->splits < 1 || args->splits > ck::divide_up(args->vocabulary, kTileColumns)) return CK_BAD_SHAPE;
    const dim3 grid(static_cast<unsigned>(ck::divide_up(args->total, kTileRows)), args->splits);
    return ck::launch(kernels[args->dtype == CK_BF16], grid, dim3(kTileThreads), *args, stream, shared_bytes(*args));
}

int ck_loss_combine(const ck_loss_args *args, void *stream) {
    if (const int status = ck::loss_status(*args)) return status;
    if (args->splits < 1) return CK_BAD_SHAPE;
    const ck::Kernel kernel = {"ck_loss_combine_kernel", reinterpret_cast<const void *>(ck_loss_combine_kernel)};
    const dim3 grid(static_cast<unsigned>(ck::divide_up(args->total, 256)));
    return ck::launch(kernel, grid, dim3(256), *args, stream);
}

int ck_loss_slice(const ck_loss_args *args, void *stream) {
    static const ck::Kernel kernels[] = {CK_LOSS_ENTRY(slice, f16), CK_LOSS_ENTRY(slice, bf16)};
    if (const int status = status_of(*args)) return status;
    const int64_t row_tiles = ck::divide_up(args->rows, kTileRows);
    if (args->rows < 1 || row_tiles > 65535 || args->columns < 1 || args->stride % 8 || args->stride < args->columns ||
        reinterpret_cast<uintptr_t>(args->logits) % 16)
        return CK_BAD_SHAPE;
    const dim3 grid(static_cast<unsigned>(ck::divide_up(args->columns, kTileColumns)), static_cast<unsigned>(row_tiles));
    return ck::launch(kernels[args->dtype == CK_BF16], grid, dim3(kTileThreads), *args, stream, shared_bytes(*args));
}
