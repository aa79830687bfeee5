"""The cases of every operation: one list per family, shared by tests of the reference, tests of kernels and benchmarks.

A case knows its operation, its sizes, dtypes and options, and makes its arguments: ``case.arguments(device)`` are the
keyword arguments of ``getattr(cramkernels, case.op)``. Values are random, drawn from the case's own name.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields, replace

import torch

FP64, FP32, FP16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
DTYPES = (FP32, FP16, BF16)
SHORT = {FP64: "fp64", FP32: "fp32", FP16: "fp16", BF16: "bf16"}

# The arguments that have a gradient.
DIFFERENTIABLE = {
    "attention": ("qkv_T3HD",),
    "rotary": ("qkv_T3HD",),
    "layer_norm": ("x", "weight", "bias"),
    "add_layer_norm": ("x", "residual", "weight", "bias"),
    "layer_norm_gelu": ("x", "weight", "bias"),
    "gelu_layer_norm": ("x", "weight", "bias", "linear_bias"),
    "geglu": ("x_2F", "linear_bias"),
    "mlm_loss": ("hidden_TN", "weight_VN", "bias"),
}
Options = tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class Case:
    """What all cases share. ``options`` are passed on; fields say how tensors are made."""

    op: str
    dtype: torch.dtype
    parameter_dtype: torch.dtype | None = None  # None: that of the activations
    options: Options = ()

    def __str__(self) -> str:
        described = [self.op, SHORT[self.dtype]]
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in ("op", "dtype", "options") or value == item.default:
                continue
            text = SHORT[value] if isinstance(value, torch.dtype) else str(value).replace(" ", "")
            described.append(f"{item.name}={text}")
        return "-".join(described + [f"{name}={value}" for name, value in self.options])

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(zlib.crc32(str(self).encode()))

    def parameter(self, generator: torch.Generator, *shape: int, around: float = 0.0, spread: float = 0.5):
        values = torch.randn(*shape, generator=generator, dtype=FP64) * spread + around
        return values.to(self.parameter_dtype or self.dtype)

    def in_double(self) -> Case:
        """The same case in fp64."""
        return replace(self, dtype=FP64, parameter_dtype=None)

    def tensors(self, generator: torch.Generator) -> dict:
        raise NotImplementedError

    def arguments(self, device: str = "cpu") -> dict:
        """Keyword arguments of the operation."""
        made = {**self.tensors(self.generator()), **dict(self.options)}
        return {name: to_device(value, device) for name, value in made.items()}


def to_device(value, device: str):
    if isinstance(value, tuple):
        return tuple(to_device(part, device) for part in value)
    return value.to(device) if isinstance(value, torch.Tensor) else value


@dataclass(frozen=True)
class AttentionCase(Case):
    """``outside``: tokens before the first sequence and after the last one. ``masked``: share of keys masked, beside
    all those of the last sequence."""

    lengths: tuple[int, ...] = ()
    heads: int = 2
    head_dim: int = 16
    outside: tuple[int, int] = (0, 0)
    rope: bool = False
    masked: float = 0.0
    spread: float = 1.0

    def tensors(self, generator):
        before, after = self.outside
        tokens = before + sum(self.lengths) + after
        qkv = torch.randn(tokens, 3, self.heads, self.head_dim, generator=generator, dtype=FP64) * self.spread
        made = {"qkv_T3HD": qkv.to(self.dtype), "cu_seqlens": cumulative(self.lengths, before)}
        longest = max(self.lengths, default=0)
        tables = rope_tables(longest + 3, self.head_dim, generator)
        if self.op == "rotary":
            return {**made, "cos": tables[0], "sin": tables[1]}
        if self.rope:
            made["rope"] = tables
        if self.masked:
            made["key_mask"] = torch.rand(tokens, generator=generator) >= self.masked
            made["key_mask"][tokens - after - self.lengths[-1] :] = False
        return {**made, "max_seqlen": longest}


def cumulative(lengths, start: int = 0) -> torch.Tensor:
    """cu_seqlens of sequences of these lengths, the first of which begins at ``start``."""
    return torch.tensor([start, *lengths]).cumsum(0).to(torch.int32)


def rope_tables(length: int, head_dim: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin) of random angles: any mix-up of positions or of pairs shows."""
    angles = torch.rand(length, head_dim // 2, generator=generator) * 6.28
    return angles.cos(), angles.sin()


@dataclass(frozen=True)
class RowCase(Case):
    """Norms and GEGLU: rows of ``shape[-1]`` features. ``offset`` is a mean far from zero."""

    shape: tuple[int, ...] = (4, 32)
    bias: bool = True
    linear_bias: bool = False
    residual_dtype: torch.dtype | None = None
    offset: float = 0.0
    eps: float = 1e-6

    def tensors(self, generator):
        width = self.shape[-1]
        x = (torch.randn(*self.shape, generator=generator, dtype=FP64) * 1.5 + self.offset).to(self.dtype)
        linear_bias = {"linear_bias": self.parameter(generator, width)} if self.linear_bias else {}
        if self.op == "geglu":
            return {"x_2F": x, **linear_bias}
        made = {"x": x, "weight": self.parameter(generator, width, around=1.0), "eps": self.eps, **linear_bias}
        if self.bias:
            made["bias"] = self.parameter(generator, width)
        if self.op == "add_layer_norm":
            residual = torch.randn(*self.shape, generator=generator, dtype=FP64)
            made["residual"] = residual.to(self.residual_dtype or self.dtype)
        return made

    def in_double(self):
        return replace(super().in_double(), residual_dtype=None)


@dataclass(frozen=True)
class LossCase(Case):
    """``tokens`` rows of hidden states, of which ``masked`` (all, in order, if None) are predicted."""

    tokens: int = 12
    masked: int | None = None
    hidden: int = 32
    vocabulary: int = 101
    bias: bool = True
    ignored: float = 0.25  # share of rows
    ignore_index: int = -100
    spread: float = 0.4

    def tensors(self, generator):
        hidden = torch.randn(self.tokens, self.hidden, generator=generator, dtype=FP64).to(self.dtype)
        weight = self.parameter(generator, self.vocabulary, self.hidden, spread=self.spread)
        rows = self.tokens if self.masked is None else self.masked
        labels = torch.randint(0, self.vocabulary, (rows,), generator=generator)
        labels[torch.rand(rows, generator=generator) < self.ignored] = self.ignore_index
        made = {"hidden_TN": hidden, "weight_VN": weight, "labels_M": labels, "ignore_index": self.ignore_index}
        if self.masked is not None:  # drawn with repetition: duplicates are legal
            made["positions_M"] = torch.randint(0, max(self.tokens, 1), (rows,), generator=generator)
        if self.bias:
            made["bias"] = self.parameter(generator, self.vocabulary)
        return made


ATTENTION_SHAPES: tuple[dict, ...] = (
    dict(lengths=(), heads=2, head_dim=8),
    dict(lengths=(0, 0), heads=1, head_dim=4),
    dict(lengths=(1,), heads=1, head_dim=2),
    dict(lengths=(3, 1, 7), heads=3, head_dim=16),
    dict(lengths=(0, 4, 0, 9, 0), heads=2, head_dim=32, outside=(2, 3)),
    dict(lengths=(33, 100, 17), heads=2, head_dim=64),
    dict(lengths=(128, 128), heads=2, head_dim=64),
    dict(lengths=(24, 24), heads=2, head_dim=16, spread=6.0),  # peaked probabilities
)
ATTENTION_VARIANTS: tuple[dict, ...] = (
    dict(rope=True),
    dict(options=(("window", 0),)),
    dict(options=(("window", 3),)),
    dict(options=(("scale", 0.3),)),
    dict(masked=0.4),
    dict(masked=0.4, rope=True, options=(("window", 2), ("dropout_p", 0.2), ("seed", 5))),
    dict(options=(("dropout_p", 0.25), ("seed", 11))),
    dict(rope=True, options=(("window", 5), ("scale", 0.2), ("dropout_p", 0.1), ("seed", 2**40 + 3))),
)
RAGGED, DENSE = dict(lengths=(13, 0, 6, 21), heads=2, head_dim=16, outside=(1, 2)), dict(lengths=(19, 19, 19))
ATTENTION_CASES = [AttentionCase("attention", dtype, **shape) for shape in ATTENTION_SHAPES for dtype in DTYPES] + [
    AttentionCase("attention", dtype, **shape, **variant)
    for variant in ATTENTION_VARIANTS
    for shape in (RAGGED, DENSE)
    for dtype in DTYPES
]
# Beside the above, for kernels: whole tiles, ragged ones, many short sequences, every head dim with a kernel
SHORT_ATTENTION_SHAPES: tuple[dict, ...] = (
    dict(lengths=(128, 128), heads=2, head_dim=64),
    dict(lengths=(128,), heads=1, head_dim=64, rope=True),
    dict(lengths=(100, 0, 28, 128, 1, 17), heads=2, head_dim=64, rope=True, outside=(3, 5)),
    dict(lengths=(37, 5, 60, 90), heads=1, head_dim=32, rope=True, outside=(3, 5), options=(("window", 7),)),
    dict(lengths=(37, 5, 60, 90), heads=1, head_dim=32, masked=0.3, options=(("dropout_p", 0.2), ("seed", 77))),
    dict(lengths=(9, 3, 0, 16, 12, 1) * 6, heads=1, head_dim=64, rope=True, masked=0.3,
         options=(("dropout_p", 0.2), ("seed", 2**40 + 3))),
    dict(lengths=(1,) * 70, heads=1, head_dim=32, rope=True),
    dict(lengths=(128, 64), heads=1, head_dim=128, rope=True,
         options=(("window", 31), ("dropout_p", 0.2), ("seed", 7))),
    dict(lengths=(50,), heads=3, head_dim=64, spread=6.0, options=(("scale", -0.3),)),
    dict(lengths=(0, 0), heads=1, head_dim=64, outside=(4, 130)),
)  # fmt: skip
SHORT_ATTENTION_CASES = [
    AttentionCase("attention", dtype, **shape) for shape in SHORT_ATTENTION_SHAPES for dtype in (FP16, BF16)
]
ROTARY_CASES = [AttentionCase("rotary", dtype, **shape) for shape in ATTENTION_SHAPES for dtype in DTYPES]

# Beside the above, for kernels: the head dims that they serve, tiles that are full, shared, cut and left over
MANY_SHORT = tuple((5 * i * i + 3 * i) % 18 for i in range(25))
RAGGED_37 = tuple((7 * i * i + 11 * i) % 47 for i in range(36)) + (101,)
ONE_TOKEN = dict(lengths=(1,), heads=3, head_dim=64)
KERNEL_ATTENTION_SHAPES: tuple[dict, ...] = (
    ONE_TOKEN,
    dict(lengths=(128, 128), heads=1, head_dim=32),
    dict(lengths=(100, 0, 28, 128), heads=2, head_dim=64, outside=(5, 9)),
    dict(lengths=(60, 128, 3), heads=1, head_dim=128),
    dict(lengths=MANY_SHORT, heads=1, head_dim=32, outside=(0, 200)),
    dict(lengths=RAGGED_37, heads=1, head_dim=64),
    dict(lengths=(90, 38, 64), heads=1, head_dim=64, spread=6.0),
)
ALL_OPTIONS = dict(
    masked=0.4, rope=True, options=(("window", 9), ("scale", 0.2), ("dropout_p", 0.2), ("seed", 2**40 + 3))
)
WINDOW_0: Options = (("window", 0),)
KERNEL_ATTENTION_VARIANTS: tuple[dict, ...] = (
    dict(rope=True),
    dict(options=WINDOW_0),
    dict(options=(("window", 20),)),
    dict(masked=0.4),
    dict(options=(("dropout_p", 0.25), ("seed", 11))),
    ALL_OPTIONS,
)
VARIED = dict(lengths=(40, 0, 70, 9, 127, 1), heads=2, head_dim=64, outside=(2, 3))
HALF_TILE = dict(lengths=(31, 64, 2, 0, 17, 46), heads=1, head_dim=64, outside=(1, 0))
# Sequences that no single tile holds
LONG_ATTENTION_SHAPES: tuple[dict, ...] = (
    dict(lengths=(129,), heads=2, head_dim=32),
    dict(lengths=(200, 64, 300), heads=1, head_dim=64, outside=(70, 3)),
    dict(lengths=(150, 0, 131), heads=1, head_dim=128),
    dict(lengths=(700,), heads=1, head_dim=64),
    dict(lengths=(140, 30), heads=1, head_dim=64, spread=6.0),
)
LONG_VARIED = dict(lengths=(90, 170, 3), heads=1, head_dim=64, outside=(2, 1))
KERNEL_ATTENTION_CASES = (
    [AttentionCase("attention", dtype, **shape) for shape in KERNEL_ATTENTION_SHAPES for dtype in DTYPES]
    + [AttentionCase("attention", dtype, **VARIED, **v) for v in KERNEL_ATTENTION_VARIANTS for dtype in (FP16, BF16)]
    + [AttentionCase("attention", dtype, **HALF_TILE, **v) for v in ({}, ALL_OPTIONS) for dtype in DTYPES]
    + [
        AttentionCase("attention", BF16, lengths=(100, 28, 0, 3), heads=1, head_dim=width, **ALL_OPTIONS)
        for width in (32, 128)
    ]
)
LONG_ATTENTION_CASES = [
    AttentionCase("attention", dtype, **shape) for shape in LONG_ATTENTION_SHAPES for dtype in (FP32, BF16)
] + [AttentionCase("attention", dtype, **LONG_VARIED, **v) for v in KERNEL_ATTENTION_VARIANTS for dtype in DTYPES]
# Every query sees one key. In fp32 the error rule is no measure of that: a probability of one is recomputed as one
# within an ulp of the log-sum-exp, and dP - delta, two sums of the same products in different orders, as zero within
# an ulp of dP, while plain PyTorch has exact ones and zeros, and twice their error is nothing. Tests of kernels hold
# these to their closed form
SEES_ITSELF_CASES = [
    AttentionCase("attention", dtype, **case)
    for case in (ONE_TOKEN, dict(**VARIED, options=WINDOW_0), dict(**LONG_VARIED, options=WINDOW_0))
    for dtype in DTYPES
]
KERNEL_ATTENTION_CASES = [
    case for case in KERNEL_ATTENTION_CASES if case.dtype != FP32 or case not in SEES_ITSELF_CASES
]
LONG_ATTENTION_CASES = [case for case in LONG_ATTENTION_CASES if case.dtype != FP32 or case not in SEES_ITSELF_CASES]
# Rows of Triton's table of configurations that no case above reaches
CUT, CUT_OFTEN = dict(lengths=(3, 150, 30), heads=1), dict(lengths=(520, 28), heads=1)
LONG_ATTENTION_CASES += [
    AttentionCase("attention", BF16, **HALF_TILE | {"head_dim": 32}, **ALL_OPTIONS),
    AttentionCase("attention", BF16, **CUT, head_dim=32, **ALL_OPTIONS),
    AttentionCase("attention", BF16, **CUT, head_dim=128, rope=True),
    AttentionCase("attention", BF16, **CUT_OFTEN, head_dim=32, rope=True),
    AttentionCase("attention", BF16, **CUT_OFTEN, head_dim=32, **ALL_OPTIONS),
]
KERNEL_ROTARY_CASES = [
    AttentionCase("rotary", dtype, lengths=(7, 0, 150, 33), heads=3, head_dim=width, outside=(2, 5))
    for width in (32, 64, 128)
    for dtype in DTYPES
]

NORMS = ("layer_norm", "add_layer_norm", "layer_norm_gelu", "gelu_layer_norm")
NORM_SHAPES = ((0, 32), (1, 32), (7, 33), (5, 768), (2, 3, 1000), (9, 1024))
NORM_VARIANTS: tuple[dict, ...] = (dict(bias=False), dict(offset=30.0), dict(eps=1e-3))
TANH: Options = (("approximate", "tanh"),)
NORM_CASES = (
    [RowCase(op, dtype, shape=shape) for op in NORMS for shape in NORM_SHAPES for dtype in DTYPES]
    + [RowCase(op, dtype, shape=(6, 65), **v) for op in NORMS for v in NORM_VARIANTS for dtype in DTYPES]
    + [RowCase(op, dtype, FP32, shape=(6, 96)) for op in NORMS for dtype in (FP16, BF16)]
    + [RowCase(op, dtype, shape=(6, 65), options=TANH) for op in NORMS[2:] for dtype in DTYPES]
    + [RowCase("gelu_layer_norm", dtype, shape=(6, 65), linear_bias=True) for dtype in DTYPES]
    + [RowCase("gelu_layer_norm", dtype, FP32, shape=(6, 65), linear_bias=True) for dtype in (FP16, BF16)]
    + [RowCase("add_layer_norm", dtype, FP32, shape=(6, 65), residual_dtype=FP32) for dtype in (FP16, BF16)]
    + [RowCase("add_layer_norm", dtype, shape=(9, 65), options=(("dropout_p", 0.3), ("seed", -7))) for dtype in DTYPES]
)
# Beside the above, for kernels: several rows a warp or CTA, rows of a whole CTA, the longest rows
KERNEL_ROW_SHAPES = ((45, 72), (19, 768), (5, 2056), (2, 8192))
KERNEL_ROW_CASES = (
    [RowCase(op, dtype, shape=shape) for shape in KERNEL_ROW_SHAPES for op in NORMS for dtype in DTYPES]
    + [RowCase("geglu", dtype, FP32, shape=(37, 1040), linear_bias=True) for dtype in DTYPES]
    + [
        RowCase("add_layer_norm", dtype, residual_dtype=FP32, shape=shape)
        for shape in ((9, 768), (9, 1000), (3, 2056))
        for dtype in (FP16, BF16)
    ]
)
# For partial rows of more CTAs than a reduction takes at a time
MANY_ROWS = [
    RowCase("gelu_layer_norm", BF16, FP32, shape=(170, 72), linear_bias=True),
    RowCase("layer_norm", FP32, shape=(170, 40)),
    RowCase("geglu", FP16, FP32, shape=(170, 72), linear_bias=True),
]
GEGLU_CASES = [
    RowCase("geglu", dtype, shape=shape) for shape in ((0, 64), (1, 2), (7, 66), (2, 3, 2000)) for dtype in DTYPES
] + [
    RowCase("geglu", dtype, shape=(5, 130), linear_bias=linear_bias, options=(("approximate", how), ("gate", gate)))
    for linear_bias in (False, True)
    for how in ("none", "tanh")
    for gate in ("first", "second")
    for dtype in DTYPES
]

LOSS_VARIANTS: tuple[dict, ...] = (
    dict(bias=False),
    dict(ignored=0.0),
    dict(ignored=1.0),
    dict(ignore_index=3),
    dict(options=(("z_loss", 1e-2),)),
    dict(options=(("label_smoothing", 0.1),)),
    dict(options=(("softcap", 4.0),)),
    dict(options=(("mode", "recompute"),)),
    dict(options=(("logits_bytes", 1),)),  # one row at a time
    dict(options=(("z_loss", 1e-2), ("label_smoothing", 0.2), ("softcap", 3.0), ("logits_bytes", 1300))),
    dict(options=(("z_loss", 1e-2), ("label_smoothing", 0.2), ("softcap", 3.0), ("mode", "recompute"))),
)
LOSS_SHAPES: tuple[dict, ...] = (
    dict(tokens=0),
    dict(tokens=1, ignored=0.0),
    dict(tokens=9, masked=0),
    dict(tokens=30, masked=17, vocabulary=1000, hidden=33),
    dict(tokens=64, masked=40, vocabulary=1024, hidden=128, spread=0.1),
)
MLM_LOSS_CASES = (
    [LossCase("mlm_loss", dtype, **shape) for shape in LOSS_SHAPES for dtype in DTYPES]
    + [LossCase("mlm_loss", dtype, masked=21, **variant) for variant in LOSS_VARIANTS for dtype in DTYPES]
    + [
        LossCase("mlm_loss", dtype, FP32, masked=21, options=(("grad_scale", 1024.0), ("mode", mode)))
        for mode in ("chunked", "recompute")
        for dtype in DTYPES
    ]
)

# Beside the above, for kernels. Rows of logits: of several pieces a thread, of those that spill into shared memory
# (16-bit from 98,304 columns, fp32 from 49,152) and of those that do not fit there either (130,560, 65,280)
EVERY_LOSS_OPTION = (("z_loss", 1e-2), ("label_smoothing", 0.2), ("softcap", 3.0))
LONG_ROWS = {
    4099: DTYPES,
    20_001: DTYPES,
    50_257: (FP32,),
    50_368: (BF16,),
    128_256: (FP16, BF16),
    131_075: (BF16,),
    66_000: (FP32,),
}
KERNEL_ROW_LOSS_CASES = [
    LossCase("mlm_loss", dtype, tokens=3, hidden=8, vocabulary=vocabulary, spread=0.7, options=options)
    for vocabulary, dtypes in LONG_ROWS.items()
    for dtype in dtypes
    for options in ((), EVERY_LOSS_OPTION)
] + [
    LossCase("mlm_loss", FP16, FP32, tokens=3, hidden=8, vocabulary=4099, ignored=0.0, options=(("softcap", 3.0),)),
    LossCase("mlm_loss", BF16, FP32, tokens=3, hidden=8, vocabulary=33_000, ignored=0.0, options=(("z_loss", 0.1),)),
]
# Without logits in memory: several tiles each way, several slices, blocks of rows, hidden columns that end anywhere
TILED = dict(tokens=200, masked=150, vocabulary=701, spread=0.2)
TILED_LOSS_CASES = [
    LossCase("mlm_loss", dtype, parameter_dtype, **TILED, hidden=hidden, options=(("mode", "recompute"), *options))
    for dtype in (FP16, BF16)
    for parameter_dtype, hidden, options in (
        (None, 72, ()),
        (FP32, 41, EVERY_LOSS_OPTION),
        (None, 136, (*EVERY_LOSS_OPTION, ("logits_bytes", 1 << 16))),
        (FP32, 64, (("logits_bytes", 20_000), ("grad_scale", 512.0))),
    )
]
MANY_TILES = [
    LossCase("mlm_loss", BF16, tokens=3, hidden=8, vocabulary=vocabulary, spread=0.7, options=(("mode", "recompute"),))
    for vocabulary in (50_368, 128_256)
]
KERNEL_LOSS_CASES = [*KERNEL_ROW_LOSS_CASES, *TILED_LOSS_CASES, MANY_TILES[0]]

ALL_CASES = [*ATTENTION_CASES, *ROTARY_CASES, *NORM_CASES, *GEGLU_CASES, *MLM_LOSS_CASES]
