// One row's loss from its logits: what all kernels of the family agree on.
//
// With logits l (after bias and softcap c * tanh(l / c)), their log-sum-exp, target t, smoothing s, vocabulary V:
//
//     loss = (1 - s) * (lse - l_t) + s * (lse - mean(l)) + z * lse^2
//     dl   = (1 + 2 z lse) * softmax(l) - (1 - s) * onehot_t - s / V      (times 1 - (l / c)^2 with softcap)
//
// A row that is ignored has loss and gradient 0. A label outside the vocabulary makes the row's loss NaN: nothing is
// read for it.
#pragma once

#include "../common/mma.cuh"
#include "../common/vector.cuh"

namespace ck {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kMinusInfinity = -__builtin_huge_valf();

// exp(x), where exp(0) is 1 to the bit
__device__ __forceinline__ float exp_fast(float x) { return fast_exp2(x * kLog2E); }

// A row's sums over columns: sum of exp(l - maximum), and of l.
struct RowSums {
    float maximum, exponentials, logits;
};

// tanh(x) = (1 - e) / (1 + e) with e = exp(-2 |x|): off by 1e-7 at most
__device__ __forceinline__ float tanh_exact(float x) {
    const float e = exp_fast(-2.0f * fabsf(x));
    return copysignf(__fdividef(1.0f - e, 1.0f + e), x);
}

// One rounding whatever surrounds it, so that equal logits stay equal: a hit is a comparison.
__device__ __forceinline__ float capped(float x, float softcap) {
    return __fmul_rn(softcap, tanh_exact(__fdividef(x, softcap)));
}

// The numbers of one 16-byte piece
template <typename T, int COUNT>
__device__ __forceinline__ void widen(uint4 raw, float (&x)[COUNT]) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
    if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (int c = 0; c < COUNT; ++c) x[c] = __uint_as_float(words[c]);
    } else {
#pragma unroll
        for (int i = 0; i < COUNT / 2; ++i) {
            const float2 pair = unpack2<T>(words[i]);
            x[2 * i] = pair.x, x[2 * i + 1] = pair.y;
        }
    }
}

template <int COUNT>
__device__ __forceinline__ void cap(float (&x)[COUNT], float softcap) {
#pragma unroll
    for (int c = 0; c < COUNT; ++c) x[c] = capped(x[c], softcap);
}

// A bias of the logits' type or fp32; COUNT is 1, or `column` a multiple of it and the bias aligned.
template <typename T, int COUNT>
__device__ __forceinline__ void add_bias(const ck_loss_args &a, int column, float (&x)[COUNT]) {
    if constexpr (COUNT == 1) {
        float one[1];
        load_parameter<T>(a.bias, a.bias_dtype, column, one);
        x[0] += one[0];
    } else if (sizeof(T) == 4 || a.bias_dtype == CK_F32) {
#pragma unroll
        for (int c = 0; c < COUNT; c += 4) {  // four at a time: registers are short
            float four[4];
            load(static_cast<const float *>(a.bias) + column + c, four);
#pragma unroll
            for (int i = 0; i < 4; ++i) x[c + i] += four[i];
        }
    } else {
        float more[COUNT];
        widen<T>(*reinterpret_cast<const uint4 *>(static_cast<const T *>(a.bias) + column), more);
#pragma unroll
        for (int c = 0; c < COUNT; ++c) x[c] += more[c];
    }
}

// What turns a logit into its gradient: d = scale * exp(l - shift) - smooth, minus hit at the target; times the slope
// of the softcap.
struct Gradient {
    float shift, scale, smooth, hit;

    __device__ __forceinline__ Gradient(const ck_loss_args &a, float lse, float shift_, float inverse_sum)
        : shift(shift_) {
        const float share = *a.share;
        scale = share * fmaf(2.0f * a.z, lse, 1.0f) * inverse_sum;
        smooth = share * a.smoothing / a.vocabulary;
        hit = share * (1.0f - a.smoothing);
    }

    template <int COUNT>
    __device__ __forceinline__ void apply(const ck_loss_args &a, int target, float (&x)[COUNT]) const {
#pragma unroll
        for (int c = 0; c < COUNT; ++c) {
            float d = fmaf(scale, exp_fast(x[c] - shift), -smooth);
            if (c == target) d -= hit;
            if (a.softcap > 0.0f) {
                const float share_of_cap = __fdividef(x[c], a.softcap);
                d *= fmaf(-share_of_cap, share_of_cap, 1.0f);
            }
            x[c] = d;
        }
    }
};

// -1 for a label outside the vocabulary
__device__ __forceinline__ int label_of(const ck_loss_args &a, int64_t row) {
    const int64_t label = a.labels[row];
    return label >= 0 && label < a.vocabulary ? static_cast<int>(label) : -1;
}

// Writes what one row contributes; one thread calls it.
__device__ __forceinline__ void put_stats(const ck_loss_args &a, int64_t row, float lse, float loss, float hit) {
    const float z = a.z * lse * lse;
    a.lse[row] = lse;
    a.stats[row] = loss, a.stats[a.total + row] = z, a.stats[2 * a.total + row] = hit;
}

__device__ __forceinline__ void put_row(const ck_loss_args &a, int64_t row, RowSums sums, float target) {
    const float log_sum = logf(sums.exponentials);
    float loss = (sums.maximum - target) + log_sum;  // lse - target would carry the rounding of a large lse
    if (a.smoothing > 0.0f)
        loss = fmaf(a.smoothing, ((sums.maximum - sums.logits / a.vocabulary) + log_sum) - loss, loss);
    put_stats(a, row, sums.maximum + log_sum, loss, target == sums.maximum ? 1.0f : 0.0f);
}

}  // namespace ck
