// Dropout of attention probabilities: the masks of cramkernels/reference/philox.py, up to 32 keys of a query at a time.
#pragma once

#include "../api.h"
#include "../common/philox.cuh"

namespace ck {

constexpr uint32_t kAttentionStream = 0;

// Bit i < COUNT: the probability of key token `key + i` for query token `query` is kept.
template <int COUNT>
__device__ __forceinline__ uint32_t kept_keys(const ck_attention_args &a, uint64_t seed, int head, int64_t query, int64_t key) {
    uint32_t bits = 0;
    const int skip = static_cast<int>(key & 3);  // four keys share a counter
#pragma unroll 1
    for (int i = -skip; i < COUNT; i += 4) {
        const Words words = philox({{static_cast<uint32_t>((key + i) >> 2), static_cast<uint32_t>(query),
                                     static_cast<uint32_t>(head), kAttentionStream}},
                                   seed);
        uint32_t four = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) four |= static_cast<uint32_t>(words.w[j] >= a.drop_threshold) << j;
        bits |= i < 0 ? four >> -i : four << i;
    }
    return bits;
}

}  // namespace ck
