// A tile of logits in registers: 256 rows of hidden times 128 rows of the decoder, on tensor cores, summed in fp32.
//
// 16 warps, 8 along the rows and 2 along the vocabulary, 32 x 64 each. Both operands lie with the hidden dimension
// innermost, as mma wants them. Pieces of 32 hidden columns go through a ring of three stages of shared memory (two on
// sm_75, which has less of it and copies that wait); the 16-byte chunks of a row are swizzled so that ldmatrix meets
// every bank once. What is outside is zero.
#pragma once

#include "../common/mma.cuh"
#include "row.cuh"

namespace ck {

constexpr int kTileRows = 256, kTileColumns = 128, kTileThreads = 512;
constexpr int kDepth = 32;  // hidden columns of a stage
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
constexpr int kStages = 3, kCopiesAtOnce = 2;
#else
constexpr int kStages = 2, kCopiesAtOnce = 1;  // they pass through registers
#endif
constexpr int kRowBytes = 2 * kDepth, kStageBytes = (kTileRows + kTileColumns) * kRowBytes;

// Where a thread's part of the tile is: rows row(m, half), columns column(n) and column(n) + 1.
struct TilePlace {
    int warp_row, warp_column, lane;

    __device__ __forceinline__ TilePlace()
        : warp_row(threadIdx.x / 32 / 2 * 32), warp_column(threadIdx.x / 32 % 2 * 64), lane(threadIdx.x % 32) {}
    __device__ __forceinline__ int row(int m, int half) const { return warp_row + 16 * m + 8 * half + lane / 4; }
    __device__ __forceinline__ int column(int n) const { return warp_column + 8 * n + lane % 4 * 2; }
};

using TileValues = float[2][8][4];  // [m][n]: (row half 0, columns 0 and 1), (row half 1, columns 0 and 1)

// Byte offset of a chunk of 8 numbers in a stage's operand
__device__ __forceinline__ int chunk_at(int row, int chunk) { return row * kRowBytes + (chunk ^ (row >> 1 & 3)) * 16; }

// One chunk where rows do not start at multiples of 16 bytes
template <typename T>
__device__ __forceinline__ void copy_elements(uint4 *to, const T *from, int count) {
    uint4 piece = {0, 0, 0, 0};
    const uint16_t *source = reinterpret_cast<const uint16_t *>(from);
    uint32_t words[4] = {};
#pragma unroll
    for (int c = 0; c < 8; ++c)
        if (c < count) words[c / 2] |= static_cast<uint32_t>(source[c]) << 16 * (c % 2);
    piece.x = words[0], piece.y = words[1], piece.z = words[2], piece.w = words[3];
    *to = piece;
}

// COUNT rows from `first` of a matrix [rows, width], hidden columns from `depth`
template <int COUNT, typename T>
__device__ __forceinline__ void copy_operand(char *to, const T *matrix, int64_t first, int64_t rows, int width, int depth,
                                             bool aligned) {
#pragma unroll kCopiesAtOnce
    for (int i = 0; i < COUNT * 4 / kTileThreads; ++i) {
        const int id = i * kTileThreads + threadIdx.x, row = id / 4, chunk = id % 4;
        const int column = depth + 8 * chunk, at = chunk_at(row, chunk);
        const bool inside = first + row < rows && column < width;
        const T *from = inside ? matrix + (first + row) * width + column : matrix;
        if (aligned)
            copy_async(reinterpret_cast<uint4 *>(to + at), from, inside);
        else
            copy_elements(reinterpret_cast<uint4 *>(to + at), from, inside ? width - column : 0);
    }
}

template <typename T>
__device__ __forceinline__ void multiply_stage(const char *stage, const TilePlace &at, TileValues &d) {
    const char *other = stage + kTileRows * kRowBytes;
    const int matrix = at.lane / 8, inner = at.lane % 8;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
        uint32_t a[2][4];
#pragma unroll
        for (int m = 0; m < 2; ++m)
            load_matrices(a[m], shared_address(stage + chunk_at(at.warp_row + 16 * m + matrix % 2 * 8 + inner, 2 * k + matrix / 2)));
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            uint32_t b[4];
            load_matrices(b, shared_address(other + chunk_at(at.warp_column + 16 * pair + matrix / 2 * 8 + inner, 2 * k + matrix % 2)));
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                mma<T>(d[m][2 * pair], a[m], b[0], b[1]);
                mma<T>(d[m][2 * pair + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// d = hidden[row ..] times weight[column ..] transposed. All threads have left the ring when it returns.
template <typename T>
__device__ __forceinline__ void product(const ck_loss_args &a, int64_t row, int column, char *ring, const TilePlace &at,
                                        TileValues &d) {
    const T *hidden = static_cast<const T *>(a.hidden), *weight = static_cast<const T *>(a.weight);
    const uintptr_t bits = reinterpret_cast<uintptr_t>(hidden) | reinterpret_cast<uintptr_t>(weight);
    const bool aligned = a.width % 8 == 0 && bits % 16 == 0;
    const int steps = (a.width + kDepth - 1) / kDepth;
    const auto fetch = [&](int step) {
        char *stage = ring + step % kStages * kStageBytes;
        if (step < steps) {
            copy_operand<kTileRows>(stage, hidden, row, a.total, a.width, step * kDepth, aligned);
            copy_operand<kTileColumns>(stage + kTileRows * kRowBytes, weight, column, a.vocabulary, a.width, step * kDepth,
                                       aligned);
        }
        commit_copies();  // an empty group at the end keeps the count
    };
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
            for (int c = 0; c < 4; ++c) d[m][n][c] = 0.0f;
    for (int step = 0; step < kStages - 1; ++step) fetch(step);
    for (int step = 0; step < steps; ++step) {
        wait_copies<kStages - 2>();
        __syncthreads();  // this stage has arrived for all, and all have left the one that is fetched next
        fetch(step + kStages - 1);
        multiply_stage<T>(ring + step % kStages * kStageBytes, at, d);
    }
    wait_copies<0>();
    __syncthreads();
}

// The thread's 16 logits of one row of the tile: bias and softcap applied, -inf beyond the vocabulary.
template <typename T>
__device__ __forceinline__ void tile_row(const ck_loss_args &a, const TileValues &d, int m, int half, int first_column,
                                         const TilePlace &at, float (&x)[16]) {
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            const int column = first_column + at.column(n) + c;
            float one[1] = {d[m][n][2 * half + c]};
            if (column >= a.vocabulary) {
                one[0] = kMinusInfinity;
            } else {
                if (a.bias) add_bias<T>(a, column, one);
                if (a.softcap > 0.0f) cap(one, a.softcap);
            }
            x[2 * n + c] = one[0];
        }
}

// Where a row's label is among the thread's 16 columns, or -1
__device__ __forceinline__ int target_in_tile(int label, int first_column, const TilePlace &at) {
    const int within = label - first_column - at.warp_column;
    if (label < 0 || within < 0 || within >= 64 || within % 8 / 2 != at.lane % 4) return -1;
    return within / 8 * 2 + within % 2;
}

}  // namespace ck
