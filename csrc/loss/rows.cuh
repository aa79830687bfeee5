// The loss of a row of logits, and their gradient in the logits' place: one read, one write.
//
// A CTA of 512 threads owns a row. Each thread keeps PIECES pieces of 16 bytes in registers, as they were read (a logit
// is widened, biased and capped again when the gradient is made), and what is longer in its own slots of dynamic shared
// memory; what is longer still it reads a second time. Rows start at multiples of 16 bytes: `stride` sees to that,
// whatever the vocabulary. Columns beyond the vocabulary are read, never used, and not written.
#pragma once

#include "../common/reduce.cuh"
#include "row.cuh"

namespace ck {

constexpr int kLossThreads = 512, kLossWarps = kLossThreads / 32;
constexpr int kLossSharedPieces = 4032;  // 63 KB: sm_75 has 64

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    return x;
}

template <typename T, int COUNT>
__device__ __forceinline__ void finish_logits(const ck_loss_args &a, int column, float (&x)[COUNT]) {
    if (a.bias) add_bias<T>(a, column, x);
    if (a.softcap > 0.0f) cap(x, a.softcap);
}

// A thread's running sums, with the maximum of its own columns so far
template <int COUNT>
__device__ __forceinline__ void accumulate(const ck_loss_args &a, const float (&x)[COUNT], RowSums &sums) {
    float maximum = sums.maximum;
#pragma unroll
    for (int c = 0; c < COUNT; ++c) maximum = fmaxf(maximum, x[c]);
    float total = sums.exponentials * exp_fast(sums.maximum - maximum);
#pragma unroll
    for (int c = 0; c < COUNT; ++c) total += exp_fast(x[c] - maximum);
    sums.maximum = maximum, sums.exponentials = total;
    if (a.smoothing > 0.0f) {
#pragma unroll
        for (int c = 0; c < COUNT; ++c) sums.logits += x[c];
    }
}

template <typename T>
__device__ __forceinline__ void accumulate_piece(const ck_loss_args &a, uint4 raw, int piece, RowSums &sums) {
    float x[kPerAccess<T>];
    widen<T>(raw, x);
    finish_logits<T>(a, piece * kPerAccess<T>, x);
    accumulate(a, x, sums);
}

// The sums of a row, in every thread
__device__ __forceinline__ RowSums over_threads(RowSums mine, float (&slots)[3][kLossWarps]) {
    RowSums all;
    const int warp = threadIdx.x / 32;
    const float highest = warp_max(mine.maximum);
    if (threadIdx.x % 32 == 0) slots[0][warp] = highest;
    __syncthreads();
    all.maximum = slots[0][0];
#pragma unroll
    for (int w = 1; w < kLossWarps; ++w) all.maximum = fmaxf(all.maximum, slots[0][w]);
    // A thread without columns has sum 0 at maximum -inf: exp(-inf) of it is 0
    all.exponentials = mine.exponentials * exp_fast(mine.maximum - all.maximum), all.logits = mine.logits;
    float(&rest)[2][kLossWarps] = reinterpret_cast<float(&)[2][kLossWarps]>(slots[1]);
    row_sums<kLossWarps>(all.exponentials, all.logits, rest);
    return all;
}

template <typename T>
__device__ __forceinline__ void put_gradient(const ck_loss_args &a, uint4 raw, int piece, int label,
                                             const Gradient &gradient, T *logits) {
    float x[kPerAccess<T>];
    widen<T>(raw, x);
    const int column = piece * kPerAccess<T>;
    finish_logits<T>(a, column, x);
    gradient.apply(a, label - column, x);
    store(logits + column, x);
}

template <typename T>
__device__ __forceinline__ void ignore_row(const ck_loss_args &a, int64_t row, T *logits) {
    if (threadIdx.x == 0) a.lse[row] = a.stats[row] = a.stats[a.total + row] = a.stats[2 * a.total + row] = 0.0f;
    if (!a.write) return;
    constexpr int COUNT = kPerAccess<T>;
    const float zeros[COUNT] = {};
    const int whole = a.vocabulary / COUNT;
    for (int piece = threadIdx.x; piece < whole; piece += kLossThreads) store(logits + piece * COUNT, zeros);
    const int column = whole * COUNT + threadIdx.x;
    if (column < a.vocabulary) logits[column] = from_float<T>(0.0f);
}

template <typename T>
__device__ __forceinline__ float target_logit(const ck_loss_args &a, const T *logits, int64_t row) {
    const int label = label_of(a, row);
    if (label < 0) return __int_as_float(0x7fffffff);  // NaN
    float x[1];
    load(logits + label, x);
    finish_logits<T>(a, label, x);
    return x[0];
}

template <typename T, int PIECES, bool LONG>
__device__ __forceinline__ void loss_row(const ck_loss_args &a) {
    constexpr int COUNT = kPerAccess<T>;
    extern __shared__ uint4 beyond[];
    __shared__ float slots[3][kLossWarps], target;
    const int64_t row = a.first + blockIdx.x;
    T *logits = static_cast<T *>(a.logits) + blockIdx.x * a.stride;
    if (a.labels[row] == a.ignore_index) return ignore_row(a, row, logits);

    const uint4 *from = reinterpret_cast<const uint4 *>(logits);
    const int pieces = a.vocabulary / COUNT;
    const int last = pieces * COUNT + threadIdx.x;  // the columns after the last whole piece: one a thread
    if (threadIdx.x == 0) target = target_logit(a, logits, row);  // before it is overwritten
    uint4 held[PIECES];
#pragma unroll
    for (int v = 0; v < PIECES; ++v)
        if (v * kLossThreads + threadIdx.x < pieces) held[v] = from[v * kLossThreads + threadIdx.x];
    RowSums sums = {kMinusInfinity, 0.0f, 0.0f};
    if (last < a.vocabulary) {
        float x[1];
        load(logits + last, x);
        finish_logits<T>(a, last, x);
        accumulate(a, x, sums);
    }
#pragma unroll
    for (int v = 0; v < PIECES; ++v) {
        const int piece = v * kLossThreads + threadIdx.x;
        if (piece < pieces) accumulate_piece<T>(a, held[v], piece, sums);
    }
    if constexpr (LONG) {
        for (int piece = PIECES * kLossThreads + threadIdx.x; piece < pieces; piece += kLossThreads) {
            const uint4 raw = from[piece];
            const int slot = piece - PIECES * kLossThreads;
            if (slot < kLossSharedPieces) beyond[slot] = raw;
            accumulate_piece<T>(a, raw, piece, sums);
        }
    }
    sums = over_threads(sums, slots);
    if (threadIdx.x == 0) put_row(a, row, sums, target);
    if (!a.write) return;

    const float lse = sums.maximum + logf(sums.exponentials);
    const Gradient gradient(a, lse, sums.maximum, 1.0f / sums.exponentials);
    const int label = label_of(a, row);
    if (last < a.vocabulary) {
        float x[1];
        load(logits + last, x);  // its sector again: to keep it would cost the register that spills
        finish_logits<T>(a, last, x);
        gradient.apply(a, label - last, x);
        store(logits + last, x);
    }
#pragma unroll
    for (int v = 0; v < PIECES; ++v) {
        const int piece = v * kLossThreads + threadIdx.x;
        if (piece < pieces) put_gradient<T>(a, held[v], piece, label, gradient, logits);
    }
    if constexpr (LONG) {
        for (int piece = PIECES * kLossThreads + threadIdx.x; piece < pieces; piece += kLossThreads) {
            const int slot = piece - PIECES * kLossThreads;
            put_gradient<T>(a, slot < kLossSharedPieces ? beyond[slot] : from[piece], piece, label, gradient, logits);
        }
    }
}

}  // namespace ck
