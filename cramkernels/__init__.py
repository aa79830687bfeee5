"""Fused operations for pretraining BERT-class models: attention, the LayerNorm/GELU family and a sparse-token MLM loss.

Every operation is forward and backward, works on packed tokens, never synchronises with the host, and is served by
the best backend that the tensor's device has (see :func:`backend_for` and ``python -m cramkernels.info``).
Shape letters: T packed tokens, H heads, D head dim, N hidden, F FFN width, M masked rows, V vocabulary.
"""

from cramkernels.activation import geglu
from cramkernels.attention import attention, attention_with_lse, rotary
from cramkernels.dispatch import BackendChoice, backend_for, use_backend
from cramkernels.mlm_loss import MLMLoss, mlm_loss
from cramkernels.normalization import add_layer_norm, gelu_layer_norm, layer_norm, layer_norm_gelu
from cramkernels.packing import PackedBatch, pack_padded, token_positions

__all__ = [
    "BackendChoice",
    "MLMLoss",
    "PackedBatch",
    "add_layer_norm",
    "attention",
    "attention_with_lse",
    "backend_for",
    "geglu",
    "gelu_layer_norm",
    "layer_norm",
    "layer_norm_gelu",
    "mlm_loss",
    "pack_padded",
    "rotary",
    "token_positions",
    "use_backend",
]
