"""Training recipes: optimizer, schedule, batch size and masking as functions of the budget used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cramming_train.optim.averaging import KINDS
from cramming_train.optim.schedules import SCHEDULES
from cramming_train.recipes.checks import (
    check_betas,
    check_choice,
    check_not_negative,
    check_positive,
    check_positive_or_none,
    check_share,
)


@dataclass(frozen=True)
class Training:
    """How a model is trained. Sizes of batches are in rows (sequences); fractions are of the budget."""

    name: str
    optimizer: str = "adamw"  # "adamw" (decoupled decay), "adam" (decay added to the gradient), or "muon": that on
    # the matrices of the blocks, AdamW on the rest
    peak_lr: float = 1e-3
    matrix_lr: float = 0.02  # of Muon: the spectral norm of a step
    matrix_interval: int = 1  # of Muon: it moves in each n-th step, n times as far; small batches need no more
    momentum: float = 0.95  # of Muon
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-12
    weight_decay: float = 0.01
    grad_clip: float | None = None  # global gradient norm; None is off
    schedule: str = "triangle"
    warmup: float = 0.0  # fraction of the budget
    cooldown: float = 0.4  # fraction of the budget at the end in which the trapezoid comes down
    batch_size: int = 8192  # the ramp's ceiling
    batch_ramp: float = 0.0  # fraction of the budget at which batch_size is reached; 0 is constant
    micro_batch_size: int = 128
    masking_rate: float = 0.25  # at the start ...
    masking_rate_final: float = 0.25  # ... and at the end, linear between
    first_window: int | None = None  # |i - j| that attention reaches at the start; null: whole rows at once ...
    window_growth: float = 0.5  # ... it doubles, to whole rows from this fraction of the budget on
    random_share: float = 0.1  # of the masked positions, shown as a random token
    keep_share: float = 0.1  # of the masked positions, shown unchanged
    averaging: str = "none"  # "window" or "ema": a run ends with a mean of its last weights, ...
    averaging_share: float = 0.1  # ... of so much of the budget, or (ema) that old in relation to the run so far
    unigram_bias: bool = False  # the decoder's bias starts at the log-frequencies of the tokens, counted on the clock
    dropout: bool = False
    precision: str = "fp16"  # on a GPU: "fp32", "fp16" (with gradient scaling) or "bf16"; a CPU runs fp32
    compile: str = "auto"  # "on", "off" or "auto" (on a GPU): torch.compile, checked against eager first
    cuda_graph: bool = True  # on a GPU: micro-batches replayed as a CUDA graph, checked against eager first

    def __post_init__(self) -> None:
        check_choice(self, optimizer=("adamw", "adam", "muon"), schedule=tuple(SCHEDULES), averaging=KINDS)
        check_choice(self, precision=("fp32", "fp16", "bf16"), compile=("on", "off", "auto"))
        check_positive(self, "peak_lr", "eps", "batch_size", "micro_batch_size", "masking_rate", "masking_rate_final")
        check_positive(self, "matrix_lr", "matrix_interval", "averaging_share")
        check_positive_or_none(self, "first_window", "grad_clip")
        check_share(self, "momentum", "averaging_share")
        check_share(self, "warmup", "masking_rate", "masking_rate_final", "random_share", "keep_share")
        check_betas(self)
        check_not_negative(self, "weight_decay")
        if not 0 < self.cooldown <= 1 - self.warmup:
            raise ValueError(f"training.cooldown: got {self.cooldown}, want more than 0, at most 1 - warmup")
        if not 0 <= self.batch_ramp <= 1:
            raise ValueError(f"training.batch_ramp: got {self.batch_ramp}, want a number in [0, 1]")
        if not 0 < self.window_growth <= 1:
            raise ValueError(f"training.window_growth: got {self.window_growth}, want a number in (0, 1]")
        if self.random_share + self.keep_share > 1:
            raise ValueError("training.random_share + keep_share: more than 1")


_CRAM: dict[str, Any] = {
    "optimizer": "muon",
    "peak_lr": 2e-3,
    "schedule": "linear",
    "warmup": 0.02,
    "unigram_bias": True,
}
_BERT_RATE: dict[str, Any] = {"masking_rate": 0.15, "masking_rate_final": 0.15}

TRAININGS = {
    t.name: t
    for t in (
        # arXiv 2212.14034, the final recipe; the others are earlier steps towards it, as in its code
        Training("bert-o4", schedule="triangle", batch_ramp=0.6, grad_clip=0.5),
        Training("bert-o4-mini", schedule="triangle", batch_size=32, micro_batch_size=32, grad_clip=0.5),
        # docs/recipe.md; the batch of "cram" is that of a day on a GPU, before the budget sizes it
        # without decay Muon's matrices grow until fine-tuning hardly moves them; small batches want more of it
        Training("cram", weight_decay=0.1, batch_size=512, **_CRAM),
        Training("cram-mini", weight_decay=0.5, matrix_interval=2, batch_size=8, micro_batch_size=8, **_CRAM),
        Training(
            "bert-o3",
            schedule="triangle",
            batch_size=4096,
            batch_ramp=0.5,
            grad_clip=0.5,
            masking_rate=0.15625,
            masking_rate_final=0.15625,
        ),
        Training("bert-o2", schedule="one-cycle", batch_size=1536, batch_ramp=0.5, **_BERT_RATE),
        Training("bert-o1", schedule="cosine", peak_lr=7e-4, batch_size=1536, **_BERT_RATE),
        # what the original calls train=bert-base
        Training("bert-base-o", schedule="cosine", peak_lr=5e-4, warmup=1 / 30, batch_size=1536, **_BERT_RATE),
        # Devlin et al. 2019 under a budget
        Training(
            "bert-original",
            optimizer="adam",
            peak_lr=1e-4,
            betas=(0.9, 0.999),
            eps=1e-8,
            schedule="polynomial",
            warmup=0.01,
            batch_size=512,
            micro_batch_size=64,
            dropout=True,
            **_BERT_RATE,
        ),
        # Izsak et al. 2021
        Training(
            "bert-izsak",
            peak_lr=2e-3,
            eps=1e-6,
            schedule="linear",
            warmup=0.06,
            batch_size=4096,
            dropout=True,
            **_BERT_RATE,
        ),
    )
}
