// The loss without logits in memory: hidden times decoder, tile by tile, ends in registers.
//
// Forward (ck_loss_tiles): a CTA owns 128 rows and every splits-th tile of the vocabulary, and keeps each row's running
// maximum and sums; ck_loss_combine joins the splits in their order. Backward (ck_loss_slice): the tile again, made into
// its gradient and written as a slice of the vocabulary, [rows, columns] of a bounded buffer, which two GEMMs consume.
// No atomics: the same bits every time.
#include "../common/launch.h"
#include "product.cuh"

namespace {

using ck::kTile, ck::kTileThreads, ck::RowSums, ck::TilePlace;

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
    RowSums *halves = reinterpret_cast<RowSums *>(ring);  // [2][kTile], at the end: two CTAs then fit sm_86's memory
    const TilePlace at;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * kTile;
    RowSums sums[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] = {ck::kMinusInfinity, 0.0f, 0.0f};
    for (int column = blockIdx.y * kTile; column < a.vocabulary; column += a.splits * kTile) {
        ck::TileValues d;
        ck::product<T>(a, first, column, ring, at, d);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int64_t row = first + at.row(i / 2, i % 2);
            float x[16];
            ck::tile_row<T>(a, d, i / 2, i % 2, column, at, x);
            sums[i] = joined(sums[i], sums_of(x, a.smoothing > 0.0f));
            if (row >= a.total) continue;
            const int target = ck::target_in_tile(ck::label_of(a, row), column, at);
#pragma unroll
            for (int c = 0; c < 16; ++c)
                if (c == target) a.targets[row] = x[c];
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const RowSums all = over_quad(sums[i]);
        if (at.lane % 4 == 0) halves[at.warp_column / 64 * kTile + at.row(i / 2, i % 2)] = all;
    }
    __syncthreads();
    const int64_t row = first + threadIdx.x;
    if (threadIdx.x >= kTile || row >= a.total) return;
    const RowSums all = joined(halves[threadIdx.x], halves[kTile + threadIdx.x]);
    float *out = a.partials + static_cast<int64_t>(blockIdx.y) * 3 * a.total + row;
    out[0] = all.maximum, out[a.total] = all.exponentials, out[2 * a.total] = all.logits;
}

template <typename T>
__device__ __forceinline__ void loss_slice(const ck_loss_args &a) {
    constexpr int kPitch = kTile + 8;  // numbers: rows start in different banks
    extern __shared__ __align__(16) char ring[];
    const TilePlace at;
    const int64_t first = a.first + static_cast<int64_t>(blockIdx.y) * kTile;
    const int64_t end = a.first + a.rows;
    const int column = a.first_column + blockIdx.x * kTile;
    ck::TileValues d;
    ck::product<T>(a, first, column, ring, at, d);
    T *staged = reinterpret_cast<T *>(ring);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int64_t row = first + at.row(i / 2, i % 2);
        float x[16] = {};
        if (row < end && a.labels[row] != a.ignore_index) {
            const float lse = a.lse[row];
            ck::tile_row<T>(a, d, i / 2, i % 2, column, at, x);
            ck::Gradient(a, lse, lse, 1.0f).apply(a, ck::target_in_tile(ck::label_of(a, row), column, at), x);
        }
#pragma unroll
        for (int n = 0; n < 8; ++n)
            *reinterpret_cast<uint32_t *>(staged + at.row(i / 2, i % 2) * kPitch + at.column(n)) =
                ck::pack2<T>(x[2 * n], x[2 * n + 1]);
    }
    __syncthreads();
    // whole pieces of 16 bytes: of the last one, columns beyond the vocabulary are padding of the buffer
    const int64_t columns = min(kTile, a.columns - static_cast<int>(blockIdx.x) * kTile);
    for (int id = threadIdx.x; id < kTile * kTile / 8; id += kTileThreads) {
        const int row = id / (kTile / 8), piece = id % (kTile / 8) * 8;
        if (first + row >= end || piece >= columns) continue;
        T *out = static_cast<T *>(a.logits) + (first + row - a.first) * a.stride + blockIdx.x * kTile + piece;
        *reinterpret_cast<uint4 *>(out) = *reinterpret_cast<const uint4 *>(staged + row * kPitch + piece);
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

int status_of(const ck_loss_args &a) {
    if (a.dtype != CK_F16 && a.dtype != CK_BF16) return CK_BAD_DTYPE;
    return a.vocabulary < 1 || a.width < 1 || a.total < 1 ? CK_BAD_SHAPE : 0;
}

}  // namespace

int ck_loss_tiles(const ck_loss_args *args, void *stream) {
    static const ck::Kernel kernels[] = {CK_LOSS_ENTRY(tiles, f16), CK_LOSS_ENTRY(tiles, bf16)};
    if (const int status = status_of(*args)) return status;
    if (args->splits < 1 || args->splits > ck::divide_up(args->vocabulary, kTile)) return CK_BAD_SHAPE;
    const dim3 grid(static_cast<unsigned>(ck::divide_up(args->total, kTile)), args->splits);
    return ck::launch(kernels[args->dtype == CK_BF16], grid, dim3(kTileThreads), *args, stream, ck::kProductBytes);
}

int ck_loss_combine(const ck_loss_args *args, void *stream) {
    const ck::Kernel kernel = {"ck_loss_combine_kernel", reinterpret_cast<const void *>(ck_loss_combine_kernel)};
    const dim3 grid(static_cast<unsigned>(ck::divide_up(args->total, 256)));
    return ck::launch(kernel, grid, dim3(256), *args, stream);
}

int ck_loss_slice(const ck_loss_args *args, void *stream) {
    static const ck::Kernel kernels[] = {CK_LOSS_ENTRY(slice, f16), CK_LOSS_ENTRY(slice, bf16)};
    if (const int status = status_of(*args)) return status;
    const int64_t row_tiles = ck::divide_up(args->rows, kTile);
    if (args->rows < 1 || row_tiles > 65535 || args->columns < 1 || args->stride % 8 || args->stride < args->columns ||
        reinterpret_cast<uintptr_t>(args->logits) % 16)
        return CK_BAD_SHAPE;
    const dim3 grid(static_cast<unsigned>(ck::divide_up(args->columns, kTile)), static_cast<unsigned>(row_tiles));
    return ck::launch(kernels[args->dtype == CK_BF16], grid, dim3(kTileThreads), *args, stream, ck::kProductBytes);
}
