"""What hypothesis tests share: bounded, repeatable runs, and random tensors drawn from a seed."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.cramkernels.cases import cumulative

bounded = settings(
    max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
seeds = st.integers(0, 2**32 - 1)
lengths = st.lists(st.integers(0, 9), min_size=1, max_size=5)


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Standard normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def packed(lengths: list[int], seed: int, heads: int = 2, head_dim: int = 8, dtype=torch.float64):
    """(qkv, cu_seqlens, max_seqlen) of random sequences."""
    qkv = random(sum(lengths), 3, heads, head_dim, seed=seed, dtype=dtype)
    return qkv, cumulative(lengths), max(lengths)


def with_gradient(function, x: torch.Tensor, seed: int = 77) -> tuple[torch.Tensor, torch.Tensor]:
    """(function(x), gradient of x) for a random incoming gradient, drawn row by row so that rows can be permuted."""
    x = x.detach().clone().requires_grad_()
    out = function(x)
    (gradient,) = torch.autograd.grad(out, x, random(*out.shape, seed=seed, dtype=out.dtype))
    return out.detach(), gradient


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-11) -> None:
    """Equal up to rounding in fp64, relative to magnitudes of about one."""
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
