// The gradient of sequences of at most 512 tokens with five products, in one kernel and with nothing added in memory:
//
//     P = exp(scale * Q K^T - lse),  delta = rowsum(dO * O),  dS = P * (drop(dO V^T) - delta),
//     dV = drop(P)^T dO,  dK = scale * dS^T Q,  dQ = scale * dS K
//
// A CTA holds 256 keys and values, and streams the queries that see them past, 32 at a time. A warp owns 32 keys: two
// tiles of rows of P^T and dS^T, so that what it loads of queries serves two products each, and dK and dV in registers.
// dS goes through shared memory, for dQ, where all warps share the work.
//
// A sequence of more than 256 tokens has two blocks of keys, one after the other, so that dQ has two terms. The first
// waits for the second where dQ will be, in 16 bits: one rounding more, and half the traffic that 32 bits would be.
#pragma once

#include "band.cuh"
#include "short_forward.cuh"

namespace ck {

template <int D>
struct MidBackward {
    static constexpr int kKeys = 256, kRows = kKeys, kLongest = 2 * kKeys, kWarps = 8, kThreads = 32 * kWarps;
    static constexpr int kQueries = 32;  // of a slice
    static constexpr int kResident = 1;  // eight warps that share all registers
    using Scores = Tile<kQueries>;
    using Rows = RunRows<kLongest, uint16_t>;
    struct Slice {
        uint4 query[kQueries * D / 8], grad[kQueries * D / 8];
    };
    struct Memory {
        uint4 key[kKeys * D / 8], value[kKeys * D / 8];
        Slice slice[2];
        uint4 dscore[kKeys * kQueries / 8];  // [key][query]
        float lse[2][kQueries], delta[2][kQueries];
        Rows rows;
        Run run;
    };
};

template <typename T, int D>
__host__ __device__ constexpr bool is_mid() {
#if __CUDA_ARCH__ == 750
    return false;
#else
    return D <= 64;
#endif
}

// What a CTA is at: a head, and the first of its keys. Rows are counted from the beginning of the run.
struct MidPlace {
    int head, block;
};

// Queries that see keys of a block: slices from `low`, up to `high`.
struct Seers {
    int low, high;

    template <typename Memory>
    __device__ __forceinline__ Seers(const ck_attention_args &a, const Memory &memory, int block, int keys, int queries)
        : low(memory.rows.low(block, a.window) & ~(queries - 1)),
          high(memory.rows.high(min(block + keys, memory.run.rows) - 1, a.window)) {}
};

// Queries `first`.. and their gradients, under way when this returns, and this thread's piece of `out`.
template <typename T, int D>
__device__ __forceinline__ uint4 start_slice(const ck_attention_args &a, const MidPlace &at, int first, int buffer,
                                             typename MidBackward<D>::Memory &memory) {
    using M = MidBackward<D>;
    constexpr int kPieces = D / 8;
    const int64_t width = static_cast<int64_t>(a.heads) * D;
    const int begin = memory.run.begin, rows = memory.run.rows, thread = fresh_thread();
    typename M::Slice &slice = memory.slice[buffer];
    copy_tokens<T, D, M::kQueries, M::kThreads>(slice.query, static_cast<const T *>(a.qkv) + at.head * D, 3 * width,
                                                begin + first, begin, begin + rows);
    const int row = thread / kPieces, piece = thread % kPieces;
    const bool valid = first + row < rows;
    const int64_t from = (begin + (valid ? first + row : 0)) * width + at.head * D + 8 * piece;
    uint4 out = make_uint4(0, 0, 0, 0);
    if (row < M::kQueries) {
        copy_async(slice.grad + Tile<D>::place(row, piece), static_cast<const T *>(a.grad) + from, valid);
        if (valid) out = load_piece(static_cast<const T *>(a.out) + from);
    }
    commit_copies();
    if (thread < M::kQueries) {
        const int token = begin + first + thread;
        memory.lse[buffer][thread] = first + thread < rows ? a.lse[at.head * a.tokens + token] * kLog2E : 0.0f;
    }
    return out;
}

// What this thread has copied has come: queries are rotated, and rows of gradients and `out` multiplied.
template <typename T, int D>
__device__ __forceinline__ void finish_slice(const ck_attention_args &a, int first, int buffer, uint4 out,
                                             typename MidBackward<D>::Memory &memory) {
    using M = MidBackward<D>;
    constexpr int kPieces = D / 8;
    wait_copies<0>();
    typename M::Slice &slice = memory.slice[buffer];
    if (a.cos) rotate_rows<T, D>(slice.query, M::kQueries, a, memory.rows, first);
    const int thread = fresh_thread(), row = thread / kPieces, piece = thread % kPieces;
    if (row >= M::kQueries) return;  // whole warps
    float x[8], y[8], sum = 0.0f;
    unpack<T>(slice.grad[Tile<D>::place(row, piece)], x);
    unpack<T>(out, y);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = fmaf(x[i], y[i], sum);
#pragma unroll
    for (int i = 1; i < kPieces; i *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, i);
    if (piece == 0) memory.delta[buffer][row] = sum;
}

// 32 rows, from `row`, of one tile times the 32 rows of another.
template <typename T, int D>
__device__ __forceinline__ void tall_product(int row, float (&sums)[2][4][4], const uint4 *rows, const uint4 *slice) {
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int c = 0; c < 4; ++c) sums[m][j][c] = 0.0f;
    const int lane = fresh_lane();
    const uint32_t first = Tile<D>::along(lane, rows) + row * (2 * D), second = Tile<D>::across(lane, slice);
#pragma unroll
    for (int s = 0; s < D / 16; ++s) {
        uint32_t x[2][4];
        load_matrices(x[0], Tile<D>::at(first, 0, 2 * s));
        load_matrices(x[1], Tile<D>::at(first, 16, 2 * s));
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
            uint32_t y[4];
            load_matrices(y, Tile<D>::at(second, 8 * j, 2 * s));
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                mma<T>(sums[m][j], x[m], y[0], y[1]);
                mma<T>(sums[m][j + 1], x[m], y[2], y[3]);
            }
        }
    }
}

// Of a query, a lane's: which of the 32 keys from `key` on it sees.
template <typename Rows>
__device__ __forceinline__ uint32_t seen_of(const ck_attention_args &a, const Rows &rows, int query, int key) {
    return bits_below(rows.high(query, a.window) - key) & ~bits_below(rows.low(query, a.window) - key) &
           rows.shown[key / 32];
}

// One slice's share of dK and dV of this warp's keys, and its rows of dS^T to shared memory.
template <typename T, int D>
__device__ __forceinline__ void add_slice(const ck_attention_args &a, const MidPlace &at, int first, int buffer,
                                          typename MidBackward<D>::Memory &memory, float (&dkey)[2][D / 8][4],
                                          float (&dvalue)[2][D / 8][4]) {
    using M = MidBackward<D>;
    constexpr int kTiles = M::kQueries / 8;
    const typename M::Slice &slice = memory.slice[buffer];
    const typename M::Rows &rows = memory.rows;
    const int own = 32 * (fresh_thread() / 32), key = at.block + own, count = memory.run.rows;
    // Seeing is mutual. What comes later is of no one's concern but this warp's, up to the next barrier
    if (key >= count || rows.low(key, a.window) >= first + M::kQueries ||
        rows.high(min(key + 31, count - 1), a.window) <= first)
        return;
    const bool covers = rows.low(first + M::kQueries - 1, a.window) <= key &&
                        rows.high(first, a.window) >= key + 32 && rows.shown[key / 32] == 0xffffffffu;
    uint32_t probability[2][kTiles][2];  // P^T: keys g and g + 8 of a tile, queries 2t and 2t + 1 of another
    {
        float p[2][kTiles][4];
        tall_product<T, D>(own, p, memory.key, slice.query);
        const float factor = a.scale * kLog2E;
        const int lane = fresh_lane(), g = lane / 4, t = lane % 4;
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
            const float2 lse = *reinterpret_cast<const float2 *>(memory.lse[buffer] + 8 * j + 2 * t);
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
                for (int c = 0; c < 4; ++c)
                    p[m][j][c] = fast_exp2(fmaf(p[m][j][c], factor, c % 2 ? -lse.y : -lse.x));
        }
        if (!covers) {
            const uint32_t seen = seen_of(a, rows, first + lane, key);
#pragma unroll
            for (int j = 0; j < kTiles; ++j)
#pragma unroll
                for (int c = 0; c < 2; ++c) {
                    const uint32_t word = __shfl_sync(0xffffffffu, seen, 8 * j + 2 * t + c) >> g;
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        float &x = p[i / 2][j][i % 2 * 2 + c];
                        x = word >> (8 * i) & 1 ? x : 0.0f;
                    }
                }
        }
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int j = 0; j < kTiles; ++j)
#pragma unroll
                for (int h = 0; h < 2; ++h) probability[m][j][h] = pack2<T>(p[m][j][2 * h], p[m][j][2 * h + 1]);
    }
    uint32_t dscore[2][kTiles][2], kept = 0;  // kept: a lane's query, keys of the warp
    {
        float dp[2][kTiles][4];
        tall_product<T, D>(own, dp, memory.value, slice.grad);
        const int lane = fresh_lane(), g = lane / 4, t = lane % 4;
        if (a.drop_threshold) {
            const int begin = memory.run.begin;
            kept = kept_keys<32>(a, *a.seed, at.head, begin + first + lane, begin + key);
#pragma unroll
            for (int j = 0; j < kTiles; ++j)
#pragma unroll
                for (int c = 0; c < 2; ++c) {
                    const uint32_t word = __shfl_sync(0xffffffffu, kept, 8 * j + 2 * t + c) >> g;
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        dp[i / 2][j][i % 2 * 2 + c] *= word >> (8 * i) & 1 ? a.keep_scale : 0.0f;
                }
        }
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
            const float2 delta = *reinterpret_cast<const float2 *>(memory.delta[buffer] + 8 * j + 2 * t);
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const float2 p = unpack2<T>(probability[m][j][h]);
                    dscore[m][j][h] =
                        pack2<T>(p.x * (dp[m][j][2 * h] - delta.x), p.y * (dp[m][j][2 * h + 1] - delta.y));
                }
        }
    }
    const int lane = fresh_lane(), g = lane / 4, t = lane % 4;
    if (a.drop_threshold) {
#pragma unroll
        for (int j = 0; j < kTiles; ++j)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                const uint32_t word = __shfl_sync(0xffffffffu, kept, 8 * j + 2 * t + c) >> g;
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    if (!(word >> (8 * i) & 1)) probability[i / 2][j][i % 2] &= 0xffff0000u >> (16 * c);
            }
    }
    const uint32_t dscores = shared_address(memory.dscore) + 16 * M::Scores::place(own + g, 0) + 4 * t;
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int j = 0; j < kTiles; ++j)
#pragma unroll
            for (int h = 0; h < 2; ++h) store_word(M::Scores::at(dscores, 16 * m + 8 * h, j), dscore[m][j][h]);
    const uint32_t grads = Tile<D>::along(lane, slice.grad), queries = Tile<D>::along(lane, slice.query);
#pragma unroll
    for (int j = 0; j < kTiles; j += 2)
#pragma unroll
        for (int d = 0; d < D / 8; d += 2) {
            uint32_t x[4], y[4];
            load_matrices_transposed(x, Tile<D>::at(grads, 8 * j, d));
            load_matrices_transposed(y, Tile<D>::at(queries, 8 * j, d));
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                const uint32_t of_value[4] = {probability[m][j][0], probability[m][j][1], probability[m][j + 1][0],
                                              probability[m][j + 1][1]};
                const uint32_t of_key[4] = {dscore[m][j][0], dscore[m][j][1], dscore[m][j + 1][0], dscore[m][j + 1][1]};
                mma<T>(dvalue[m][d], of_value, x[0], x[1]);
                mma<T>(dvalue[m][d + 1], of_value, x[2], x[3]);
                mma<T>(dkey[m][d], of_key, y[0], y[1]);
                mma<T>(dkey[m][d + 1], of_key, y[2], y[3]);
            }
        }
}

// This block's term of dQ of 16 queries of a slice and 32 columns: 16 * unit.. and as many D / 2 further on, so that
// rotation finds both. Two warps take turns at the keys, and each stores what is in its half of the rows. `more`: the
// other block's term is there already.
template <typename T, int D>
__device__ __forceinline__ void add_query_gradient(const ck_attention_args &a, const MidPlace &at, int first,
                                                   int buffer, bool more, typename MidBackward<D>::Memory &memory) {
    using M = MidBackward<D>;
    constexpr int kPairs = D / 32 * (M::kQueries / 16);
    static_assert(2 * kPairs <= M::kWarps);
    const int warp = fresh_thread() / 32, pair = warp / 2, half = warp % 2, row16 = 16 * (pair % 2), unit = pair / 2;
    const int lane = fresh_lane(), g = lane / 4, t = lane % 4, begin = first + row16, count = memory.run.rows;
    if (pair >= kPairs || begin >= count) return;
    const int row = begin + g + 8 * half;
    T *const to = static_cast<T *>(a.dqkv) + (3ll * (memory.run.begin + row) * a.heads + at.head) * D + 16 * unit +
                  8 * (t % 2) + t / 2 * (D / 2);
    uint4 before = make_uint4(0, 0, 0, 0);
    if (more && row < count) before = load_piece(to);
    const int tiles[4] = {2 * unit, 2 * unit + 1, 2 * unit + D / 16, 2 * unit + 1 + D / 16};
    const int low = (max(memory.rows.low(begin, a.window), at.block) - at.block) & ~15;
    const int high = min(memory.rows.high(min(begin + 15, count - 1), a.window) - at.block, M::kKeys);
    float sums[4][4] = {};
    const uint32_t dscores = M::Scores::across(lane, memory.dscore) ^ row16 / 8 << 4;
    const uint32_t keys = Tile<D>::along(lane, memory.key);
#pragma unroll 2
    for (int key = low + 16 * half; key < high; key += 32) {
        uint32_t p[4], b[4];
        load_matrices_transposed(p, M::Scores::at(dscores, key, 0));
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            load_matrices_transposed(b, Tile<D>::at(keys, key, tiles[i]));
            mma<T>(sums[i], p, b[0], b[1]);
            mma<T>(sums[i + 1], p, b[2], b[3]);
        }
    }
    // Queries and gradients of this slice are done with: it is where the two warps exchange what the other stores
    float mine[8], other[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float upper = sums[i / 2][i % 2], lower = sums[i / 2][2 + i % 2];
        mine[i] = half ? lower : upper, other[i] = half ? upper : lower;
    }
    float *const exchange = reinterpret_cast<float *>(&memory.slice[buffer]);
    static_assert(sizeof(typename M::Slice) >= 2 * kPairs * 8 * 32 * sizeof(float));
    put_shared(exchange + 256 * warp, lane, other);
    asm volatile("bar.sync %0, 64;" ::"r"(1 + pair) : "memory");
    get_shared(exchange + 256 * (warp ^ 1), lane, other);
#pragma unroll
    for (int i = 0; i < 8; ++i) mine[i] = (mine[i] + other[i]) * a.scale;
    if (a.cos && row < count) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
            unrotate(mine[2 * i], mine[2 * i + 1], mine[2 * i + 4], mine[2 * i + 5], a,
                     static_cast<int64_t>(memory.rows.position(row)) * (D / 2) + 8 * tiles[i] + 2 * t);
    }
    if (more) {
        uint32_t w[4] = {before.x, before.y, before.z, before.w};
        transpose_quad(w);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float2 two = unpack2<T>(w[i]);
            mine[2 * i] += two.x, mine[2 * i + 1] += two.y;
        }
    }
    uint32_t w[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = pack2<T>(mine[2 * i], mine[2 * i + 1]);
    transpose_quad(w);
    if (row < count) store_piece(to, w);
}

template <typename T, int D>
__device__ __forceinline__ void mid_backward_block(const ck_attention_args &a, const MidPlace &at,
                                                   typename MidBackward<D>::Memory &memory) {
    using M = MidBackward<D>;
    const int begin = memory.run.begin, count = memory.run.rows;
    const Seers seers(a, memory, at.block, M::kKeys, M::kQueries);
    // The later block came first: from here on its terms of dQ are there
    const int later = at.block + M::kKeys;
    const int there = count > later ? Seers(a, memory, later, M::kKeys, M::kQueries).low : count;
    {
        const int64_t width = static_cast<int64_t>(a.heads) * D;
        const T *const keys = static_cast<const T *>(a.qkv) + width + at.head * D;
        const int first = begin + at.block, end = begin + count;
        copy_tokens<T, D, M::kKeys, M::kThreads>(memory.key, keys, 3 * width, first, begin, end);
        copy_tokens<T, D, M::kKeys, M::kThreads>(memory.value, keys + width, 3 * width, first, begin, end);
        const uint4 out = start_slice<T, D>(a, at, seers.low, 0, memory);
        finish_slice<T, D>(a, seers.low, 0, out, memory);
        if (a.cos) rotate_rows<T, D>(memory.key, min(M::kKeys, count - at.block), a, memory.rows, at.block);
    }
    float dkey[2][D / 8][4] = {}, dvalue[2][D / 8][4] = {};
#pragma unroll 1
    for (int first = seers.low, buffer = 0; first < seers.high; first += M::kQueries, buffer ^= 1) {
        __syncthreads();  // this slice has come, and dS of the one before is done with
        const bool more = first + M::kQueries < seers.high;
        uint4 out = make_uint4(0, 0, 0, 0);
        if (more) out = start_slice<T, D>(a, at, first + M::kQueries, buffer ^ 1, memory);
        add_slice<T, D>(a, at, first, buffer, memory, dkey, dvalue);
        __syncthreads();  // dS is there
        add_query_gradient<T, D>(a, at, first, buffer, first >= there, memory);
        if (more) finish_slice<T, D>(a, first + M::kQueries, buffer ^ 1, out, memory);
    }
    const int lane = fresh_lane(), g = lane / 4, t = lane % 4;
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = at.block + 32 * (fresh_thread() / 32) + 16 * m + g + 8 * h;
            const bool valid = row < count;
#pragma unroll
            for (int j = 0; j < D / 8; ++j) dkey[m][j][2 * h] *= a.scale, dkey[m][j][2 * h + 1] *= a.scale;
            if (a.cos && valid) {
#pragma unroll
                for (int j = 0; j < D / 16; ++j) {
                    float(&x)[4] = dkey[m][j], (&y)[4] = dkey[m][j + D / 16];
                    unrotate(x[2 * h], x[2 * h + 1], y[2 * h], y[2 * h + 1], a,
                             static_cast<int64_t>(memory.rows.position(row)) * (D / 2) + 8 * j + 2 * t);
                }
            }
            T *const to = static_cast<T *>(a.dqkv) + ((3ll * (begin + row) + 1) * a.heads + at.head) * D;
            store_row<T, D>(dkey[m], h, 1.0f, to, valid);
            store_row<T, D>(dvalue[m], h, a.keep_scale, to + a.heads * D, valid);
        }
}

// CTAs: for each window of kKeys tokens all heads. One takes the sequences that begin there, and what is outside.
template <typename T, int D>
__device__ __forceinline__ void mid_backward(const ck_attention_args &a) {
    using M = MidBackward<D>;
    extern __shared__ __align__(kTileAlignment) uint4 dynamic_memory[];
    auto &memory = *reinterpret_cast<typename M::Memory *>(dynamic_memory);
    const int head = blockIdx.x % a.heads, window = blockIdx.x / a.heads * M::kKeys;
    const int64_t width = static_cast<int64_t>(a.heads) * D, end = static_cast<int64_t>(window) + M::kKeys;
    T *const out = static_cast<T *>(a.dqkv) + head * D;
    zero_rows_outside(a, out, 3 * width, width, 3, D, nullptr, window, min(end, a.tokens));
    int sequence = first_at_least(a.cu_seqlens, a.sequences, window);
    while (sequence < a.sequences && a.cu_seqlens[sequence] < end) {
        const Run run = next_run<M::kKeys, M::kLongest>(a, sequence, static_cast<int>(end));
        sequence = run.last;
        if (run.rows == 0) continue;
        __syncthreads();  // the run before this one is done with
        if (threadIdx.x == 0) memory.run = run;
        memory.rows.fill(a, run);
        int block = run.rows > M::kKeys ? M::kKeys : 0;
#pragma unroll 1
        for (; block >= 0; block -= M::kKeys) {
            __syncthreads();  // the block before this one is done with
            mid_backward_block<T, D>(a, {head, block}, memory);
        }
    }
}

}  // namespace ck
