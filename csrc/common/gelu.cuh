// GELU and its derivative, exact (erf) and by tanh, in fp32 and without a branch.
//
// Both are written for the half x < 0, where nothing cancels: with q the share that is cut off at |x|, the cumulative
// distribution is q for negative and 1 - q for positive x. Errors stay below 3e-7 for |x| <= 8.
#pragma once

namespace ck {

struct Gelu {
    float value, slope;
};

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ Gelu gelu_erf(float x) {
    // erfc(z) = t P(t) exp(-z^2) with t = 1 / (1 + 0.55 z): a minimax fit of degree 5, off by 1.7e-8 (z >= 0)
    const float z = fabsf(x) * 0.70710678118654752f;
    const float t = __fdividef(1.0f, fmaf(0.55f, z, 1.0f));
    float p = fmaf(0.10732421253721867f, t, -0.5180373294346868f);
    p = fmaf(p, t, 0.7597131391369601f);
    p = fmaf(p, t, -0.04142529501375836f);
    p = fmaf(p, t, 0.3908418167253445f);
    p = fmaf(p, t, 0.301583472873022f);
    const float gauss = exp2_fast(-0.72134752044448170f * x * x);  // exp(-z^2), which the slope needs as well
    const float cut = 0.5f * t * p * gauss;
    const float cdf = x < 0.0f ? cut : 1.0f - cut;
    return {x * cdf, fmaf(x * 0.39894228040143268f, gauss, cdf)};  // 1 / sqrt(2 pi)
}

__device__ __forceinline__ Gelu gelu_tanh(float x) {
    // (1 + tanh u) / 2 is the logistic function of 2 u, with u = sqrt(2 / pi) (x + 0.044715 x^3)
    const float square = x * x;
    const float e = exp2_fast(-2.3022081988774434f * fabsf(x) * fmaf(0.044715f, square, 1.0f));  // exp(-2 |u|)
    const float r = __fdividef(1.0f, 1.0f + e);
    const float cdf = x < 0.0f ? e * r : r;
    // (1 - tanh^2) / 2 = 2 e / (1 + e)^2
    const float inner_slope = 1.5957691216057308f * fmaf(0.134145f, square, 1.0f);
    return {x * cdf, fmaf(x * e * r * r, inner_slope, cdf)};
}

// COUNT neighbours: one branch for all of them, the same for the whole launch.
template <int COUNT>
__device__ __forceinline__ void gelu(const float (&x)[COUNT], bool use_tanh, Gelu (&out)[COUNT]) {
    if (use_tanh) {
#pragma unroll
        for (int c = 0; c < COUNT; ++c) out[c] = gelu_tanh(x[c]);
    } else {
#pragma unroll
        for (int c = 0; c < COUNT; ++c) out[c] = gelu_erf(x[c]);
    }
}

}  // namespace ck
