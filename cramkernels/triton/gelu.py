"""GELU and its derivative inside kernels: the same formulas as csrc/common/gelu.cuh, which explains them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gelu(x, TANH: tl.constexpr):
    """(GELU(x), GELU'(x)) of fp32 x, without a branch; errors below 3e-7 for |x| <= 8."""
    if TANH:
        square = x * x
        e = tl.exp2(-2.3022081988774434 * tl.abs(x) * (1.0 + 0.044715 * square))
        r = 1.0 / (1.0 + e)
        cdf = tl.where(x < 0.0, e * r, r)
        slope = cdf + x * e * r * r * (1.5957691216057308 * (1.0 + 0.134145 * square))
    else:
        t = 1.0 / (1.0 + 0.55 * 0.70710678118654752 * tl.abs(x))
        p = 0.10732421253721867 * t - 0.5180373294346868
        p = p * t + 0.7597131391369601
        p = p * t - 0.04142529501375836
        p = p * t + 0.3908418167253445
        p = p * t + 0.301583472873022
        gauss = tl.exp2(-0.72134752044448170 * x * x)
        cut = 0.5 * t * p * gauss
        cdf = tl.where(x < 0.0, cut, 1.0 - cut)
        slope = cdf + 0.39894228040143268 * x * gauss
    return x * cdf, slope
