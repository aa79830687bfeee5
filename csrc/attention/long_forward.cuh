// Attention of sequences of any length: each warp owns 16 queries, keys and values are streamed past eight warps in
// blocks, and softmax keeps a running maximum (Milakov and Gimelshein 2018; Dao et al. 2022).
#pragma once

#include "band.cuh"
#include "dropout.cuh"
#include "rows.cuh"

namespace ck {

template <int D>
struct LongForward {
    static constexpr int kWarps = 8, kThreads = 32 * kWarps, kRows = 16 * kWarps, kKeys = D > 64 ? 32 : 64;
#if __CUDA_ARCH__ == 750
    static constexpr int kResident = D > 32 ? 1 : 2;  // CTAs of a multiprocessor that shared memory has room for
#else
    static constexpr int kResident = D > 64 ? 1 : 2;
#endif
    struct Memory {
        uint4 key[2][kKeys * D / 8], value[2][kKeys * D / 8];
        Reach reach[kWarps];
        Band band;
    };
};

// Key tokens of a block that the key mask shows, 32 a word.
template <int KEYS>
__device__ __forceinline__ void shown_keys(const ck_attention_args &a, int block, int high, uint32_t (&shown)[KEYS / 32]) {
#pragma unroll
    for (int w = 0; w < KEYS / 32; ++w) {
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
    constexpr int kKeys = L::kKeys, kTiles = kKeys / 8, kSteps = D / 16;
    extern __shared__ __align__(kTileAlignment) uint4 dynamic_memory[];
    auto &memory = *reinterpret_cast<typename L::Memory *>(dynamic_memory);
    const Band &band = memory.band;
    find_band(a, L::kRows, memory.band);
    find_reach(a, band, nullptr, memory.reach);
    const int64_t width = static_cast<int64_t>(a.heads) * D, step = 3 * width;
    const auto copy_block = [&](int block, int buffer) {
        const T *const keys = static_cast<const T *>(a.qkv) + width + band.head * D;
        copy_tokens<T, D, kKeys, L::kThreads>(memory.key[buffer], keys, step, block, band.low, band.high);
        copy_tokens<T, D, kKeys, L::kThreads>(memory.value[buffer], keys + width, step, block, band.low, band.high);
        commit_copies();
    };
    int block = band.low & ~(kKeys - 1);
    if (block < band.high) copy_block(block, 0);

    uint32_t fragments[kSteps][4];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int row = band.tile + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + 8 * h;
        uint4 pieces[D / 32];
        load_row<T, D>(static_cast<const T *>(a.qkv) + row * step + band.head * D, band.holds(row), pieces);
        if (a.cos && !band.is_empty()) rotate_row<T, D>(a, row - band.sight(a, row).start, pieces);
        to_fragments<D>(pieces, h, fragments);
    }
    const float factor = a.scale * kLog2E, infinity = __int_as_float(0x7f800000);
    float highest[2] = {-infinity, -infinity}, sum[2] = {}, out[D / 8][4] = {};
#pragma unroll 1
    for (int buffer = 0; block < band.high; block += kKeys, buffer ^= 1) {
        wait_copies<0>();
        if (a.cos) rotate_tokens<T, D, kKeys, L::kThreads>(a, band, memory.key[buffer], block, band.low, band.high);
        __syncthreads();  // this block has come, and the one before is done with
        if (block + kKeys < band.high) copy_block(block + kKeys, buffer ^ 1);
        const int warp = fresh_thread() / 32, lane = fresh_lane(), g = lane / 4, t = lane % 4;
        if (!memory.reach[warp].touches(block, kKeys)) continue;

        // Before the products, which need the registers, a lane draws for row lane / 2 of the warp's, half of the
        // block's keys; quads ask for theirs
        constexpr int kDrawn = kKeys / 2;
        uint32_t kept = 0;
        if (a.drop_threshold)
            kept = kept_keys<kDrawn>(a, *a.seed, band.head, band.tile + 16 * warp + lane / 2, block + lane % 2 * kDrawn);
        float score[kTiles][4] = {};
        const uint32_t keys = Tile<D>::across(lane, memory.key[buffer]);
#pragma unroll
        for (int j = 0; j < kTiles; j += 2)
#pragma unroll
            for (int s = 0; s < kSteps; ++s) {
                uint32_t b[4];
                load_matrices(b, Tile<D>::at(keys, 8 * j, 2 * s));
                mma<T>(score[j], fragments[s], b[0], b[1]);
                mma<T>(score[j + 1], fragments[s], b[2], b[3]);
            }
#pragma unroll
        for (int j = 0; j < kTiles; ++j)
#pragma unroll
            for (int c = 0; c < 4; ++c) score[j][c] *= factor;
        if (a.key_mask || !memory.reach[warp].covers(block, kKeys)) {
            uint32_t shown[kKeys / 32];
            shown_keys<kKeys>(a, block, band.high, shown);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const Sight sight = band.sight(a, band.tile + 16 * warp + g + 8 * h);
#pragma unroll
                for (int w = 0; w < kKeys / 32; ++w) {
                    const uint32_t seen = (seen_keys(sight, block + 32 * w) & shown[w]) >> (2 * t);
#pragma unroll
                    for (int i = 0; i < 8; ++i) {
                        float &x = score[4 * w + i / 2][2 * h + i % 2];
                        x = seen >> (8 * (i / 2) + i % 2) & 1 ? x : -infinity;
                    }
                }
            }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float higher = highest[h];
#pragma unroll
            for (int j = 0; j < kTiles; ++j) higher = fmaxf(higher, fmaxf(score[j][2 * h], score[j][2 * h + 1]));
            higher = quad_max(higher);
            const float base = higher == -infinity ? 0.0f : higher;  // it has seen no key: its probabilities are 0
            const float correction = fast_exp2(highest[h] - base);
            highest[h] = higher, sum[h] *= correction;
#pragma unroll
            for (int j = 0; j < kTiles; ++j)
#pragma unroll
                for (int c = 2 * h; c < 2 * h + 2; ++c) sum[h] += score[j][c] = fast_exp2(score[j][c] - base);
#pragma unroll
            for (int d = 0; d < D / 8; ++d) out[d][2 * h] *= correction, out[d][2 * h + 1] *= correction;
        }
        if (a.drop_threshold) {
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const uint32_t bits = __shfl_sync(0xffffffffu, kept, 2 * (g + 8 * h) + half) >> (2 * t);
#pragma unroll
                    for (int i = 0; i < kTiles; ++i) {
                        float &x = score[kTiles / 2 * half + i / 2][2 * h + i % 2];
                        x = bits >> (8 * (i / 2) + i % 2) & 1 ? x : 0.0f;
                    }
                }
        }
        const uint32_t values = Tile<D>::along(lane, memory.value[buffer]);
#pragma unroll
        for (int j = 0; j < kTiles; j += 2) {
            const uint32_t p[4] = {pack2<T>(score[j][0], score[j][1]), pack2<T>(score[j][2], score[j][3]),
                                   pack2<T>(score[j + 1][0], score[j + 1][1]),
                                   pack2<T>(score[j + 1][2], score[j + 1][3])};
#pragma unroll
            for (int d = 0; d < D / 8; d += 2) {
                uint32_t b[4];
                load_matrices_transposed(b, Tile<D>::at(values, 8 * j, d));
                mma<T>(out[d], p, b[0], b[1]);
                mma<T>(out[d + 1], p, b[2], b[3]);
            }
        }
    }
    const int lane = fresh_lane(), first = band.tile + fresh_thread() / 32 * 16 + lane / 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int row = first + 8 * h;
        const bool valid = row < a.tokens;
        const float total = quad_sum(sum[h]), inverse = total == 0.0f ? 0.0f : a.keep_scale / total;
        if (lane % 4 == 0 && valid)
            a.lse[band.head * a.tokens + row] = total == 0.0f ? 0.0f : (highest[h] + log2f(total)) * kLn2;
        store_row<T, D>(out, h, inverse, static_cast<T *>(a.out) + (static_cast<int64_t>(row) * a.heads + band.head) * D, valid);
    }
}

}  // namespace ck
