// Attention of sequences of any length: keys and values are streamed past a CTA's 128 queries in blocks, and softmax
// keeps a running maximum (Milakov and Gimelshein 2018; Dao et al. 2022).
//
// A warp owns 32 queries, so that what it loads of keys and values from shared memory serves two products each: with
// 16, loading takes longer than multiplying. Of wide heads registers hold no more than 16.
#pragma once

#include "band.cuh"
#include "dropout.cuh"
#include "rows.cuh"

namespace ck {

template <int D>
struct LongForward {
    static constexpr int kTall = D > 64 ? 1 : 2;  // a warp's tiles of 16 queries
    static constexpr int kRows = 128, kWarps = kRows / (16 * kTall), kThreads = 32 * kWarps, kKeys = 64;
    static constexpr int kResident = kTall;  // CTAs of a multiprocessor: eight warps, by their registers
    // Nothing else, so that two CTAs of 64 columns fit sm_75
    struct Memory {
        uint4 key[2][kKeys * D / 8], value[2][kKeys * D / 8];
    };
};

// Key tokens of a block that the key mask shows, 32 a word.
template <int KEYS>
__device__ __forceinline__ void shown_keys(const ck_attention_args &a, int block, int high, uint32_t (&shown)[(KEYS + 31) / 32]) {
#pragma unroll
    for (int w = 0; w < (KEYS + 31) / 32; ++w) {
        const int token = block + 32 * w + threadIdx.x % 32;
        shown[w] = a.key_mask ? __ballot_sync(0xffffffffu, token < high && a.key_mask[token]) : 0xffffffffu;
    }
}

// Bits of a word of 32 keys, those beginning at `key`, that a query sees.
__device__ __forceinline__ uint32_t seen_keys(const Sight &sight, int key) {
    return sight.low >= sight.high ? 0 : bits_below(sight.high - key) & ~bits_below(sight.low - key);
}

template <typename T, int D>
__device__ __forceinline__ void long_forward(const ck_attention_args &a) {
    using L = LongForward<D>;
    constexpr int kKeys = L::kKeys, kTiles = kKeys / 8, kSteps = D / 16, kTall = L::kTall, kWords = kKeys / 32;
    extern __shared__ __align__(kTileAlignment) uint4 dynamic_memory[];
    auto &memory = *reinterpret_cast<typename L::Memory *>(dynamic_memory);
    const Band band(a, blockIdx.x, L::kRows);
    const Reach reach = reach_of<16 * kTall>(a, band, nullptr);
    const int64_t width = static_cast<int64_t>(a.heads) * D, step = 3 * width;
    const auto copy_block = [&](int block, int buffer) {
        const T *const keys = static_cast<const T *>(a.qkv) + width + band.head * D;
        copy_tokens<T, D, kKeys, L::kThreads>(memory.key[buffer], keys, step, block, band.low, band.high);
        copy_tokens<T, D, kKeys, L::kThreads>(memory.value[buffer], keys + width, step, block, band.low, band.high);
        commit_copies();
    };
    int block = band.low & ~(kKeys - 1);
    if (block < band.high) copy_block(block, 0);

    uint32_t fragments[kTall][kSteps][4];
    const int first = band.tile + threadIdx.x / 32 * 16 * kTall;  // the warp's queries
#pragma unroll
    for (int m = 0; m < kTall; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = first + 16 * m + threadIdx.x % 32 / 4 + 8 * h;
            uint4 pieces[D / 32];
            load_row<T, D>(static_cast<const T *>(a.qkv) + row * step + band.head * D, band.holds(row), pieces);
            if (a.cos && !band.is_empty()) rotate_row<T, D>(a, row - band.sight(a, row).start, pieces);
            to_fragments<D>(pieces, h, fragments[m]);
        }
    // Lower than any score, but a number: of a query that has seen no key, probabilities are 0
    constexpr float kLowest = -3e38f;
    const float factor = a.scale * kLog2E, infinity = __int_as_float(0x7f800000);
    float highest[kTall][2], sum[kTall][2] = {}, out[kTall][D / 8][4] = {};
#pragma unroll
    for (int m = 0; m < kTall; ++m) highest[m][0] = highest[m][1] = kLowest;
#pragma unroll 1
    for (int buffer = 0; block < band.high; block += kKeys, buffer ^= 1) {
        wait_copies<0>();
        if (a.cos) rotate_tokens<T, D, kKeys, L::kThreads>(a, band, memory.key[buffer], block, band.low, band.high);
        __syncthreads();  // this block has come, and the one before is done with
        if (block + kKeys < band.high) copy_block(block + kKeys, buffer ^ 1);
        const int lane = fresh_lane(), g = lane / 4, t = lane % 4;
        if (!reach.touches(block, kKeys)) continue;

        // Before the products, which need the registers: the lanes of a query, one or two, draw for the block's keys
        uint32_t kept[kTall] = {};
        if (a.drop_threshold) {
#pragma unroll
            for (int w = 0; w < kTall; ++w)
                kept[w] = kept_keys<32>(a, *a.seed, band.head, first + lane * kTall / 2,
                                        block + 32 * (kTall == 2 ? w : lane % 2));
        }
        float score[kTall][kTiles][4] = {};
        const uint32_t keys = Tile<D>::across(lane, memory.key[buffer]);
#pragma unroll
        for (int j = 0; j < kTiles; j += 2)
#pragma unroll
            for (int s = 0; s < kSteps; ++s) {
                uint32_t b[4];
                load_matrices(b, Tile<D>::at(keys, 8 * j, 2 * s));
#pragma unroll
                for (int m = 0; m < kTall; ++m) {
                    mma<T>(score[m][j], fragments[m][s], b[0], b[1]);
                    mma<T>(score[m][j + 1], fragments[m][s], b[2], b[3]);
                }
            }
#pragma unroll
        for (int m = 0; m < kTall; ++m)
#pragma unroll
            for (int j = 0; j < kTiles; ++j)
#pragma unroll
                for (int c = 0; c < 4; ++c) score[m][j][c] *= factor;
        if (a.key_mask || !reach.covers(block, kKeys)) {
            uint32_t shown[kWords];
            shown_keys<kKeys>(a, block, band.high, shown);
#pragma unroll
            for (int m = 0; m < kTall; ++m)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const Sight sight = band.sight(a, first + 16 * m + g + 8 * h);
#pragma unroll
                    for (int w = 0; w < kWords; ++w) {
                        const uint32_t seen = (seen_keys(sight, block + 32 * w) & shown[w]) >> (2 * t);
#pragma unroll
                        for (int i = 0; i < 8; ++i) {
                            float &x = score[m][4 * w + i / 2][2 * h + i % 2];
                            x = seen >> (8 * (i / 2) + i % 2) & 1 ? x : -infinity;
                        }
                    }
                }
        }
#pragma unroll
        for (int m = 0; m < kTall; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float higher = highest[m][h];
#pragma unroll
                for (int j = 0; j < kTiles; ++j)
                    higher = fmaxf(higher, fmaxf(score[m][j][2 * h], score[m][j][2 * h + 1]));
                higher = quad_max(higher);
                const float correction = fast_exp2(highest[m][h] - higher);
                highest[m][h] = higher, sum[m][h] *= correction;
#pragma unroll
                for (int j = 0; j < kTiles; ++j)
#pragma unroll
                    for (int c = 2 * h; c < 2 * h + 2; ++c)
                        sum[m][h] += score[m][j][c] = fast_exp2(score[m][j][c] - higher);
#pragma unroll
                for (int d = 0; d < D / 8; ++d) out[m][d][2 * h] *= correction, out[m][d][2 * h + 1] *= correction;
            }
        if (a.drop_threshold) {
#pragma unroll
            for (int m = 0; m < kTall; ++m)
#pragma unroll
                for (int h = 0; h < 2; ++h)
#pragma unroll
                    for (int w = 0; w < kWords; ++w) {
                        const int row = 16 * m + g + 8 * h, drawn_by = kTall == 2 ? row : 2 * row + w;
                        const uint32_t word = __shfl_sync(0xffffffffu, kept[kTall == 2 ? w : 0], drawn_by);
                        const uint32_t bits = word >> (2 * t);
#pragma unroll
                        for (int i = 0; i < 8; ++i) {
                            float &x = score[m][4 * w + i / 2][2 * h + i % 2];
                            x = bits >> (8 * (i / 2) + i % 2) & 1 ? x : 0.0f;
                        }
                    }
        }
        const uint32_t values = Tile<D>::along(lane, memory.value[buffer]);
#pragma unroll
        for (int j = 0; j < kTiles; j += 2) {
            uint32_t p[kTall][4];
#pragma unroll
            for (int m = 0; m < kTall; ++m)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    p[m][i] = pack2<T>(score[m][j + i / 2][i % 2 * 2], score[m][j + i / 2][i % 2 * 2 + 1]);
#pragma unroll
            for (int d = 0; d < D / 8; d += 2) {
                uint32_t b[4];
                load_matrices_transposed(b, Tile<D>::at(values, 8 * j, d));
#pragma unroll
                for (int m = 0; m < kTall; ++m) {
                    mma<T>(out[m][d], p[m], b[0], b[1]);
                    mma<T>(out[m][d + 1], p[m], b[2], b[3]);
                }
            }
        }
    }
#pragma unroll
    for (int m = 0; m < kTall; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int lane = fresh_lane(), row = first + 16 * m + lane / 4 + 8 * h;
            const bool valid = row < a.tokens;
            const float total = quad_sum(sum[m][h]), inverse = total == 0.0f ? 0.0f : a.keep_scale / total;
            if (lane % 4 == 0 && valid)
                a.lse[band.head * a.tokens + row] = total == 0.0f ? 0.0f : (highest[m][h] + log2f(total)) * kLn2;
            T *const to = static_cast<T *>(a.out) + (static_cast<int64_t>(row) * a.heads + band.head) * D;
            store_row<T, D>(out[m], h, inverse, to, valid);
        }
}

}  // namespace ck
