// Runs: consecutive whole sequences of together at most kRunTokens tokens (or so many as the kernel says), which one CTA
// attends to at once.
//
// A CTA is given a window of tokens and takes the sequences that begin there, run after run. Within a run a token is a
// row, and a row sees the rows of its own sequence, less what the window and the key mask hide.
#pragma once

#include "../api.h"

namespace ck {

constexpr int kRunTokens = 128;

// The first of cu_seqlens[0 .. count) that is at least `token`, or count; called by whole warps.
__device__ __forceinline__ int first_at_least(const int32_t *cu_seqlens, int count, int token) {
    int low = 0, high = count;
    while (low < high) {
        const int step = (high - low + 31) / 32, at = low + static_cast<int>(threadIdx.x % 32) * step;
        const int less = __popc(__ballot_sync(0xffffffffu, at < high && cu_seqlens[at] < token));
        if (less == 0) break;
        high = min(high, low + less * step);
        low += (less - 1) * step + 1;
    }
    return low;
}

struct Run {
    int first, last;  // sequences
    int begin;        // token
    int rows;
};

// The run that begins with sequence `first`, of sequences that begin before token `end`, of at most TOGETHER tokens; a
// sequence that is a run by itself may have LONGEST. Called by whole warps.
template <int TOGETHER, int LONGEST = TOGETHER>
__device__ __forceinline__ Run next_run(const ck_attention_args &a, int first, int end) {
    const int begin = a.cu_seqlens[first];
    int last = first;
    for (int fits = 32; fits == 32; last += fits) {
        const int sequence = last + threadIdx.x % 32;
        const bool takes = sequence < a.sequences && a.cu_seqlens[sequence] < end &&
                           a.cu_seqlens[sequence + 1] - begin <= TOGETHER;
        fits = __popc(__ballot_sync(0xffffffffu, takes));
    }
    last = max(last, first + 1);  // a sequence longer than was promised: cut off, rather than never done with
    return {first, last, begin, min(a.cu_seqlens[last] - begin, LONGEST)};
}

// In shared memory: where each row's sequence begins and ends, in rows of the run, and which keys the key mask shows.
template <int TOKENS, typename Index = uint8_t>
struct RunRows {
    static_assert(TOKENS <= static_cast<Index>(-1));
    Index start[TOKENS], end[TOKENS];
    uint32_t shown[TOKENS / 32];

    // Called by the whole CTA; a barrier must follow. Rows beyond the run see nothing.
    __device__ __forceinline__ void fill(const ck_attention_args &a, const Run &run) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
        for (int sequence = run.first + warp; sequence < run.last; sequence += warps) {
            const int from = a.cu_seqlens[sequence] - run.begin;
            const int to = min(a.cu_seqlens[sequence + 1] - run.begin, run.rows);
            for (int row = from + lane; row < to; row += 32) start[row] = from, end[row] = to;
        }
        for (int row = run.rows + threadIdx.x; row < TOKENS; row += blockDim.x) start[row] = end[row] = row;
        for (int word = warp; word < TOKENS / 32; word += warps) {
            const int row = 32 * word + lane;
            const bool show = row < run.rows && (!a.key_mask || a.key_mask[run.begin + row]);
            const uint32_t bits = __ballot_sync(0xffffffffu, show);
            if (lane == 0) shown[word] = bits;
        }
    }

    // In its sequence; 0 beyond the run.
    __device__ __forceinline__ int position(int row) const { return row - start[row]; }
    // The keys that a row sees are among [low, high).
    __device__ __forceinline__ int low(int row, int window) const {
        return window < 0 ? start[row] : max(static_cast<int>(start[row]), row - window);
    }
    __device__ __forceinline__ int high(int row, int window) const {
        return window < 0 ? end[row] : min(static_cast<int>(end[row]), row + window + 1);
    }

    // Every row sees every row: one sequence that fills the run.
    __device__ __forceinline__ bool is_full(const ck_attention_args &a) const {
        return start[0] == 0 && end[0] == TOKENS && (a.window < 0 || a.window >= TOKENS - 1) && !a.key_mask;
    }
};

// Bits i < n of a word.
__device__ __forceinline__ uint32_t bits_below(int n) { return n <= 0 ? 0 : n >= 32 ? 0xffffffffu : (1u << n) - 1; }

}  // namespace ck
