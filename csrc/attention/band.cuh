// Sequences of any length: a CTA owns a tile of consecutive tokens, and the tokens that these see, its band, are streamed
// past them a block at a time.
//
// Seeing is mutual, so a band serves queries that stream keys and keys that stream queries alike. Tokens are counted from
// the beginning of the batch: tiles and blocks do not care where sequences begin.
#pragma once

#include "run.cuh"
#include "tile.cuh"

namespace ck {

constexpr int kFar = 0x7fffffff;

// The last of sequences first .. last that begins at or before `token`.
__device__ __forceinline__ int sequence_of(const int32_t *cu_seqlens, int first, int last, int token) {
    while (first < last) {
        const int middle = first + (last - first + 1) / 2;
        if (cu_seqlens[middle] <= token)
            first = middle;
        else
            last = middle - 1;
    }
    return first;
}

// What a token sees is [low, high), nothing where it belongs to no sequence; `start` is where its sequence begins.
struct Sight {
    int start, low, high;

    __device__ __forceinline__ static Sight of(int token, int start, int end, int window) {
        const int reach = window < 0 ? kFar : window;
        return {start, token - min(token - start, reach), token + 1 + min(end - token - 1, reach)};
    }
    __device__ __forceinline__ static Sight none(int start) { return {start, kFar, 0}; }
    __device__ __forceinline__ bool sees(int token) const { return token >= low && token < high; }
};

// In shared memory, since registers are scarce.
struct Band {
    int head, tile;   // what the CTA attends to: a head, tokens from here on
    int first, last;  // sequences of the tile
    int begin, end;   // tokens of the tile that belong to sequences
    int low, high;    // tokens that these see

    Band() = default;
    // Called by whole warps.
    __device__ __forceinline__ Band(const ck_attention_args &a, int cta, int rows) {
        head = cta % a.heads, tile = cta / a.heads * rows;
        begin = max(tile, a.cu_seqlens[0]);
        end = static_cast<int>(min(static_cast<int64_t>(min(tile + rows, a.cu_seqlens[a.sequences])), a.tokens));
        first = last = 0, low = high = 0;
        if (is_empty()) return;
        first = first_at_least(a.cu_seqlens, a.sequences + 1, begin + 1) - 1;
        last = first_at_least(a.cu_seqlens, a.sequences + 1, end) - 1;
        low = sight(a, begin).low, high = sight(a, end - 1).high;
    }

    __device__ __forceinline__ bool is_empty() const { return begin >= end; }
    __device__ __forceinline__ bool holds(int token) const { return token >= begin && token < end; }

    // `shown`, where it is not null, are the tokens that are seen, and so see, at all.
    __device__ __forceinline__ Sight sight(const ck_attention_args &a, int token, const uint8_t *shown = nullptr) const {
        if (!holds(token)) return Sight::none(token);
        const int sequence = sequence_of(a.cu_seqlens, first, last, token), start = a.cu_seqlens[sequence];
        if (shown && !shown[token]) return Sight::none(start);
        return Sight::of(token, start, a.cu_seqlens[sequence + 1], a.window);
    }
};

// To shared memory, by the whole CTA.
__device__ __forceinline__ void find_band(const ck_attention_args &a, int cta, int rows, Band &band) {
    const Band found(a, cta, rows);
    if (threadIdx.x == 0) band = found;
    __syncthreads();
}

// What a warp's rows see together, any of them and all of them: the blocks to skip, and those to take whole.
struct Reach {
    int low, high, all_low, all_high;

    __device__ __forceinline__ bool touches(int block, int count) const { return block < high && block + count > low; }
    __device__ __forceinline__ bool covers(int block, int count) const {
        return block >= all_low && block + count <= all_high;
    }
};

// Of the ROWS tokens of this warp. `shown`: as for Band::sight.
template <int ROWS>
__device__ __forceinline__ Reach reach_of(const ck_attention_args &a, const Band &band, const uint8_t *shown) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Sight sight = band.sight(a, band.tile + ROWS * warp + lane % ROWS, shown);
    Reach found = {sight.low, sight.high, sight.low, sight.high};
#pragma unroll
    for (int i = 1; i < ROWS; i *= 2) {
        found.low = min(found.low, __shfl_xor_sync(0xffffffffu, found.low, i));
        found.high = max(found.high, __shfl_xor_sync(0xffffffffu, found.high, i));
        found.all_low = max(found.all_low, __shfl_xor_sync(0xffffffffu, found.all_low, i));
        found.all_high = min(found.all_high, __shfl_xor_sync(0xffffffffu, found.all_high, i));
    }
    return found;
}

// Of the 16 tokens of each warp, which alone reads it.
__device__ __forceinline__ void find_reach(const ck_attention_args &a, const Band &band, const uint8_t *shown,
                                           Reach *reach) {
    const Reach found = reach_of<16>(a, band, shown);
    if (threadIdx.x % 32 == 0) reach[threadIdx.x / 32] = found;
    __syncwarp();
}

// Tokens `first` .. first + ROWS - 1 of a matrix to a tile, zeros for those outside [low, high). A thread copies pieces of
// columns c and c + D / 2, which rotate_tokens, called by the same threads, needs together; from one of its rows to the
// next only addresses move on.
template <typename T, int D, int ROWS, int THREADS>
__device__ __forceinline__ void copy_tokens(uint4 *tile, const T *matrix, int64_t step, int first, int low, int high) {
    constexpr int kPairs = D / 16, kPass = THREADS / kPairs;  // kPass: rows at a time
    static_assert(kPass % 8 == 0);                            // so that all of a thread's are permuted alike
    const int thread = fresh_thread(), row = thread / kPairs, piece = thread % kPairs;
    const int place = Tile<D>::place(row, piece);
    int token = first + row;
    const T *from = matrix + token * step + 8 * piece;
#pragma unroll
    for (int i = 0; i < ROWS; i += kPass, token += kPass, from += kPass * step) {
        if (ROWS % kPass && i + row >= ROWS) break;
        const bool valid = token >= low && token < high;
        const T *const piece_from = valid ? from : matrix;
        copy_async(tile + place + i * (D / 8), piece_from, valid);
        copy_async(tile + (place ^ kPairs) + i * (D / 8), piece_from + D / 2, valid);
    }
}

// The rotation of what this thread has copied, and waited for.
template <typename T, int D, int ROWS, int THREADS>
__device__ __forceinline__ void rotate_tokens(const ck_attention_args &a, const Band &band, uint4 *tile, int first,
                                              int low, int high) {
    constexpr int kPairs = D / 16;
#pragma unroll 1
    for (int i = fresh_thread(); i < ROWS * kPairs; i += THREADS) {
        const int row = i / kPairs, piece = i % kPairs, token = first + row;
        if (token < low || token >= high) continue;
        const int start = a.cu_seqlens[sequence_of(a.cu_seqlens, band.first, band.last, token)];
        uint4 &lower = tile[Tile<D>::place(row, piece)], &upper = tile[Tile<D>::place(row, piece + kPairs)];
        uint4 x = lower, y = upper;
        rotate<T>(x, y, a, static_cast<int64_t>(token - start) * (D / 2) + 8 * piece);
        lower = x, upper = y;
    }
}

}  // namespace ck
