// The gradient of short_forward.cuh in one kernel: keys and values of a run resident, 32 queries at a time streamed past.
//
//     P = exp(scale * Q K^T - lse),  dV = drop(P)^T dO,  dP = drop(dO V^T),  dS = P * (dP - rowsum(P * dP)),
//     dQ = scale * dS K,  dK = scale * dS^T Q
//
// A warp owns 16 keys: their rows of P^T and dS^T, and dK and dV in registers. The row sums go over all keys, so over
// warps, through shared memory in a fixed order; then dS does, for dQ. Nothing is added in memory, `out` is not read.
#pragma once

#include "short_forward.cuh"

namespace ck {

template <int D>
struct ShortBackward {
    static constexpr int kRows = kRunTokens, kWarps = kRows / 16, kThreads = 32 * kWarps, kQueries = 32;
#if __CUDA_ARCH__ == 750
    static constexpr int kResident = D > 32 ? 1 : 2;
#else
    static constexpr int kResident = D > 64 ? 1 : 2;
#endif
    struct Memory {
        uint4 key[kRunTokens * D / 8], value[kRunTokens * D / 8], query[kQueries * D / 8], grad[kQueries * D / 8];
        union {
            uint4 dscore[kRunTokens * kQueries / 8];  // [key][query]
            float row_sums[kWarps][kQueries];
        };
        float lse[kQueries];
        uint32_t kept[kQueries][kRunTokens / 32];
        RunRows<kRunTokens> rows;
        Run run;  // here, as is the head, since registers are scarce
        int head, window, first[kWarps];  // first: query of the slice, each warp's own

        // Queries of the slice at `first` see keys of the 16 at `key`. Seeing is mutual.
        __device__ __forceinline__ bool is_seen(int key, int first, int window) const {
            return key < run.rows && rows.low(key, window) < first + kQueries &&
                   rows.high(min(key + 15, run.rows - 1), window) > first;
        }
    };
};

// The sum over the eight threads of a column group (lanes of equal lane % 4) of x[i]; thread g of them gets that of x[g].
__device__ __forceinline__ float scattered_sum(const float (&x)[8]) {
    const int lane = threadIdx.x % 32;
    float four[4], two[2];
#pragma unroll
    for (int i = 0; i < 4; ++i)
        four[i] = (lane & 16 ? x[i + 4] : x[i]) + __shfl_xor_sync(0xffffffffu, lane & 16 ? x[i] : x[i + 4], 16);
#pragma unroll
    for (int i = 0; i < 2; ++i)
        two[i] = (lane & 8 ? four[i + 2] : four[i]) + __shfl_xor_sync(0xffffffffu, lane & 8 ? four[i] : four[i + 2], 8);
    return (lane & 4 ? two[1] : two[0]) + __shfl_xor_sync(0xffffffffu, lane & 4 ? two[0] : two[1], 4);
}

// dQ of 16 queries of a slice and 32 columns: 16 * unit.. and as many D / 2 further on, so that rotation finds both.
template <typename T, int D>
__device__ __forceinline__ void query_gradient(const ck_attention_args &a, int first_query, int row16,
                                               int unit, const typename ShortBackward<D>::Memory &memory) {
    const Run &run = memory.run;
    const int head = memory.head;
    const int lane = fresh_lane(), g = lane / 4, t = lane % 4, begin = first_query + row16;
    const int tiles[4] = {2 * unit, 2 * unit + 1, 2 * unit + D / 16, 2 * unit + 1 + D / 16};
    const int low = memory.rows.low(begin, a.window) & ~15;
    const int high = memory.rows.high(min(begin + 15, run.rows - 1), a.window);
    float sums[4][4] = {};
    using Scores = Tile<ShortBackward<D>::kQueries>;
    const uint32_t dscores = Scores::across(lane, memory.dscore) ^ row16 / 8 << 4, keys = Tile<D>::along(lane, memory.key);
#pragma unroll 2
    for (int key = low; key < high; key += 16) {
        uint32_t p[4], b[4];
        load_matrices_transposed(p, Scores::at(dscores, key, 0));
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            load_matrices_transposed(b, Tile<D>::at(keys, key, tiles[i]));
            mma<T>(sums[i], p, b[0], b[1]);
            mma<T>(sums[i + 1], p, b[2], b[3]);
        }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int row = begin + g + 8 * h;
        const bool valid = row < run.rows;
        uint32_t w[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[i][2 * h] *= a.scale, sums[i][2 * h + 1] *= a.scale;
        if (a.cos && valid) {
#pragma unroll
            for (int i = 0; i < 2; ++i)
                unrotate(sums[i][2 * h], sums[i][2 * h + 1], sums[i + 2][2 * h], sums[i + 2][2 * h + 1], a,
                         static_cast<int64_t>(memory.rows.position(row)) * (D / 2) + 8 * tiles[i] + 2 * t);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) w[i] = pack2<T>(sums[i][2 * h], sums[i][2 * h + 1]);
        transpose_quad(w);
        T *const to = static_cast<T *>(a.dqkv) + (3ll * (run.begin + row) * a.heads + head) * D + 16 * unit;
        if (valid) store_piece(to + 8 * (t % 2) + t / 2 * (D / 2), w);
    }
}

// One slice's share of dK and dV of this warp's keys.
template <typename T, int D>
__device__ __forceinline__ void slice_gradients(const ck_attention_args &a, const int &first,
                                                typename ShortBackward<D>::Memory &memory, float (&dkey)[D / 8][4],
                                                float (&dvalue)[D / 8][4]) {
    using S = ShortBackward<D>;
    constexpr int kTiles = S::kQueries / 8;
    const int thread = fresh_thread(), warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
    float p[kTiles][4], dp[kTiles][4];  // of P^T and dP^T: keys g and g + 8, queries 2t and 2t + 1 of each tile
    if (!memory.is_seen(16 * warp, first, a.window)) {  // the barriers below, from here: a warp's threads are of one mind
        memory.row_sums[warp][lane] = 0.0f;
        __syncthreads();
        __syncthreads();
        __syncthreads();
        return;
    }
    product<T, D>(lane, 16 * warp, p, memory.key, memory.query);
    product<T, D>(lane, 16 * warp, dp, memory.value, memory.grad);
    const float factor = a.scale * kLog2E;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
        const float2 lse = *reinterpret_cast<const float2 *>(memory.lse + 8 * j + 2 * t);
#pragma unroll
        for (int c = 0; c < 4; ++c) p[j][c] = fast_exp2(fmaf(p[j][c], factor, c % 2 ? -lse.y : -lse.x));
    }
    if (!memory.rows.is_full(a)) {
        const int key[2] = {16 * warp + g, 16 * warp + g + 8};
        const uint32_t shown = memory.rows.shown[warp / 2] >> (16 * (warp % 2) + g);
#pragma unroll
        for (int j = 0; j < kTiles; ++j)
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                const int row = first + 8 * j + 2 * t + c % 2, k = key[c / 2];
                const bool sees = k >= memory.rows.low(row, a.window) && k < memory.rows.high(row, a.window);
                if (!sees || !(shown >> (8 * (c / 2)) & 1)) p[j][c] = 0.0f;
            }
    }
    if (a.drop_threshold) {
#pragma unroll
        for (int j = 0; j < kTiles; ++j)
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                const uint32_t word = memory.kept[8 * j + 2 * t + c % 2][warp / 2];
                const bool keeps = word >> (16 * (warp % 2) + g + 8 * (c / 2)) & 1;
                dp[j][c] *= keeps ? a.keep_scale : 0.0f;
                if (!keeps) p[j][c] = -p[j][c];  // its sign remembers what is dropped
            }
    }
    float products[8];
#pragma unroll
    for (int i = 0; i < 8; ++i)
        products[i] = fabsf(p[i / 2][i % 2]) * dp[i / 2][i % 2] + fabsf(p[i / 2][2 + i % 2]) * dp[i / 2][2 + i % 2];
    memory.row_sums[warp][8 * (g / 2) + 2 * t + g % 2] = scattered_sum(products);
    uint32_t packed[kTiles][2];  // P^T, with its signs: 16 registers of floats more would be too many
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h) packed[j][h] = pack2<T>(p[j][2 * h], p[j][2 * h + 1]);
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < S::kWarps; ++w) sum += memory.row_sums[w][lane];
    uint32_t dscore[kTiles][2];  // dS^T
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
        const float first_sum = __shfl_sync(0xffffffffu, sum, 8 * j + 2 * t);
        const float second_sum = __shfl_sync(0xffffffffu, sum, 8 * j + 2 * t + 1);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float2 probability = unpack2<T>(packed[j][h] & 0x7fff7fffu);
            dscore[j][h] = pack2<T>(probability.x * (dp[j][2 * h] - first_sum),
                                    probability.y * (dp[j][2 * h + 1] - second_sum));
            if (a.drop_threshold) packed[j][h] &= ~((packed[j][h] >> 15 & 0x00010001u) * 0xffffu);
        }
    }
    const uint32_t grads = Tile<D>::along(lane, memory.grad), queries = Tile<D>::along(lane, memory.query);
#pragma unroll
    for (int j = 0; j < kTiles; j += 2) {
        const uint32_t of_value[4] = {packed[j][0], packed[j][1], packed[j + 1][0], packed[j + 1][1]};
        const uint32_t of_key[4] = {dscore[j][0], dscore[j][1], dscore[j + 1][0], dscore[j + 1][1]};
#pragma unroll
        for (int d = 0; d < D / 8; d += 2) {
            uint32_t b[4];
            load_matrices_transposed(b, Tile<D>::at(grads, 8 * j, d));
            mma<T>(dvalue[d], of_value, b[0], b[1]);
            mma<T>(dvalue[d + 1], of_value, b[2], b[3]);
            load_matrices_transposed(b, Tile<D>::at(queries, 8 * j, d));
            mma<T>(dkey[d], of_key, b[0], b[1]);
            mma<T>(dkey[d + 1], of_key, b[2], b[3]);
        }
    }
    __syncthreads();  // queries and gradients are done with, and so are the row sums, where dS goes
    uint32_t *const words = reinterpret_cast<uint32_t *>(memory.dscore);
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h)
            words[4 * Tile<S::kQueries>::place(16 * warp + g + 8 * h, j) + t] = dscore[j][h];
    __syncthreads();
}

// Queries and incoming gradients of one slice, under way when this returns.
template <typename T, int D>
__device__ __forceinline__ void copy_slice(const ck_attention_args &a, int first,
                                           typename ShortBackward<D>::Memory &memory) {
    constexpr int kQueries = ShortBackward<D>::kQueries;
    const int head = memory.head;
    const int64_t width = static_cast<int64_t>(a.heads) * D, begin = memory.run.begin;
    const T *const queries = static_cast<const T *>(a.qkv) + 3ll * begin * width + head * D;
    copy_rows<T, D>(memory.query, kQueries, queries, 3 * width, first, memory.run.rows);
    const T *const grads = static_cast<const T *>(a.grad) + begin * width + head * D;
    copy_rows<T, D>(memory.grad, kQueries, grads, width, first, memory.run.rows);
    commit_copies();
    const int row = first + threadIdx.x;
    if (threadIdx.x < kQueries)
        memory.lse[threadIdx.x] = row < memory.run.rows ? a.lse[head * a.tokens + begin + row] * kLog2E : 0.0f;
}

template <typename T, int D>
__device__ __forceinline__ void short_backward_run(const ck_attention_args &a,
                                                   typename ShortBackward<D>::Memory &memory) {
    using S = ShortBackward<D>;
    const Run &run = memory.run;
    const int &head = memory.head;
    memory.rows.fill(a, run);
    {
        const int64_t width = static_cast<int64_t>(a.heads) * D;
        const T *const keys = static_cast<const T *>(a.qkv) + 3ll * run.begin * width + width + head * D;
        const int padded = (run.rows + 15) & ~15;
        copy_rows<T, D>(memory.key, padded, keys, 3 * width, 0, run.rows);
        copy_rows<T, D>(memory.value, padded, keys + width, 3 * width, 0, run.rows);
        copy_slice<T, D>(a, 0, memory);
        if (a.cos) {
            wait_copies<0>();
            __syncthreads();
            rotate_rows<T, D>(memory.key, padded, a, memory.rows, 0);
        }
    }

    float dkey[D / 8][4] = {}, dvalue[D / 8][4] = {};
    int &first = memory.first[threadIdx.x / 32];
    if (threadIdx.x % 32 == 0) first = 0;
    __syncwarp();
#pragma unroll 1
    while (first < run.rows) {
        wait_copies<0>();
        if (a.cos) rotate_rows<T, D>(memory.query, S::kQueries, a, memory.rows, first);
        if (a.drop_threshold) {
            static_assert(S::kThreads >= S::kQueries * kRunTokens / 32);
            const int query = threadIdx.x / (kRunTokens / 32), word = threadIdx.x % (kRunTokens / 32);
            if (query < S::kQueries)
                memory.kept[query][word] =
                    kept_keys<32>(a, *a.seed, head, run.begin + first + query, run.begin + 32 * word);
        }
        __syncthreads();
        slice_gradients<T, D>(a, first, memory, dkey, dvalue);
        if (first + S::kQueries < run.rows) copy_slice<T, D>(a, first + S::kQueries, memory);
        // Slices take turns: half of the warps for one, the other half for the next
        constexpr int kUnits = D / 32 * (S::kQueries / 16);
        const int unit = (fresh_thread() / 32 + first / S::kQueries * kUnits) % S::kWarps, row16 = 16 * (unit % 2);
        if (unit < kUnits && first + row16 < run.rows) query_gradient<T, D>(a, first, row16, unit / 2, memory);
        __syncwarp();
        if (fresh_thread() % 32 == 0) first += S::kQueries;
        __syncwarp();
    }
    const int thread = fresh_thread(), g = thread % 32 / 4, t = thread % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int row = thread / 32 * 16 + g + 8 * h;
        const bool valid = row < run.rows;
#pragma unroll
        for (int j = 0; j < D / 8; ++j) dkey[j][2 * h] *= a.scale, dkey[j][2 * h + 1] *= a.scale;
        if (a.cos && valid) {
#pragma unroll
            for (int j = 0; j < D / 16; ++j)
                unrotate(dkey[j][2 * h], dkey[j][2 * h + 1], dkey[j + D / 16][2 * h], dkey[j + D / 16][2 * h + 1], a,
                         static_cast<int64_t>(memory.rows.position(row)) * (D / 2) + 8 * j + 2 * t);
        }
        T *const to = static_cast<T *>(a.dqkv) + ((3ll * (run.begin + row) + 1) * a.heads + head) * D;
        store_row<T, D>(dkey, h, 1.0f, to, valid);
        store_row<T, D>(dvalue, h, a.keep_scale, to + a.heads * D, valid);
    }
}

// CTAs as in the forward.
template <typename T, int D>
__device__ __forceinline__ void short_backward(const ck_attention_args &a) {
    extern __shared__ __align__(kTileAlignment) uint4 dynamic_memory[];
    auto &memory = *reinterpret_cast<typename ShortBackward<D>::Memory *>(dynamic_memory);
    const int head = blockIdx.x % a.heads;
    const int window = blockIdx.x / a.heads * kRunTokens;
    if (window >= a.tokens) {
        const int64_t width = static_cast<int64_t>(a.heads) * D;
        zero_rows_outside(a, static_cast<T *>(a.dqkv) + head * D, 3 * width, width, 3, D, nullptr, 0, a.tokens);
        return;
    }
    if (threadIdx.x == 0) memory.head = head, memory.window = window;
    memory.run.last = first_at_least(a.cu_seqlens, a.sequences, window);
    while (true) {
        __syncthreads();  // the run before this one is done with
        const int sequence = memory.run.last, end = memory.window + kRunTokens;
        if (sequence >= a.sequences || a.cu_seqlens[sequence] >= end) return;
        const Run run = next_run<kRunTokens>(a, sequence, end);
        __syncthreads();
        memory.run = run;
        __syncthreads();
        if (run.rows > 0) short_backward_run<T, D>(a, memory);
    }
}

}  // namespace ck
