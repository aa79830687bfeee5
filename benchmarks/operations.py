"""Every operation as training calls it, beside the same mathematics in plain PyTorch and what peers have for it.

Shared by the CPU and the GPU benchmarks. Shapes are those of crammed-bert and crammed-bert-mini: rows of 128 tokens,
head dim 64, GEGLU over four times the hidden width, a quarter of the tokens masked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

import cramkernels
from benchmarks import peers

EPS, HEAD_DIM, LENGTH = 1e-12, 64, 128
DIRECTIONS, STEP = ("forward", "backward"), "step"  # a step: both together
FAMILIES = {
    "attention": "attention", "rotary": "attention",
    "layer_norm": "rows", "add_layer_norm": "rows", "layer_norm_gelu": "rows", "gelu_layer_norm": "rows",
    "geglu": "rows", "mlm_loss": "loss", "mlm_loss_recompute": "loss",
}  # fmt: skip
# Activations and gradients of one size that each direction has to read or write once
TENSORS = {
    "attention": (4, 7), "rotary": (6, 6), "layer_norm": (2, 3), "add_layer_norm": (4, 4), "layer_norm_gelu": (2, 3),
    "gelu_layer_norm": (2, 3), "geglu": (3, 5),
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """Tokens T, hidden N, vocabulary V."""

    tokens: int
    width: int
    vocabulary: int = 32768

    @property
    def inner(self) -> int:
        """Width of GEGLU's output."""
        return 2 * self.width

    @property
    def masked(self) -> int:
        """Rows that the loss sees."""
        return self.tokens // 4


@dataclass(frozen=True)
class Problem:
    """One operation on one set of inputs: functions of ``leaves`` by implementer, ours among them."""

    leaves: tuple[Tensor, ...]
    functions: dict[str, Callable[..., Tensor]]

    def forward(self, who: str) -> Callable[[], object]:
        """A call without gradients."""

        def run() -> Tensor:
            with torch.no_grad():
                return self.functions[who](*self.leaves)

        return run

    def step(self, who: str) -> Callable[[], object]:
        """A call of the forward and the backward, of a fixed random gradient."""
        function = self.functions[who]
        with torch.no_grad():
            upstream = [torch.randn_like(output) for output in _outputs(function(*self.leaves))]
        return lambda: torch.autograd.grad(_outputs(function(*self.leaves)), self.leaves, upstream)


def _outputs(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


@dataclass(frozen=True)
class Operation:
    """An entry of the list."""

    name: str
    shape: Shape

    def __str__(self) -> str:
        return f"{self.name}-{self.shape.tokens}x{self.shape.width}"

    @property
    def family(self) -> str:
        """Its picture."""
        return FAMILIES[self.name]

    def compulsory(self, direction: str, itemsize: int) -> int:
        """Bytes of every activation and gradient, each moved once; of the loss, whose floor is its products, 0."""
        if self.name not in TENSORS:
            return 0
        if direction == STEP:
            return sum(self.compulsory(each, itemsize) for each in DIRECTIONS)
        width = self.shape.inner if self.name == "geglu" else self.shape.width
        size = self.shape.tokens * width * itemsize
        statistics = 4 * self.shape.tokens * self.shape.width // HEAD_DIM if self.name == "attention" else 0
        return TENSORS[self.name][DIRECTIONS.index(direction)] * size + statistics

    def flops(self, direction: str) -> int:
        """Of the products: attention's two and five; of the loss one and two."""
        s = self.shape
        if direction == STEP:
            return sum(map(self.flops, DIRECTIONS))
        if self.name == "attention":
            return (2, 5)[DIRECTIONS.index(direction)] * 2 * s.tokens * LENGTH * s.width
        if self.family == "loss":
            return (1, 2)[DIRECTIONS.index(direction)] * 2 * s.masked * s.vocabulary * s.width
        return 0

    def problem(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Problem:
        """Inputs of its own; the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)

        def leaf(*sizes: int, scale: float = 1.0) -> Tensor:
            x = torch.randn(*sizes, generator=generator) * scale
            return x.to(device, dtype).requires_grad_()

        make = {"attention": _attention, "rotary": _rotary, "geglu": _geglu}.get(self.name, _norm)
        if self.family == "loss":
            make = partial(_loss, mode="recompute" if self.name.endswith("recompute") else "chunked")
        return make(self.name, self.shape, leaf, generator, device)


def operations(shape: Shape) -> list[Operation]:
    """All of them."""
    return [Operation(name, shape) for name in FAMILIES]


def _sequences(shape: Shape, device: torch.device) -> Tensor:
    return torch.arange(0, shape.tokens + 1, LENGTH, dtype=torch.int32, device=device)


def _attention(name: str, shape: Shape, leaf, generator, device) -> Problem:
    heads, cu_seqlens = shape.width // HEAD_DIM, _sequences(shape, device)

    def eager(qkv: Tensor) -> Tensor:
        q, k, v = qkv.view(-1, LENGTH, 3, heads, HEAD_DIM).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)

    def ours(qkv: Tensor) -> Tensor:
        return cramkernels.attention(qkv, cu_seqlens, LENGTH)

    more = peers.flash_attention(cu_seqlens, LENGTH) if device.type == "cuda" else {}
    return Problem((leaf(shape.tokens, 3, heads, HEAD_DIM),), {"ours": ours, "eager": eager, **more})


def _rotary(name: str, shape: Shape, leaf, generator, device) -> Problem:
    heads, cu_seqlens = shape.width // HEAD_DIM, _sequences(shape, device)
    angles = torch.rand(LENGTH, HEAD_DIM // 2, generator=generator).to(device) * 6.28
    cos, sin = angles.cos(), angles.sin()

    def eager(qkv: Tensor) -> Tensor:
        rows = qkv.view(-1, LENGTH, 3, heads, HEAD_DIM)
        c, s = cos.to(qkv.dtype)[:, None, None], sin.to(qkv.dtype)[:, None, None]
        first, second = rows[:, :, :2].chunk(2, dim=-1)
        turned = torch.cat([first * c - second * s, second * c + first * s], dim=-1)
        return torch.cat([turned, rows[:, :, 2:]], dim=2).view_as(qkv)

    def ours(qkv: Tensor) -> Tensor:
        return cramkernels.rotary(qkv, cos, sin, cu_seqlens)

    return Problem((leaf(shape.tokens, 3, heads, HEAD_DIM),), {"ours": ours, "eager": eager})


def _norm(name: str, shape: Shape, leaf, generator, device) -> Problem:
    width, operation = shape.width, getattr(cramkernels, name)
    x, weight, bias = leaf(shape.tokens, width), leaf(width), leaf(width)
    residual = leaf(shape.tokens, width).detach()

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (width,), weight, bias, EPS)

    if name == "add_layer_norm":
        return Problem((x, weight, bias), {
            "ours": lambda x, w, b: operation(x, residual, w, b, eps=EPS),
            "eager": lambda x, w, b: (plain(total := x + residual, w, b), total),
        })  # fmt: skip
    eager = {
        "layer_norm": plain,
        "layer_norm_gelu": lambda x, w, b: F.gelu(plain(x, w, b)),
        "gelu_layer_norm": lambda x, w, b: plain(F.gelu(x), w, b),
    }[name]
    more = peers.liger_layer_norm(EPS) if name == "layer_norm" and device.type == "cuda" else {}
    return Problem(
        (x, weight, bias), {"ours": lambda x, w, b: operation(x, w, b, eps=EPS), "eager": eager, **more}
    )  # fmt: skip


def _geglu(name: str, shape: Shape, leaf, generator, device) -> Problem:
    def eager(x: Tensor) -> Tensor:
        linear, gated = x.chunk(2, dim=-1)
        return linear * F.gelu(gated, approximate="tanh")

    def ours(x: Tensor) -> Tensor:
        return cramkernels.geglu(x, approximate="tanh")

    more = peers.liger_geglu() if device.type == "cuda" else {}
    return Problem((leaf(shape.tokens, 2 * shape.inner),), {"ours": ours, "eager": eager, **more})


def _loss(name: str, shape: Shape, leaf, generator, device, mode: str) -> Problem:
    hidden, weight = leaf(shape.tokens, shape.width), leaf(shape.vocabulary, shape.width, scale=0.02)
    positions = torch.randperm(shape.tokens, generator=generator)[: shape.masked].sort().values.to(device)
    labels = torch.randint(shape.vocabulary, (shape.masked,), generator=generator).to(device)

    def eager(hidden: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden[positions], weight).float(), labels)

    def ours(hidden: Tensor, weight: Tensor) -> Tensor:
        return cramkernels.mlm_loss(hidden, weight, labels, positions_M=positions, mode=mode).loss

    more = peers.liger_loss(positions, labels) if device.type == "cuda" else {}
    return Problem((hidden, weight), {"ours": ours, "eager": eager, **more})
