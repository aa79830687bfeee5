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

constexpr int kTileAlignment = 256;  // of shared memory that begins with tiles: the bytes of the longest row

template <int D>
struct Tile {
    static constexpr int kPieces = D / 8;

    static __device__ __forceinline__ int place(int row, int piece) {
        static_assert(kPieces >= 4);
        return row * kPieces + (piece ^ turn(row));
    }

    // Fragments of 16 x 16 elements. Of four matrices of 8 x 8 a lane gives the address of row l % 8 of matrix l / 8:
    // `along` for matrices one below the other and then beside, `across` the other way round.
    //   first factor, its rows [m][k]: load_matrices along; from [k][m]: transposed across
    //   second factor, two fragments of eight columns, from [n][k]: load_matrices across; from [k][n]: transposed along
    // Kept as one register for each tile and kind; `at` costs an exclusive or and an addition.
    static __device__ __forceinline__ uint32_t along(int lane, const uint4 *tile) {
        return start(tile, lane % 16, lane / 16);
    }
    static __device__ __forceinline__ uint32_t across(int lane, const uint4 *tile) {
        return start(tile, lane % 8 + lane / 16 * 8, lane / 8 % 2);
    }
    // The fragment at a row that is a multiple of 8 and an even piece (a column / 8).
    static __device__ __forceinline__ uint32_t at(uint32_t start, int row, int piece) {
        return (start ^ piece << 4) + row * (2 * D);
    }

  private:
    static __device__ __forceinline__ int turn(int row) {
        return kPieces >= 8 ? (row & 1) << 2 | (row & 2) | (row & 4) >> 2 : (row & 2) | (row & 4) >> 2;
    }
    static __device__ __forceinline__ uint32_t start(const uint4 *tile, int row, int piece) {
        // a tile begins at a multiple of its rows' bytes, so that pieces are bits of the address by themselves
        uint32_t address = shared_address(tile) + 16 * place(row, piece);
        asm volatile("" : "+r"(address));  // not to be computed again for each use
        return address;
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
    const uint32_t first = Tile<D>::along(lane, rows) + row * (2 * D), second = Tile<D>::across(lane, slice);
#pragma unroll
    for (int s = 0; s < D / 16; ++s) {
        uint32_t a[4], b[4];
        load_matrices(a, Tile<D>::at(first, 0, 2 * s));
#pragma unroll
        for (int j = 0; j < TILES; j += 2) {
            load_matrices(b, Tile<D>::at(second, 8 * j, 2 * s));
            mma<T>(sums[j], a, b[0], b[1]);
            mma<T>(sums[j + 1], a, b[2], b[3]);
        }
    }
}

}  // namespace ck
