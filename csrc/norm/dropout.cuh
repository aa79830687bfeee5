// Dropout of a row in a layout: the masks of cramkernels/reference/philox.py.
#pragma once

#include "../common/philox.cuh"
#include "layout.cuh"

namespace ck {

template <typename L>
struct Dropout {
    static constexpr int C = L::kCount;
    uint64_t seed;
    uint32_t threshold;
    float keep_scale;
    int64_t row;
    uint32_t kept;  // element by element: one bit a vector, drawn in a loop that is not unrolled

    __device__ Dropout(const ck_norm_args &a, bool used)
        : seed(used && a.drop_threshold ? *a.seed : 0), threshold(used ? a.drop_threshold : 0), keep_scale(a.keep_scale) {}

    __device__ void begin(int64_t next_row) {
        row = next_row;
        if constexpr (C == 1) {
            static_assert(L::kVectors <= 32);
            kept = 0;
            if (threshold) {
#pragma unroll 1
                for (int v = 0; v < L::kVectors; ++v)
                    kept |= static_cast<uint32_t>(word(L::column(v)) >= threshold) << v;
            }
        }
    }

    __device__ void apply(int v, float (&x)[C]) const {
        if (!threshold) return;
        if constexpr (C == 1) {
            x[0] *= kept >> v & 1 ? keep_scale : 0.0f;
        } else {
#pragma unroll
            for (int i = 0; i < C; i += 4) {
                const Words words = draw(L::column(v) + i);
#pragma unroll
                for (int j = 0; j < 4; ++j) x[i + j] *= words.w[j] >= threshold ? keep_scale : 0.0f;
            }
        }
    }

  private:
    __device__ Words draw(int column) const {
        return philox({{static_cast<uint32_t>(column) / 4, static_cast<uint32_t>(row), 0, kElementwiseStream}}, seed);
    }
    __device__ uint32_t word(int column) const {
        const Words words = draw(column);
        const uint32_t low = column & 1 ? words.w[1] : words.w[0], high = column & 1 ? words.w[3] : words.w[2];
        return column & 2 ? high : low;
    }
};

}  // namespace ck
