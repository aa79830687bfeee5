"""GELU and its derivative inside kernels: the same formulas as csrc/common/gelu.cuh."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gelu(x, TANH: tl.constexpr, ACCURATE: tl.constexpr):
    """(GELU(x), GELU'(x)) of fp32 x. ACCURATE: to fp32's last bits; else below 3e-7, far under half a 16-bit step."""
    if TANH:
        square = x * x
        inner = 0.79788456080286536 * x * (1.0 + 0.044715 * square)  # sqrt(2 / pi)
        # 1 - 2 / (exp(2 u) + 1) has an absolute error of a few 1e-8 everywhere: good enough for fp32 too
        t = 1.0 - 2.0 / (tl.exp2(2.8853900817779268 * inner) + 1.0)
        cdf = 0.5 * t + 0.5
        slope = cdf + 0.5 * x * (1.0 - t * t) * (0.79788456080286536 * (1.0 + 0.134145 * square))
    else:
        gauss = tl.exp2(-0.72134752044448170 * x * x)  # exp(-x^2 / 2)
        if ACCURATE:
            erf = tl.erf(x * 0.70710678118654752)
        else:  # Abramowitz and Stegun 7.1.26
            t = 1.0 / (1.0 + 0.3275911 * tl.abs(x) * 0.70710678118654752)
            poly = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
            erf = 1.0 - poly * gauss
            erf = tl.where(x < 0.0, -erf, erf)
        cdf = 0.5 * erf + 0.5
        slope = cdf + 0.39894228040143268 * x * gauss
    return x * cdf, slope
