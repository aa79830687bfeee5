// Attention of fp32 tensors of any length by plain multiplication and addition: on consumer cards no slower than three
// TF32 products, and as exact as fp32 is. A CTA's tile and its band are those of band.cuh, the passes those of
// long_forward.cuh and long_backward.cuh.
//
// A warp owns 8 rows. Lane 16 * i + c holds the scores of rows 4i .. 4i + 3 with tokens c, c + 16 .. of a block; as weights
// they go through shared memory, and then a lane holds columns lane, lane + 32 .. of the sums of all 8 rows.
#pragma once

#include "band.cuh"
#include "dropout.cuh"
#include "rows.cuh"

namespace ck {

template <int D>
struct Fp32 {
    static constexpr int kWarps = D > 64 ? 4 : 8, kThreads = 32 * kWarps, kRows = 8 * kWarps;
    static constexpr int kBlock = D > 64 ? 16 : 32, kPerLane = kBlock / 16, kColumns = D / 32, kPieces = D / 4;
    static constexpr int kWeights = kBlock + 4;  // the pitch of a row: two rows that are 4 apart lie in different banks
    static constexpr int kDrawn = kBlock / 4;    // a lane's share of the dropout of a warp's rows and a block

    template <int TILES>  // of rows, and of blocks
    struct Memory {
        float4 rows[TILES][kRows * kPieces], block[2][kBlock * kPieces];
        float weights[kWarps][8 * kWeights], lse[kRows], delta[kRows];
        float block_lse[kBlock], block_delta[kBlock];
        Sight sights[kRows];
        Band band;
    };

    using Scores = float[4][kPerLane];
    using Sums = float[8][kColumns];

    // The band of the CTA's tile, and what each of its rows sees. `shown`: as for Band::sight.
    static __device__ __forceinline__ void find_sights(const ck_attention_args &a, const uint8_t *shown, Band &band,
                                                       Sight *sights) {
        find_band(a, blockIdx.x, kRows, band);
        if (threadIdx.x < kRows) sights[threadIdx.x] = band.sight(a, band.tile + threadIdx.x, shown);
        __syncthreads();
    }

    // Eight rows' pieces of one column lie in different banks, and so do eight pieces of a row.
    static __device__ __forceinline__ int place(int row, int piece) { return row * kPieces + (piece ^ (row & 7)); }

    // Tokens first .. of a matrix to a tile, rotated or not; zeros for those outside [low, high).
    template <int ROWS>
    static __device__ __forceinline__ void load_tokens(const ck_attention_args &a, const Band &band, float4 *tile,
                                                       const void *matrix, int64_t offset, int64_t step, int first,
                                                       int low, int high, bool rotated) {
        static_assert(ROWS * kPieces % kThreads == 0);
#pragma unroll 1
        for (int i = threadIdx.x; i < ROWS * kPieces; i += kThreads) {
            const int row = i / kPieces, piece = i % kPieces, token = first + row;
            const bool valid = token >= low && token < high;
            float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (valid) x = reinterpret_cast<const float4 *>(static_cast<const float *>(matrix) + offset + token * step)[piece];
            if (rotated && a.cos) {
                constexpr int kHalf = kPieces / 2;  // the other of a pair is that many lanes away
                const float4 y = {__shfl_xor_sync(0xffffffffu, x.x, kHalf), __shfl_xor_sync(0xffffffffu, x.y, kHalf),
                                  __shfl_xor_sync(0xffffffffu, x.z, kHalf), __shfl_xor_sync(0xffffffffu, x.w, kHalf)};
                if (valid) {
                    const int start = a.cu_seqlens[sequence_of(a.cu_seqlens, band.first, band.last, token)];
                    const int64_t table = static_cast<int64_t>(token - start) * kHalf + piece % kHalf;  // in pieces
                    const float4 cosine = reinterpret_cast<const float4 *>(a.cos)[table];
                    float4 sine = reinterpret_cast<const float4 *>(a.sin)[table];
                    if (piece < kHalf) sine = {-sine.x, -sine.y, -sine.z, -sine.w};
                    x = {x.x * cosine.x + y.x * sine.x, x.y * cosine.y + y.y * sine.y, x.z * cosine.z + y.z * sine.z,
                         x.w * cosine.w + y.w * sine.w};
                }
            }
            tile[place(row, piece)] = x;
        }
    }

    // Four sums, of columns c, c + 4 ..: shorter chains of additions, so smaller errors.
    static __device__ __forceinline__ void add_products(float4 &sums, float4 x, float4 y) {
        sums.x = fmaf(x.x, y.x, sums.x), sums.y = fmaf(x.y, y.y, sums.y);
        sums.z = fmaf(x.z, y.z, sums.z), sums.w = fmaf(x.w, y.w, sums.w);
    }
    static __device__ __forceinline__ float total(float4 sums) { return (sums.x + sums.y) + (sums.z + sums.w); }

    // Products of this warp's rows with those of a block.
    static __device__ __forceinline__ void multiply(Scores &scores, const float4 *rows, const float4 *block) {
        const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * 8 + lane / 16 * 4;
        float4 sums[4][kPerLane] = {};
#pragma unroll 4
        for (int piece = 0; piece < kPieces; ++piece) {
            float4 x[4], y[kPerLane];
#pragma unroll
            for (int i = 0; i < 4; ++i) x[i] = rows[place(first + i, piece)];
#pragma unroll
            for (int j = 0; j < kPerLane; ++j) y[j] = block[place(lane % 16 + 16 * j, piece)];
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < kPerLane; ++j) add_products(sums[i][j], x[i], y[j]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < kPerLane; ++j) scores[i][j] = total(sums[i][j]);
    }

    // sums += weights times the rows of a block; `weights` is this warp's room.
    static __device__ __forceinline__ void add_weighted(Sums &sums, const Scores &scores, float *weights, const float4 *block) {
        const int lane = threadIdx.x % 32;
        __syncwarp();  // what was there has been read
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < kPerLane; ++j)
                weights[(lane / 16 * 4 + i) * kWeights + lane % 16 + 16 * j] = scores[i][j];
        __syncwarp();
#pragma unroll 1
        for (int token = 0; token < kBlock; token += 4) {
            float x[4][kColumns];
#pragma unroll
            for (int k = 0; k < 4; ++k)
#pragma unroll
                for (int j = 0; j < kColumns; ++j)
                    x[k][j] = reinterpret_cast<const float *>(block + place(token + k, lane / 4 + 8 * j))[lane % 4];
#pragma unroll
            for (int row = 0; row < 8; ++row) {
                const float4 w = *reinterpret_cast<const float4 *>(weights + row * kWeights + token);
#pragma unroll
                for (int j = 0; j < kColumns; ++j) {
                    sums[row][j] = fmaf(w.x, x[0][j], sums[row][j]), sums[row][j] = fmaf(w.y, x[1][j], sums[row][j]);
                    sums[row][j] = fmaf(w.z, x[2][j], sums[row][j]), sums[row][j] = fmaf(w.w, x[3][j], sums[row][j]);
                }
            }
        }
    }

    // Whether row i of this lane's sees token j of its block's.
    static __device__ __forceinline__ bool sees(const Sight *sights, int block, int i, int j) {
        const int lane = threadIdx.x % 32;
        return sights[threadIdx.x / 32 * 8 + lane / 16 * 4 + i].sees(block + lane % 16 + 16 * j);
    }

    // Of 4 rows a lane to those of all 8: value i of lanes 16 * h is row 4h + i's.
    static __device__ __forceinline__ float of_row(const float (&values)[4], int row) {
        return __shfl_sync(0xffffffffu, values[row % 4], row / 4 * 16);
    }

    // Which weights dropout keeps, where rows are queries: bit kPerLane * i + j.
    static __device__ __forceinline__ uint32_t kept(const ck_attention_args &a, int head, int tile, int block) {
        const int lane = threadIdx.x % 32, c = lane % 16;
        const uint32_t drawn =  // of row lane / 4, tokens kDrawn * (lane % 4) ..
            kept_keys<kDrawn>(a, *a.seed, head, tile + threadIdx.x / 32 * 8 + lane / 4, block + lane % 4 * kDrawn);
        uint32_t bits = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < kPerLane; ++j) {
                const int row = lane / 16 * 4 + i, token = c + 16 * j;
                const uint32_t word = __shfl_sync(0xffffffffu, drawn, 4 * row + token / kDrawn);
                bits |= (word >> (token % kDrawn) & 1) << (kPerLane * i + j);
            }
        return bits;
    }

    // The same where rows are keys.
    static __device__ __forceinline__ uint32_t kept_of_keys(const ck_attention_args &a, int head, int tile, int block) {
        const int lane = threadIdx.x % 32, c = lane % 16;
        const uint32_t drawn =  // of query lane % kBlock, keys kDrawn * (lane / kBlock) ..
            kept_keys<kDrawn>(a, *a.seed, head, block + lane % kBlock,
                              tile + threadIdx.x / 32 * 8 + lane / kBlock * kDrawn);
        uint32_t bits = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < kPerLane; ++j) {
                const int row = lane / 16 * 4 + i, token = c + 16 * j;
                const uint32_t word = __shfl_sync(0xffffffffu, drawn, token + kBlock * (row / kDrawn));
                bits |= (word >> (row % kDrawn) & 1) << (kPerLane * i + j);
            }
        return bits;
    }

    // Columns of one row by the inverse rotation.
    static __device__ __forceinline__ void unrotate_row(float (&x)[kColumns], const ck_attention_args &a, int position) {
        const int lane = threadIdx.x % 32;
        const int64_t table = static_cast<int64_t>(position) * (D / 2);
        if constexpr (kColumns == 1) {
            const float other = __shfl_xor_sync(0xffffffffu, x[0], 16);
            const float cosine = a.cos[table + lane % 16], sine = a.sin[table + lane % 16];
            x[0] = x[0] * cosine + (lane < 16 ? other : -other) * sine;
        } else {
#pragma unroll
            for (int j = 0; j < kColumns / 2; ++j) {
                const float cosine = a.cos[table + 32 * j + lane], sine = a.sin[table + 32 * j + lane];
                const float low = x[j], high = x[j + kColumns / 2];
                x[j] = low * cosine + high * sine, x[j + kColumns / 2] = high * cosine - low * sine;
            }
        }
    }
};

template <typename T, int D>
__device__ __forceinline__ void fp32_forward(const ck_attention_args &a) {
    using F = Fp32<D>;
    extern __shared__ float4 fp32_memory[];
    auto &memory = *reinterpret_cast<typename F::template Memory<1> *>(fp32_memory);
    const Band &band = memory.band;
    F::find_sights(a, nullptr, memory.band, memory.sights);
    const int head = band.head, tile = band.tile, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t width = static_cast<int64_t>(a.heads) * D, step = 3 * width, offset = static_cast<int64_t>(head) * D;
    F::template load_tokens<F::kRows>(a, band, memory.rows[0], a.qkv, offset, step, tile, band.begin, band.end, true);
    const float infinity = __int_as_float(0x7f800000);
    float highest[4] = {-infinity, -infinity, -infinity, -infinity}, sum[4] = {};
    typename F::Sums out = {};
    for (int block = band.low & ~(F::kBlock - 1); block < band.high; block += F::kBlock) {
        __syncthreads();  // the block before is done with
        F::template load_tokens<F::kBlock>(a, band, memory.block[0], a.qkv, offset + width, step, block, band.low, band.high, true);
        F::template load_tokens<F::kBlock>(a, band, memory.block[1], a.qkv, offset + 2 * width, step, block, band.low, band.high, false);
        __syncthreads();
        typename F::Scores score;
        F::multiply(score, memory.rows[0], memory.block[0]);
        float correction[4];
        for (int i = 0; i < 4; ++i) {
            float higher = highest[i];
            for (int j = 0; j < F::kPerLane; ++j) {
                const int token = block + lane % 16 + 16 * j;
                const bool seen = F::sees(memory.sights, block, i, j) && (!a.key_mask || a.key_mask[token]);
                score[i][j] = seen ? score[i][j] * a.scale : -infinity;
                higher = fmaxf(higher, score[i][j]);
            }
            for (int k = 1; k < 16; k *= 2) higher = fmaxf(higher, __shfl_xor_sync(0xffffffffu, higher, k));
            const float base = higher == -infinity ? 0.0f : higher;
            correction[i] = expf(highest[i] - base);
            highest[i] = higher, sum[i] *= correction[i];
            for (int j = 0; j < F::kPerLane; ++j) sum[i] += score[i][j] = expf(score[i][j] - base);
        }
        if (a.drop_threshold) {
            const uint32_t kept = F::kept(a, head, tile, block);
            for (int i = 0; i < 4; ++i)
                for (int j = 0; j < F::kPerLane; ++j)
                    if (!(kept >> (F::kPerLane * i + j) & 1)) score[i][j] = 0.0f;
        }
        for (int row = 0; row < 8; ++row)
            for (int j = 0; j < F::kColumns; ++j) out[row][j] *= F::of_row(correction, row);
        F::add_weighted(out, score, memory.weights[warp], memory.block[1]);
    }
    float inverse[4];
    for (int i = 0; i < 4; ++i) {
        for (int k = 1; k < 16; k *= 2) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], k);
        inverse[i] = sum[i] == 0.0f ? 0.0f : a.keep_scale / sum[i];
        const int row = tile + 8 * warp + lane / 16 * 4 + i;
        if (lane % 16 == 0 && row < a.tokens)
            a.lse[head * a.tokens + row] = sum[i] == 0.0f ? 0.0f : highest[i] + logf(sum[i]);
    }
    for (int row = 0; row < 8; ++row) {
        const float by = F::of_row(inverse, row);
        const int64_t token = tile + 8 * warp + row;
        for (int j = 0; j < F::kColumns; ++j)
            if (token < a.tokens) static_cast<float *>(a.out)[token * width + offset + 32 * j + lane] = out[row][j] * by;
    }
}

// Sums of this warp's rows to part 0, 1 or 2 of dqkv.
template <int D>
__device__ __forceinline__ void store_sums(const ck_attention_args &a, const Band &band, const Sight *sights, int head,
                                           int tile, int part, float factor, typename Fp32<D>::Sums &sums) {
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < 8; ++i) {
        const int row = threadIdx.x / 32 * 8 + i, token = tile + row;
        for (int j = 0; j < Fp32<D>::kColumns; ++j) sums[i][j] *= factor;
        if (part < 2 && a.cos && band.holds(token)) Fp32<D>::unrotate_row(sums[i], a, token - sights[row].start);
        float *const to = static_cast<float *>(a.dqkv) + ((3ll * token + part) * a.heads + head) * D;
        for (int j = 0; j < Fp32<D>::kColumns; ++j)
            if (token < a.tokens) to[32 * j + lane] = sums[i][j];
    }
}

template <typename T, int D>
__device__ __forceinline__ void fp32_dq(const ck_attention_args &a) {
    using F = Fp32<D>;
    extern __shared__ float4 fp32_memory[];
    auto &memory = *reinterpret_cast<typename F::template Memory<2> *>(fp32_memory);
    const Band &band = memory.band;
    F::find_sights(a, nullptr, memory.band, memory.sights);
    const int head = band.head, tile = band.tile, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t width = static_cast<int64_t>(a.heads) * D, step = 3 * width, offset = static_cast<int64_t>(head) * D;
    F::template load_tokens<F::kRows>(a, band, memory.rows[0], a.qkv, offset, step, tile, band.begin, band.end, true);
    F::template load_tokens<F::kRows>(a, band, memory.rows[1], a.grad, offset, width, tile, band.begin, band.end, false);
    __syncthreads();
    for (int row = threadIdx.x; row < F::kRows; row += F::kThreads) {
        const int token = tile + row;
        float delta = 0.0f;
        if (band.holds(token)) {
            const float4 *const out = reinterpret_cast<const float4 *>(static_cast<const float *>(a.out) + token * width + offset);
            float4 sums = {};  // in the order of a product: where one key is all that is seen, dP - delta is 0
            for (int piece = 0; piece < F::kPieces; ++piece)
                F::add_products(sums, memory.rows[1][F::place(row, piece)], out[piece]);
            delta = F::total(sums);
            a.delta[head * a.tokens + token] = delta;
        }
        memory.delta[row] = delta;
        memory.lse[row] = band.holds(token) ? a.lse[head * a.tokens + token] : 0.0f;
    }
    typename F::Sums dquery = {};
    for (int block = band.low & ~(F::kBlock - 1); block < band.high; block += F::kBlock) {
        __syncthreads();  // the block before is done with
        F::template load_tokens<F::kBlock>(a, band, memory.block[0], a.qkv, offset + width, step, block, band.low, band.high, true);
        F::template load_tokens<F::kBlock>(a, band, memory.block[1], a.qkv, offset + 2 * width, step, block, band.low, band.high, false);
        __syncthreads();
        typename F::Scores p, dp;
        F::multiply(p, memory.rows[0], memory.block[0]);
        F::multiply(dp, memory.rows[1], memory.block[1]);
        const uint32_t kept = a.drop_threshold ? F::kept(a, head, tile, block) : 0xffffffffu;
        for (int i = 0; i < 4; ++i) {
            const int row = 8 * warp + lane / 16 * 4 + i;
            for (int j = 0; j < F::kPerLane; ++j) {
                const int token = block + lane % 16 + 16 * j;
                const bool seen = F::sees(memory.sights, block, i, j) && (!a.key_mask || a.key_mask[token]);
                const float grad = kept >> (F::kPerLane * i + j) & 1 ? dp[i][j] * a.keep_scale : 0.0f;
                p[i][j] = seen ? expf(fmaf(p[i][j], a.scale, -memory.lse[row])) * (grad - memory.delta[row]) : 0.0f;
            }
        }
        F::add_weighted(dquery, p, memory.weights[warp], memory.block[0]);
    }
    store_sums<D>(a, band, memory.sights, head, tile, 0, a.scale, dquery);
}

template <typename T, int D>
__device__ __forceinline__ void fp32_dkv(const ck_attention_args &a) {
    using F = Fp32<D>;
    extern __shared__ float4 fp32_memory[];
    auto &memory = *reinterpret_cast<typename F::template Memory<2> *>(fp32_memory);
    const Band &band = memory.band;
    F::find_sights(a, a.key_mask, memory.band, memory.sights);
    const int head = band.head, tile = band.tile, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t width = static_cast<int64_t>(a.heads) * D, step = 3 * width, offset = static_cast<int64_t>(head) * D;
    F::template load_tokens<F::kRows>(a, band, memory.rows[0], a.qkv, offset + width, step, tile, band.begin, band.end, true);
    F::template load_tokens<F::kRows>(a, band, memory.rows[1], a.qkv, offset + 2 * width, step, tile, band.begin, band.end, false);
    typename F::Sums dkey = {}, dvalue = {};
    for (int block = band.low & ~(F::kBlock - 1); block < band.high; block += F::kBlock) {
        __syncthreads();  // the block before is done with
        F::template load_tokens<F::kBlock>(a, band, memory.block[0], a.qkv, offset, step, block, band.low, band.high, true);
        F::template load_tokens<F::kBlock>(a, band, memory.block[1], a.grad, offset, width, block, band.low, band.high, false);
        if (threadIdx.x < F::kBlock) {
            const int token = block + threadIdx.x;
            const bool valid = token >= band.low && token < band.high;
            memory.block_lse[threadIdx.x] = valid ? a.lse[head * a.tokens + token] : 0.0f;
            memory.block_delta[threadIdx.x] = valid ? a.delta[head * a.tokens + token] : 0.0f;
        }
        __syncthreads();
        typename F::Scores p, dp;  // of P^T and dP^T
        F::multiply(p, memory.rows[0], memory.block[0]);
        F::multiply(dp, memory.rows[1], memory.block[1]);
        const uint32_t kept = a.drop_threshold ? F::kept_of_keys(a, head, tile, block) : 0xffffffffu;
        for (int i = 0; i < 4; ++i)
            for (int j = 0; j < F::kPerLane; ++j) {
                const int query = lane % 16 + 16 * j;
                const bool keeps = kept >> (F::kPerLane * i + j) & 1;
                const float probability =
                    F::sees(memory.sights, block, i, j) ? expf(fmaf(p[i][j], a.scale, -memory.block_lse[query])) : 0.0f;
                p[i][j] = keeps ? probability : 0.0f;
                dp[i][j] = probability * ((keeps ? dp[i][j] * a.keep_scale : 0.0f) - memory.block_delta[query]);
            }
        F::add_weighted(dvalue, p, memory.weights[warp], memory.block[1]);
        F::add_weighted(dkey, dp, memory.weights[warp], memory.block[0]);
    }
    store_sums<D>(a, band, memory.sights, head, tile, 1, a.scale, dkey);
    store_sums<D>(a, band, memory.sights, head, tile, 2, a.keep_scale, dvalue);
}

}  // namespace ck
