"""How fast a machine multiplies and copies: measured here, or what is attainable of a data sheet's figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cramming_train.calibration import copy_bytes_per_second, gemm_flops_per_second
from cramming_train.parts import PARTS, Part
from cramming_train.recipes.bundle import lookup

# Of large 16-bit products, NVIDIA's data-centre parts reach 80.3 % (H100 SXM) to 86.9 % (A100 SXM) of the data sheet:
# "Maximum Achievable Matmul FLOPS" in S. Bekman's Machine Learning Engineering Open Book (measured; torch 2.5 to 2.7).
GEMM_SHARE = 0.80
# Of the bandwidth on the data sheet a plain copy seldom reaches more than 80 %: NVIDIA's developer forum, "How to
# achieve peak memory bandwidth" (topic 49320).
COPY_SHARE = 0.80
# Held by the driver and by the libraries' workspaces as soon as a process uses the card: an assumption.
CONTEXT_BYTES = 1 << 30


@dataclass(frozen=True)
class Machine:
    """One device that a run is predicted for."""

    name: str
    device_type: str
    gemm: Callable[[torch.dtype], float]  # FLOP/s of large products in a format
    copy: float  # bytes/s, those read and those written
    memory: int | None  # bytes that a run may use; None where that is not asked
    source: str  # of the rates, in words
    has_bf16: bool = True

    def dtype(self, precision: str) -> torch.dtype:
        """The format that a recipe's precision comes to here, as :class:`cramming_train.precision.Precision` has it."""
        if self.device_type == "cpu" or precision == "fp32":
            return torch.float32
        return torch.bfloat16 if precision == "bf16" and self.has_bf16 else torch.float16


def tabulated(name: str) -> Machine:
    """A part by its name; UsageError that lists the known ones."""
    part: Part = lookup("--gpu", name, PARTS)

    def gemm(dtype: torch.dtype) -> float:
        return GEMM_SHARE * 1e12 * (part.fp32_tflops if dtype == torch.float32 else part.tensor_tflops)

    # a "24 GB" card has 24 * 2^30 bytes, of which drivers and error correction keep some: 10^9 is on the safe side
    return Machine(
        name, "cuda", gemm, COPY_SHARE * 1e9 * part.memory_gbs, part.memory_gb * 10**9 - CONTEXT_BYTES,
        f"data sheet of {name}, not measured: {GEMM_SHARE:.0%} of {part.tensor_tflops:g} TFLOP/s (16 bit, fp32 sums) "
        f"and {COPY_SHARE:.0%} of {part.memory_gbs:g} GB/s taken as attainable; {part.memory_gb} GB of memory",
        part.has_bf16,
    )  # fmt: skip


def measured(device: torch.device, name: str) -> Machine:
    """The present device. The rate of products is measured when first asked for, once a format."""
    found: dict[torch.dtype, float] = {}

    def gemm(dtype: torch.dtype) -> float:
        if dtype not in found:
            found[dtype] = gemm_flops_per_second(device, dtype)
        return found[dtype]

    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        free = free_bytes(device)
    else:
        has_bf16, free = True, None
    return Machine(name, device.type, gemm, copy_bytes_per_second(device), free, f"measured on {name}", has_bf16)


def free_bytes(device: torch.device) -> int:
    """Memory of the card that this process holds or could get now."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
