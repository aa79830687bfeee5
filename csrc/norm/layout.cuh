// How a row of up to CAPACITY elements lies on threads.
//
// Up to 1024 elements one warp owns a row: no barrier, sums by shuffles, ROWS rows a CTA. Longer rows take a whole CTA.
// Rows are dealt out to the CTAs one by one: few rows still reach all multiprocessors, many reach each alike.
// Thread t holds elements [(v * threads + t) * COUNT, + COUNT) for v < VECTORS: neighbours in a warp touch neighbouring
// 16-byte pieces. "any", for widths or addresses that 16-byte accesses cannot serve, has COUNT = 1.
#pragma once

#include "../common/vector.cuh"

namespace ck {

// Longest rows by the name in a kernel's symbol; "any" is for 8192 too, element by element.
constexpr int width_768 = 768, width_1024 = 1024, width_8192 = 8192, width_any = 0;
constexpr int kMaxWidth = 8192;

template <typename T, int CAPACITY, int ROWS = 4>
struct Layout {
    static constexpr bool kOneWarp = CAPACITY != width_any && CAPACITY <= 1024;
    static constexpr int kWarps = kOneWarp ? 1 : 16;  // of a row
    static constexpr int kCount = CAPACITY == width_any ? 1 : kPerAccess<T>;
    static constexpr int kCapacity = CAPACITY == width_any ? kMaxWidth : CAPACITY;
    static constexpr int kVectors = kCapacity / (32 * kWarps * kCount);
    static constexpr int kRows = kOneWarp ? ROWS : 1;  // of a CTA, at a time
    static constexpr int kThreads = 32 * kWarps * kRows;
    static constexpr int kShared = kOneWarp ? kCapacity : 1;  // floats of a parameter in shared memory

    __device__ static int64_t first_row() {
        return static_cast<int64_t>(threadIdx.x / 32 % kRows) * gridDim.x + blockIdx.x;
    }
    __device__ static int64_t row_step() { return static_cast<int64_t>(gridDim.x) * kRows; }
    __device__ static int column(int vector) {
        const int thread = kOneWarp ? threadIdx.x % 32 : threadIdx.x;
        return (vector * 32 * kWarps + thread) * kCount;
    }
};

}  // namespace ck
