"""Other people's kernels for the same operations, where they are installed: each a function of the same inputs.

A peer that is not installed is simply not there; a benchmark names those that it ran.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

LIGER, FLASH, COMPILED = "liger", "flash-attn", "compiled"
UNCAPTURED = (LIGER,)  # may read a value on the host, which a CUDA graph cannot hold: its launches are timed instead
Functions = dict[str, Callable[..., Tensor]]


def flash_attention(cu_seqlens: Tensor, length: int) -> Functions:
    """Packed queries, keys and values."""
    try:
        from flash_attn import flash_attn_varlen_qkvpacked_func
    except ImportError:
        return {}
    return {FLASH: lambda qkv: flash_attn_varlen_qkvpacked_func(qkv, cu_seqlens, length)}


def liger_layer_norm(eps: float) -> Functions:
    """LayerNorm with weight and bias."""
    try:
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction
    except ImportError:
        return {}
    return {LIGER: lambda x, weight, bias: LigerLayerNormFunction.apply(x, weight, bias, eps)}


def liger_geglu() -> Functions:
    """On the halves of one tensor; the gated one is its first argument, and tanh its only GELU."""
    try:
        from liger_kernel.ops.geglu import LigerGELUMulFunction
    except ImportError:
        return {}

    def run(x: Tensor) -> Tensor:
        linear, gated = x.chunk(2, dim=-1)
        return LigerGELUMulFunction.apply(gated, linear)

    return {LIGER: run}


def liger_loss(positions: Tensor, labels: Tensor) -> Functions:
    """The fused linear cross-entropy, of the masked rows."""
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction
    except ImportError:
        return {}
    return {
        LIGER: lambda hidden, weight: LigerFusedLinearCrossEntropyFunction.apply(hidden[positions], weight, labels)[0]
    }
