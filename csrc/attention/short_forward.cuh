// Attention of sequences of at most 128 tokens: keys and values of a run resident in shared memory, scores of 16 queries
// against all of them in a warp's registers, so that softmax is plain: one maximum, one sum.
#pragma once

#include "dropout.cuh"
#include "rows.cuh"
#include "run.cuh"

namespace ck {

// sm_75 has no shared memory for wide heads
template <typename T, int D>
__host__ __device__ constexpr bool is_served() {
#if __CUDA_ARCH__ == 750
    return D <= 64 && is_multiplied<T, D>();
#else
    return true;
#endif
}

template <int D>
struct ShortForward {
    static constexpr int kRows = kRunTokens, kThreads = 256;  // at most; fewer warps take more turns
#if __CUDA_ARCH__ == 750
    static constexpr int kResident = D > 32 ? 1 : 2;  // CTAs of a multiprocessor that shared memory has room for
#else
    static constexpr int kResident = D > 64 ? 1 : 2;
#endif
    struct Memory {
        uint4 key[kRunTokens * D / 8], value[kRunTokens * D / 8];
        RunRows<kRunTokens> rows;
    };
};

// Rows `first`.. of the run to rows 0.. of a tile, zeros beyond the run. `from` is the run's first row. A thread copies
// pieces of columns c and c + D / 2, which rotate_rows, called by the same threads, needs together.
template <typename T, int D>
__device__ __forceinline__ void copy_rows(uint4 *tile, int count, const T *from, int64_t step, int first, int rows) {
    constexpr int kPairs = D / 16;
#pragma unroll 1
    for (int i = fresh_thread(); i < count * kPairs; i += blockDim.x) {
        const int row = i / kPairs, piece = i % kPairs;
        const bool valid = first + row < rows;
        const T *const piece_from = from + (valid ? first + row : 0) * step + 8 * piece;
        copy_async(tile + Tile<D>::place(row, piece), piece_from, valid);
        copy_async(tile + Tile<D>::place(row, piece + kPairs), piece_from + D / 2, valid);
    }
}

// The rotation of what this thread has copied, and waited for.
template <typename T, int D, typename Rows>
__device__ __forceinline__ void rotate_rows(uint4 *tile, int count, const ck_attention_args &a, const Rows &rows, int first) {
    constexpr int kPairs = D / 16;
#pragma unroll 1
    for (int i = fresh_thread(); i < count * kPairs; i += blockDim.x) {
        const int row = i / kPairs, piece = i % kPairs;
        uint4 &low = tile[Tile<D>::place(row, piece)], &high = tile[Tile<D>::place(row, piece + kPairs)];
        uint4 x = low, y = high;
        rotate<T>(x, y, a, static_cast<int64_t>(rows.position(first + row)) * (D / 2) + 8 * piece);
        low = x, high = y;
    }
}

// Rows outside every sequence give zeros: those of tokens `from` .. to - 1.
template <typename T>
__device__ __forceinline__ void zero_rows_outside(const ck_attention_args &a, T *out, int64_t step, int64_t part,
                                                  int parts, int width, float *lse, int64_t from, int64_t to) {
    const int64_t before = min(max(static_cast<int64_t>(a.cu_seqlens[0]), from), to) - from;
    const int64_t after = min(max(static_cast<int64_t>(a.cu_seqlens[a.sequences]), from), to);
    const int64_t count = before + to - after;
    const int pieces = width / 8 * parts;
    for (int64_t i = threadIdx.x; i < count * pieces; i += blockDim.x) {
        const int64_t outside = i / pieces, row = outside < before ? from + outside : outside - before + after;
        const int piece = static_cast<int>(i % pieces);
        *reinterpret_cast<uint4 *>(out + row * step + piece / (width / 8) * part + piece % (width / 8) * 8) =
            make_uint4(0, 0, 0, 0);
    }
    if (!lse) return;
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) lse[i < before ? from + i : i - before + after] = 0.0f;
}

template <typename T, int D>
__device__ __forceinline__ void attend(const ck_attention_args &a, const Run &run, const RunRows<kRunTokens> &rows, int head,
                                       int block, bool full, const uint4 *key, const uint4 *value) {
    constexpr int kTiles = kRunTokens / 8, kSteps = D / 16;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int64_t step = 3ll * a.heads * D;
    const int row[2] = {16 * block + g, 16 * block + g + 8};
    const float factor = a.scale * kLog2E;

    uint32_t query[kSteps][4];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        uint4 pieces[D / 32];
        const T *const from = static_cast<const T *>(a.qkv) + (run.begin + row[h]) * step + head * D;
        load_row<T, D>(from, row[h] < run.rows, pieces);
        if (a.cos) rotate_row<T, D>(a, rows.position(row[h]), pieces);
        to_fragments<D>(pieces, h, query);
    }

    // Keys that any of these queries sees; the last row of a block may lie beyond the run
    const int first = full ? 0 : rows.low(16 * block, a.window);
    const int last = full ? kRunTokens : rows.high(min(16 * block + 15, run.rows - 1), a.window);
    float score[kTiles][4] = {};
    const uint32_t keys = Tile<D>::across(lane, key);
#pragma unroll
    for (int j = 0; j < kTiles; j += 2) {
        if (8 * j + 16 <= first || 8 * j >= last) continue;
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
            uint32_t b[4];
            load_matrices(b, Tile<D>::at(keys, 8 * j, 2 * s));
            mma<T>(score[j], query[s], b[0], b[1]);
            mma<T>(score[j + 1], query[s], b[2], b[3]);
        }
    }
    const float infinity = __int_as_float(0x7f800000);
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
        for (int c = 0; c < 4; ++c) score[j][c] *= factor;
    if (!full) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int low = rows.low(row[h], a.window), high = rows.high(row[h], a.window);
#pragma unroll
            for (int w = 0; w < kTiles / 4; ++w) {
                const uint32_t seen =
                    (bits_below(high - 32 * w) & ~bits_below(low - 32 * w) & rows.shown[w]) >> (2 * t);
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    float &x = score[4 * w + i / 2][2 * h + i % 2];
                    x = seen >> (8 * (i / 2) + i % 2) & 1 ? x : -infinity;
                }
            }
        }
    }

    float inverse[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float highest = -infinity;
#pragma unroll
        for (int j = 0; j < kTiles; ++j) highest = fmaxf(highest, fmaxf(score[j][2 * h], score[j][2 * h + 1]));
        highest = quad_max(highest);
        if (highest == -infinity) highest = 0.0f;  // it sees no key: all its probabilities are 0
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < kTiles; ++j)
#pragma unroll
            for (int c = 2 * h; c < 2 * h + 2; ++c) sum += score[j][c] = fast_exp2(score[j][c] - highest);
        sum = quad_sum(sum);
        inverse[h] = sum == 0.0f ? 0.0f : 1.0f / sum;
        const float lse = sum == 0.0f ? 0.0f : (highest + log2f(sum)) * kLn2;
        if (t == 0 && row[h] < run.rows) a.lse[head * a.tokens + run.begin + row[h]] = lse;
    }
    if (a.drop_threshold) {
        const uint64_t seed = *a.seed;
        // a lane draws for row lane / 2 of the block, two words of 32 keys; quads ask for theirs
        uint32_t kept[2];
#pragma unroll
        for (int i = 0; i < 2; ++i)
            kept[i] = kept_keys<32>(a, seed, head, run.begin + 16 * block + lane / 2, run.begin + 32 * (lane % 2 * 2 + i));
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            inverse[h] *= a.keep_scale;
#pragma unroll
            for (int w = 0; w < kTiles / 4; ++w) {
                const uint32_t bits = __shfl_sync(0xffffffffu, kept[w % 2], 2 * (g + 8 * h) + w / 2) >> (2 * t);
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    float &x = score[4 * w + i / 2][2 * h + i % 2];
                    x = bits >> (8 * (i / 2) + i % 2) & 1 ? x : 0.0f;
                }
            }
        }
    }

    float out[D / 8][4] = {};
    const uint32_t values = Tile<D>::along(lane, value);
#pragma unroll
    for (int j = 0; j < kTiles; j += 2) {
        if (8 * j + 16 <= first || 8 * j >= last) continue;
        const uint32_t p[4] = {pack2<T>(score[j][0], score[j][1]), pack2<T>(score[j][2], score[j][3]),
                               pack2<T>(score[j + 1][0], score[j + 1][1]), pack2<T>(score[j + 1][2], score[j + 1][3])};
#pragma unroll
        for (int d = 0; d < D / 8; d += 2) {
            uint32_t b[4];
            load_matrices_transposed(b, Tile<D>::at(values, 8 * j, d));
            mma<T>(out[d], p, b[0], b[1]);
            mma<T>(out[d + 1], p, b[2], b[3]);
        }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        T *const to = static_cast<T *>(a.out) + (static_cast<int64_t>(run.begin + row[h]) * a.heads + head) * D;
        store_row<T, D>(out, h, inverse[h], to, row[h] < run.rows);
    }
}

// CTAs: for each window of kRunTokens tokens, and one for the rows outside every sequence, all heads.
template <typename T, int D>
__device__ __forceinline__ void short_forward(const ck_attention_args &a) {
    extern __shared__ __align__(kTileAlignment) uint4 dynamic_memory[];
    auto &memory = *reinterpret_cast<typename ShortForward<D>::Memory *>(dynamic_memory);
    const int head = blockIdx.x % a.heads;
    const int window = blockIdx.x / a.heads * kRunTokens;
    if (window >= a.tokens) {
        T *const out = static_cast<T *>(a.out) + head * D;
        zero_rows_outside(a, out, static_cast<int64_t>(a.heads) * D, 0, 1, D, a.lse + head * a.tokens, 0, a.tokens);
        return;
    }
    int sequence = first_at_least(a.cu_seqlens, a.sequences, window);
    while (sequence < a.sequences && a.cu_seqlens[sequence] < window + kRunTokens) {
        const Run run = next_run<kRunTokens>(a, sequence, window + kRunTokens);
        sequence = run.last;
        if (run.rows == 0) continue;
        __syncthreads();  // the run before this one is done with
        memory.rows.fill(a, run);
        const int64_t width = static_cast<int64_t>(a.heads) * D;
        const T *const keys = static_cast<const T *>(a.qkv) + 3ll * run.begin * width + width + head * D;
        const int padded = (run.rows + 15) & ~15;
        copy_rows<T, D>(memory.key, padded, keys, 3 * width, 0, run.rows);
        commit_copies();
        copy_rows<T, D>(memory.value, padded, keys + width, 3 * width, 0, run.rows);
        commit_copies();
        if (a.cos) {
            wait_copies<1>();
            __syncthreads();
            rotate_rows<T, D>(memory.key, padded, a, memory.rows, 0);
        }
        wait_copies<0>();
        __syncthreads();
        const bool full = memory.rows.is_full(a);
        for (int block = threadIdx.x / 32; 16 * block < run.rows; block += blockDim.x / 32)
            attend<T, D>(a, run, memory.rows, head, block, full, memory.key, memory.value);
    }
}

}  // namespace ck
