// GELU and its derivative, exact (erf) and by tanh.
#pragma once

namespace ck {

struct Gelu {
    float value, slope;
};

// ACCURATE: to fp32's last bits, for fp32 tensors. Else the error is below 3e-7, far under half a 16-bit step.
template <bool ACCURATE>
__device__ __forceinline__ Gelu gelu_erf(float x) {
    constexpr float kRsqrt2 = 0.70710678118654752f, kRsqrt2Pi = 0.39894228040143268f;
    const float gauss = exp2f(-0.72134752044448170f * x * x);  // exp(-x^2 / 2)
    float erf_z;
    if constexpr (ACCURATE) {
        erf_z = erff(x * kRsqrt2);
    } else {
        // Abramowitz and Stegun 7.1.26: erf(z) = 1 - t (a1 + .. + a5 t^4) exp(-z^2), t = 1 / (1 + p z), z >= 0.
        // exp(-z^2) is the Gauss curve that the slope needs as well.
        const float z = fabsf(x) * kRsqrt2;
        const float t = __fdividef(1.0f, fmaf(0.3275911f, z, 1.0f));
        float poly = fmaf(1.061405429f, t, -1.453152027f);
        poly = fmaf(poly, t, 1.421413741f);
        poly = fmaf(poly, t, -0.284496736f);
        poly = fmaf(poly, t, 0.254829592f);
        erf_z = copysignf(fmaf(-poly * t, gauss, 1.0f), x);
    }
    const float cdf = fmaf(0.5f, erf_z, 0.5f);
    return {x * cdf, fmaf(x * kRsqrt2Pi, gauss, cdf)};
}

template <bool ACCURATE>
__device__ __forceinline__ Gelu gelu_tanh(float x) {
    constexpr float kBeta = 0.79788456080286536f, kCubic = 0.044715f;  // sqrt(2 / pi)
    const float square = x * x;
    const float inner = kBeta * x * fmaf(kCubic, square, 1.0f);
    float t;
    if constexpr (ACCURATE)
        t = tanhf(inner);
    else
        t = 1.0f - __fdividef(2.0f, exp2f(2.8853900817779268f * inner) + 1.0f);  // 2 log2(e); inf and 0 are right too
    const float cdf = fmaf(0.5f, t, 0.5f);
    const float inner_slope = kBeta * fmaf(3.0f * kCubic, square, 1.0f);
    return {x * cdf, fmaf(0.5f * x * (1.0f - t * t), inner_slope, cdf)};
}

template <bool ACCURATE>
__device__ __forceinline__ Gelu gelu(float x, bool use_tanh) {
    return use_tanh ? gelu_tanh<ACCURATE>(x) : gelu_erf<ACCURATE>(x);
}

}  // namespace ck
