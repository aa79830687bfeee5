// A matrix of 16-bit rows in shared memory, D columns, in pieces of 16 bytes that are permuted within a row: eight rows'
// pieces of one column lie in different banks, and so do, for two rows, those of half a row.
#pragma once

#include "../common/mma.cuh"
#include "../common/vector.cuh"

namespace ck {

// threadIdx.x, asked for anew: what follows from it is then not kept in registers from one use to the next.
__device__ __forceinline__ int fresh_thread() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}

// threadIdx.x % 32, from another register than threadIdx.x, so that not even the assembler keeps the one for the other.
__device__ __forceinline__ int fresh_lane() {
    uint32_t below;
    asm volatile("mov.u32 %0, %%lanemask_lt;" : "=r"(below));
    return __popc(below);
}

template <int D>
struct Tile {
    static constexpr int kPieces = D / 8;

    static __host__ __device__ constexpr uint32_t bytes(int rows) { return rows * D * 2; }
    static __device__ __forceinline__ int place(int row, int piece) { return row * kPieces + (piece ^ turn(row)); }
    // The same of row + lane_row and piece + lane_piece, where `row` is a multiple of eight and `piece` even: what the lane
    // adds stands apart, so that it is worked out once for all rows and pieces.
    static __device__ __forceinline__ int place(int row, int lane_row, int piece, int lane_piece) {
        return row * kPieces + (place(lane_row, lane_piece) ^ piece);
    }

    // Fragments of 16 x 16 elements from row and piece (a column / 8), as above. As a matrix's rows [m][k]:
    static __device__ __forceinline__ void rows(int lane, uint32_t (&a)[4], const uint4 *tile, int row, int piece) {
        load_matrices(a, address(tile, row, lane % 16, piece, lane / 16));
    }
    // transposed, from [k][m]:
    static __device__ __forceinline__ void rows_transposed(int lane, uint32_t (&a)[4], const uint4 *tile, int row, int piece) {
        load_matrices_transposed(a, address(tile, row, lane % 8 + lane / 16 * 8, piece, lane / 8 % 2));
    }
    // As a second factor's columns, two fragments b[0], b[1] and b[2], b[3] of eight columns each, from [n][k]:
    static __device__ __forceinline__ void columns(int lane, uint32_t (&b)[4], const uint4 *tile, int row, int piece) {
        load_matrices(b, address(tile, row, lane % 8 + lane / 16 * 8, piece, lane / 8 % 2));
    }
    // and from [k][n]:
    static __device__ __forceinline__ void columns_transposed(int lane, uint32_t (&b)[4], const uint4 *tile, int row, int piece) {
        load_matrices_transposed(b, address(tile, row, lane % 16, piece, lane / 16));
    }

   private:
    static __device__ __forceinline__ int turn(int row) {
        static_assert(kPieces >= 4);
        return kPieces >= 8 ? (row & 1) << 2 | (row & 2) | (row & 4) >> 2 : (row & 2) | (row & 4) >> 2;
    }
    static __device__ __forceinline__ uint32_t address(const uint4 *tile, int row, int lane_row, int piece, int lane_piece) {
        return shared_address(tile) + 16 * place(row, lane_row, piece, lane_piece);
    }
};

template <typename T>
__device__ __forceinline__ void unpack(uint4 v, float (&out)[8]) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 pair = unpack2<T>(words[i]);
        out[2 * i] = pair.x, out[2 * i + 1] = pair.y;
    }
}

template <typename T>
__device__ __forceinline__ uint4 pack(const float (&in)[8]) {
    return make_uint4(pack2<T>(in[0], in[1]), pack2<T>(in[2], in[3]), pack2<T>(in[4], in[5]), pack2<T>(in[6], in[7]));
}

// Rotate-half: pieces of columns c and c + D / 2 by the angles at `table`, an offset into cos and sin.
template <typename T>
__device__ __forceinline__ void rotate(uint4 &low, uint4 &high, const ck_attention_args &a, int64_t table) {
    float x[8], y[8], cosine[8], sine[8];
    load(a.cos + table, cosine);
    load(a.sin + table, sine);
    unpack<T>(low, x);
    unpack<T>(high, y);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float rotated = x[i] * cosine[i] - y[i] * sine[i];
        y[i] = y[i] * cosine[i] + x[i] * sine[i];
        x[i] = rotated;
    }
    low = pack<T>(x), high = pack<T>(y);
}

// 16 rows, from `row`, of one tile times the rows of another.
template <typename T, int D, int TILES>
__device__ __forceinline__ void product(int lane, int row, float (&sums)[TILES][4], const uint4 *rows,
                                        const uint4 *slice) {
#pragma unroll
    for (int j = 0; j < TILES; ++j)
#pragma unroll
        for (int c = 0; c < 4; ++c) sums[j][c] = 0.0f;
#pragma unroll
    for (int s = 0; s < D / 16; ++s) {
        uint32_t a[4], b[4];
        Tile<D>::rows(lane, a, rows, row, 2 * s);
#pragma unroll
        for (int j = 0; j < TILES; j += 2) {
            Tile<D>::columns(lane, b, slice, 8 * j, 2 * s);
            mma<T>(sums[j], a, b[0], b[1]);
            mma<T>(sums[j + 1], a, b[2], b[3]);
        }
    }
}

}  // namespace ck
