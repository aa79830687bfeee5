// The gradient of long_forward.cuh, in two kernels, so that nothing is added in memory:
//
//     P = exp(scale * Q K^T - lse),  delta = rowsum(dO * O),  dS = P * (drop(dO V^T) - delta),
//     long_dq:   dQ = scale * dS K        queries stream keys and values; writes delta, too
//     long_dkv:  dV = drop(P)^T dO,  dK = scale * dS^T Q        keys stream queries and gradients
#pragma once

#include "long_forward.cuh"

namespace ck {

template <int D>
struct LongDq {
    static constexpr int kWarps = 8, kThreads = 32 * kWarps, kRows = 16 * kWarps, kKeys = 32;
#if __CUDA_ARCH__ == 750
    static constexpr int kResident = D > 32 ? 1 : 2;  // CTAs of a multiprocessor that registers have room for
#else
    static constexpr int kResident = D > 64 ? 1 : 2;
#endif
    struct Memory {
        uint4 key[2][kKeys * D / 8], value[2][kKeys * D / 8];
        float lse[kRows], delta[kRows];  // here, as is the rest, since registers are scarce
        Reach reach[kWarps];
        Band band;
    };
};

template <int D>
struct LongDkv {
    static constexpr int kWarps = D > 64 ? 4 : 8, kThreads = 32 * kWarps, kRows = 16 * kWarps;
    static constexpr int kQueries = D > 64 ? 16 : 32;
#if __CUDA_ARCH__ == 750
    static constexpr int kResident = 1;
#else
    static constexpr int kResident = 2;
#endif
    struct Memory {
        uint4 key[kRows * D / 8], value[kRows * D / 8], query[2][kQueries * D / 8], grad[2][kQueries * D / 8];
        float lse[2][kQueries], delta[2][kQueries];
        Reach reach[kWarps];
        Band band;
    };
};

// Gradients of rotated queries (part 0) or keys (1), sums of the warp's 16 rows, rotated back.
template <typename T, int D>
__device__ __forceinline__ void store_rotated_back(const ck_attention_args &a, float (&sums)[D / 8][4],
                                                   const Band &band, int part) {
    const int lane = fresh_lane(), t = lane % 4, first = band.tile + fresh_thread() / 32 * 16 + lane / 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int token = first + 8 * h;
#pragma unroll
        for (int j = 0; j < D / 8; ++j) sums[j][2 * h] *= a.scale, sums[j][2 * h + 1] *= a.scale;
        if (a.cos && band.holds(token)) {
            const int position = token - band.sight(a, token).start;
#pragma unroll
            for (int j = 0; j < D / 16; ++j)
                unrotate(sums[j][2 * h], sums[j][2 * h + 1], sums[j + D / 16][2 * h], sums[j + D / 16][2 * h + 1], a,
                         static_cast<int64_t>(position) * (D / 2) + 8 * j + 2 * t);
        }
        T *const to = static_cast<T *>(a.dqkv) + ((3ll * token + part) * a.heads + band.head) * D;
        store_row<T, D>(sums, h, 1.0f, to, token < a.tokens);
    }
}

template <typename T, int D>
__device__ __forceinline__ void long_dq(const ck_attention_args &a) {
    using L = LongDq<D>;
    constexpr int kKeys = L::kKeys, kTiles = kKeys / 8, kSteps = D / 16;
    extern __shared__ __align__(kTileAlignment) uint4 dynamic_memory[];
    auto &memory = *reinterpret_cast<typename L::Memory *>(dynamic_memory);
    const int64_t width = static_cast<int64_t>(a.heads) * D, step = 3 * width;
    const Band &band = memory.band;
    find_band(a, L::kRows, memory.band);
    find_reach(a, band, nullptr, memory.reach);
    const auto copy_block = [&](int block, int buffer) {
        const T *const keys = static_cast<const T *>(a.qkv) + width + band.head * D;
        copy_tokens<T, D, kKeys, L::kThreads>(memory.key[buffer], keys, step, block, band.low, band.high);
        copy_tokens<T, D, kKeys, L::kThreads>(memory.value[buffer], keys + width, step, block, band.low, band.high);
        commit_copies();
    };
    int block = band.low & ~(kKeys - 1);
    if (block < band.high) copy_block(block, 0);

    uint32_t query[kSteps][4], grad[kSteps][4];
    {
        const int lane = threadIdx.x % 32, head = band.head, first = band.tile + threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = first + 8 * h;
            const bool valid = band.holds(row);
            uint4 pieces[D / 32], outputs[D / 32];
            load_row<T, D>(static_cast<const T *>(a.qkv) + row * step + head * D, valid, pieces);
            if (a.cos && !band.is_empty()) rotate_row<T, D>(a, row - band.sight(a, row).start, pieces);
            to_fragments<D>(pieces, h, query);
            load_row<T, D>(static_cast<const T *>(a.grad) + row * width + head * D, valid, pieces);
            load_row<T, D>(static_cast<const T *>(a.out) + row * width + head * D, valid, outputs);
            float delta = 0.0f;
#pragma unroll
            for (int i = 0; i < D / 32; ++i) {
                float x[8], y[8];
                unpack<T>(pieces[i], x);
                unpack<T>(outputs[i], y);
#pragma unroll
                for (int k = 0; k < 8; ++k) delta += x[k] * y[k];
            }
            to_fragments<D>(pieces, h, grad);
            delta = quad_sum(delta);
            if (lane % 4 == 0) {
                memory.lse[row - band.tile] = valid ? a.lse[head * a.tokens + row] * kLog2E : 0.0f;
                memory.delta[row - band.tile] = delta;
                if (valid) a.delta[head * a.tokens + row] = delta;
            }
        }
        __syncwarp();
    }
    const float factor = a.scale * kLog2E;
    float dquery[D / 8][4] = {};
#pragma unroll 1
    for (int buffer = 0; block < band.high; block += kKeys, buffer ^= 1) {
        wait_copies<0>();
        if (a.cos) rotate_tokens<T, D, kKeys, L::kThreads>(a, band, memory.key[buffer], block, band.low, band.high);
        __syncthreads();  // this block has come, and the one before is done with
        if (block + kKeys < band.high) copy_block(block + kKeys, buffer ^ 1);
        const int warp = fresh_thread() / 32, lane = fresh_lane(), g = lane / 4, t = lane % 4;
        if (!memory.reach[warp].touches(block, kKeys)) continue;

        constexpr int kDrawn = kKeys / 2;  // as in the forward; before the products, which need the registers
        uint32_t kept = 0;
        if (a.drop_threshold)
            kept = kept_keys<kDrawn>(a, *a.seed, band.head, band.tile + 16 * warp + lane / 2, block + lane % 2 * kDrawn);
        float p[kTiles][4] = {}, dp[kTiles][4] = {};
        const uint32_t keys = Tile<D>::across(lane, memory.key[buffer]);
        const uint32_t values = Tile<D>::across(lane, memory.value[buffer]);
#pragma unroll
        for (int j = 0; j < kTiles; j += 2)
#pragma unroll
            for (int s = 0; s < kSteps; ++s) {
                uint32_t b[4];
                load_matrices(b, Tile<D>::at(keys, 8 * j, 2 * s));
                mma<T>(p[j], query[s], b[0], b[1]);
                mma<T>(p[j + 1], query[s], b[2], b[3]);
                load_matrices(b, Tile<D>::at(values, 8 * j, 2 * s));
                mma<T>(dp[j], grad[s], b[0], b[1]);
                mma<T>(dp[j + 1], grad[s], b[2], b[3]);
            }
        const int row = 16 * warp + g;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float lse = memory.lse[row + 8 * h];
#pragma unroll
            for (int j = 0; j < kTiles; ++j)
#pragma unroll
                for (int c = 2 * h; c < 2 * h + 2; ++c) p[j][c] = fast_exp2(fmaf(p[j][c], factor, -lse));
        }
        if (a.key_mask || !memory.reach[warp].covers(block, kKeys)) {
            uint32_t shown[1];
            shown_keys<kKeys>(a, block, band.high, shown);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const uint32_t seen = (seen_keys(band.sight(a, band.tile + row + 8 * h), block) & shown[0]) >> (2 * t);
#pragma unroll
                for (int i = 0; i < 2 * kTiles; ++i) {
                    float &x = p[i / 2][2 * h + i % 2];
                    x = seen >> (8 * (i / 2) + i % 2) & 1 ? x : 0.0f;
                }
            }
        }
        if (a.drop_threshold) {
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const uint32_t bits = __shfl_sync(0xffffffffu, kept, 2 * (g + 8 * h) + half) >> (2 * t);
#pragma unroll
                    for (int i = 0; i < kTiles; ++i)
                        dp[kTiles / 2 * half + i / 2][2 * h + i % 2] *= bits >> (8 * (i / 2) + i % 2) & 1 ? a.keep_scale : 0.0f;
                }
        }
        const float delta[2] = {memory.delta[row], memory.delta[row + 8]};
        const uint32_t downward = Tile<D>::along(lane, memory.key[buffer]);
#pragma unroll
        for (int j = 0; j < kTiles; j += 2) {
            uint32_t dscore[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int tile8 = j + i / 2, c = 2 * (i % 2);
                dscore[i] = pack2<T>(p[tile8][c] * (dp[tile8][c] - delta[i % 2]), p[tile8][c + 1] * (dp[tile8][c + 1] - delta[i % 2]));
            }
#pragma unroll
            for (int d = 0; d < D / 8; d += 2) {
                uint32_t b[4];
                load_matrices_transposed(b, Tile<D>::at(downward, 8 * j, d));
                mma<T>(dquery[d], dscore, b[0], b[1]);
                mma<T>(dquery[d + 1], dscore, b[2], b[3]);
            }
        }
    }
    store_rotated_back<T, D>(a, dquery, band, 0);
}

template <typename T, int D>
__device__ __forceinline__ void long_dkv(const ck_attention_args &a) {
    using L = LongDkv<D>;
    constexpr int kQueries = L::kQueries, kTiles = kQueries / 8;
    extern __shared__ __align__(kTileAlignment) uint4 dynamic_memory[];
    auto &memory = *reinterpret_cast<typename L::Memory *>(dynamic_memory);
    const Band &band = memory.band;
    find_band(a, L::kRows, memory.band);
    find_reach(a, band, a.key_mask, memory.reach);
    const auto copy_block = [&](int block, int buffer) {
        const int64_t width = static_cast<int64_t>(a.heads) * D;
        const T *const queries = static_cast<const T *>(a.qkv) + band.head * D;
        const T *const grads = static_cast<const T *>(a.grad) + band.head * D;
        copy_tokens<T, D, kQueries, L::kThreads>(memory.query[buffer], queries, 3 * width, block, band.low, band.high);
        copy_tokens<T, D, kQueries, L::kThreads>(memory.grad[buffer], grads, width, block, band.low, band.high);
        commit_copies();
        const int row = fresh_thread(), token = block + row;
        if (row < kQueries) {
            const bool valid = token >= band.low && token < band.high;
            memory.lse[buffer][row] = valid ? a.lse[band.head * a.tokens + token] * kLog2E : 0.0f;
            memory.delta[buffer][row] = valid ? a.delta[band.head * a.tokens + token] : 0.0f;
        }
    };
    int block = band.low & ~(kQueries - 1);
    {
        const int64_t width = static_cast<int64_t>(a.heads) * D;
        const T *const keys = static_cast<const T *>(a.qkv) + width + band.head * D;
        copy_tokens<T, D, L::kRows, L::kThreads>(memory.key, keys, 3 * width, band.tile, band.begin, band.end);
        copy_tokens<T, D, L::kRows, L::kThreads>(memory.value, keys + width, 3 * width, band.tile, band.begin, band.end);
    }
    if (block < band.high) copy_block(block, 0);
    if (a.cos) {
        wait_copies<0>();
        rotate_tokens<T, D, L::kRows, L::kThreads>(a, band, memory.key, band.tile, band.begin, band.end);
    }

    float dkey[D / 8][4] = {}, dvalue[D / 8][4] = {};
#pragma unroll 1
    for (int buffer = 0; block < band.high; block += kQueries, buffer ^= 1) {
        wait_copies<0>();
        if (a.cos) rotate_tokens<T, D, kQueries, L::kThreads>(a, band, memory.query[buffer], block, band.low, band.high);
        __syncthreads();  // this block has come, and the one before is done with
        if (block + kQueries < band.high) copy_block(block + kQueries, buffer ^ 1);
        const int warp = fresh_thread() / 32, lane = fresh_lane(), g = lane / 4, t = lane % 4;
        if (!memory.reach[warp].touches(block, kQueries)) continue;

        // What is seen and what is kept, before the products, which need the registers. Bit 8h + i says of key g + 8h
        // and query 8 * (i / 2) + 2t + i % 2 whether they see each other, bit 16 + 8h + i whether that is kept
        uint32_t bits = 0xffffffffu;
        if (!memory.reach[warp].covers(block, kQueries)) {
            bits = 0xffff0000u;
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const Sight sight = band.sight(a, band.tile + 16 * warp + g + 8 * h, a.key_mask);
#pragma unroll
                for (int i = 0; i < 2 * kTiles; ++i)
                    bits |= static_cast<uint32_t>(sight.sees(block + 8 * (i / 2) + 2 * t + i % 2)) << (8 * h + i);
            }
        }
        if (a.drop_threshold) {
            constexpr int kDrawn = kQueries / 2;  // keys that a lane draws for, all for one query
            const uint32_t drawn = kept_keys<kDrawn>(a, *a.seed, band.head, block + lane % kQueries,
                                                     band.tile + 16 * warp + lane / kQueries * kDrawn);
            bits &= 0xffffu;
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
                for (int i = 0; i < 2 * kTiles; ++i) {
                    const int query = 8 * (i / 2) + 2 * t + i % 2;
                    const uint32_t word = __shfl_sync(0xffffffffu, drawn, query + kQueries * (8 * h / kDrawn));
                    bits |= (word >> ((g + 8 * h) % kDrawn) & 1) << (16 + 8 * h + i);
                }
        }
        uint32_t probability[kTiles][2];  // P^T: keys g and g + 8, queries 2t and 2t + 1 of each tile
        {
            float p[kTiles][4];
            product<T, D>(fresh_lane(), 16 * (fresh_thread() / 32), p, memory.key, memory.query[buffer]);
            const float factor = a.scale * kLog2E;
#pragma unroll
            for (int j = 0; j < kTiles; ++j) {
                const float2 lse = *reinterpret_cast<const float2 *>(memory.lse[buffer] + 8 * j + fresh_lane() % 4 * 2);
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    const bool sees = bits >> (8 * (c / 2) + 2 * j + c % 2) & 1;
                    p[j][c] = sees ? fast_exp2(fmaf(p[j][c], factor, c % 2 ? -lse.y : -lse.x)) : 0.0f;
                }
#pragma unroll
                for (int h = 0; h < 2; ++h) probability[j][h] = pack2<T>(p[j][2 * h], p[j][2 * h + 1]);
            }
        }
        __syncwarp();  // no products of dP before P is packed: there are no registers for both
        float dp[kTiles][4];
        product<T, D>(fresh_lane(), 16 * (fresh_thread() / 32), dp, memory.value, memory.grad[buffer]);
        constexpr uint32_t kGrad = sizeof(memory.query);  // bytes from a block of queries to that of their gradients
        const int late = fresh_lane();
        const uint32_t queries = Tile<D>::along(late, memory.query[buffer]);
#pragma unroll
        for (int j = 0; j < kTiles; j += 2) {
            uint32_t of_value[4], of_key[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int tile8 = j + i / 2, h = i % 2;
                const uint32_t kept = bits >> (16 + 8 * h + 2 * tile8);
                const float2 delta = *reinterpret_cast<const float2 *>(memory.delta[buffer] + 8 * tile8 + late % 4 * 2);
                const float2 p = unpack2<T>(probability[tile8][h]);
                const float dp0 = kept & 1 ? dp[tile8][2 * h] * a.keep_scale : 0.0f;
                const float dp1 = kept & 2 ? dp[tile8][2 * h + 1] * a.keep_scale : 0.0f;
                of_key[i] = pack2<T>(p.x * (dp0 - delta.x), p.y * (dp1 - delta.y));
                of_value[i] = probability[tile8][h] & ((kept & 1 ? 0xffffu : 0) | (kept & 2 ? 0xffff0000u : 0));
            }
#pragma unroll
            for (int d = 0; d < D / 8; d += 2) {
                uint32_t b[4];
                load_matrices_transposed(b, Tile<D>::at(queries, 8 * j, d) + kGrad);
                mma<T>(dvalue[d], of_value, b[0], b[1]);
                mma<T>(dvalue[d + 1], of_value, b[2], b[3]);
                load_matrices_transposed(b, Tile<D>::at(queries, 8 * j, d));
                mma<T>(dkey[d], of_key, b[0], b[1]);
                mma<T>(dkey[d + 1], of_key, b[2], b[3]);
            }
        }
    }
    store_rotated_back<T, D>(a, dkey, band, 1);
    const int lane = fresh_lane(), first = band.tile + fresh_thread() / 32 * 16 + lane / 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int64_t row = first + 8 * h;
        store_row<T, D>(dvalue, h, a.keep_scale, static_cast<T *>(a.dqkv) + ((3 * row + 2) * a.heads + band.head) * D, row < a.tokens);
    }
}

}  // namespace ck
