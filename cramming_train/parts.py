"""What data sheets say of GPUs, none of it measured here; :mod:`cramming_train.rates` says what is attainable."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One GPU: dense matrix rates in 16 bit with fp32 sums and in plain fp32 (TFLOP/s), GB/s and GB of memory."""

    tensor_tflops: float
    fp32_tflops: float
    memory_gbs: float
    memory_gb: int
    has_bf16: bool = True


# NVIDIA's data sheets and architecture white papers (Turing, Ampere GA102, Ada, Blackwell RTX, A100, H100, H200), at
# boost clock and without sparsity. GeForce cards multiply 16-bit matrices at half rate where sums are fp32, as here.
PARTS = {
    "t4": Part(65, 8.1, 320, 16, has_bf16=False),
    "rtx2080ti": Part(53.8, 13.4, 616, 11, has_bf16=False),
    "rtx3060": Part(25.6, 12.7, 360, 12),
    "rtx3080": Part(59.5, 29.8, 760, 10),
    "rtx3090": Part(71, 35.6, 936, 24),
    "rtx4070": Part(58.3, 29.1, 504, 12),
    "rtx4080": Part(97.5, 48.7, 717, 16),
    "rtx4090": Part(165.2, 82.6, 1008, 24),
    "rtx5090": Part(209.5, 104.8, 1792, 32),
    "a4000": Part(76.7, 19.2, 448, 16),
    "a6000": Part(154.8, 38.7, 768, 48),
    "a10": Part(125, 31.2, 600, 24),
    "l4": Part(121, 30.3, 300, 24),
    "l40s": Part(362, 91.6, 864, 48),
    "a100": Part(312, 19.5, 1555, 40),
    "a100-80gb": Part(312, 19.5, 2039, 80),
    "h100": Part(989, 67, 3350, 80),
    "h200": Part(989, 67, 4800, 141),
}
