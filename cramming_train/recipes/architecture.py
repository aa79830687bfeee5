"""Architectures: what the encoder looks like. The vocabulary size is not here: it is the tokenizer's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cramming_train.recipes.checks import check_choice, check_positive, check_share


@dataclass(frozen=True)
class Architecture:
    """One member of the BERT family.

    ``ffn_hidden`` is the output width of the first FFN matrix; with "geglu" half of it reaches the second. ``gate``
    says which half goes through the GELU. ``window`` keeps |i - j| <= window in attention. Dropout rates apply in
    fine-tuning, and in pretraining where the training recipe asks for dropout.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    ffn_hidden: int
    ffn: str = "gelu"  # "gelu" or "geglu"
    gate: str = "second"  # "second" or "first"
    norm: str = "pre"  # "pre" or "post"
    final_norm: bool = False
    first_attention_norm: bool = True  # pre-norm: a norm before the first attention, though the embedding has its own
    positions: str = "learned"  # "learned", "scaled-sinusoidal" or "rope"
    max_length: int = 128  # of learned positions and of the tables for the others
    rope_base: float = 10000.0
    linear_bias: bool = True
    norm_eps: float = 1e-12
    head_transform: bool = True  # dense -> GELU -> LN before the decoder
    decoder_bias: bool = True
    init_std: float = 0.02
    output_init: str = "normal"  # of the projections back to the residual: "normal", "depth-scaled" or "zero"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    embedding_dropout: float = 0.1
    document_attention: bool = False  # no attention across documents within a row
    window: int | None = None
    global_every: int | None = None  # of the blocks every n-th, from the first on, is without the window

    def __post_init__(self) -> None:
        check_positive(
            self, "layers", "hidden", "heads", "ffn_hidden", "max_length", "norm_eps", "init_std", "rope_base"
        )
        check_choice(self, ffn=("gelu", "geglu"), gate=("first", "second"), norm=("pre", "post"))
        check_choice(self, positions=("learned", "scaled-sinusoidal", "rope"))
        check_choice(self, output_init=("normal", "depth-scaled", "zero"))
        check_share(self, "dropout", "attention_dropout", "embedding_dropout")
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise ValueError(f"architecture.hidden: {self.hidden} is not an even multiple of heads = {self.heads}")
        if self.ffn == "geglu" and self.ffn_hidden % 2:
            raise ValueError(f"architecture.ffn_hidden: got {self.ffn_hidden}, want an even number for geglu")
        if self.norm == "post" and not self.first_attention_norm:
            raise ValueError("architecture.first_attention_norm: post-norm blocks cannot do without it")
        if self.window is not None and self.window < 0:
            raise ValueError(f"architecture.window: got {self.window}, want a number >= 0 or null")
        if self.global_every is not None and (self.global_every < 1 or self.window is None):
            raise ValueError(
                f"architecture.global_every: got {self.global_every}, want a number >= 1, beside a window, or null"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    def window_of(self, layer: int) -> int | None:
        """|i - j| that attention of block ``layer``, counted from 0, reaches; None for all."""
        is_global = self.global_every is not None and layer % self.global_every == 0
        return None if is_global else self.window

    @property
    def ffn_inner(self) -> int:
        """Input width of the second FFN matrix."""
        return self.ffn_hidden // 2 if self.ffn == "geglu" else self.ffn_hidden


_CRAMMED: dict[str, Any] = {
    "ffn": "geglu",
    "final_norm": True,
    "positions": "scaled-sinusoidal",
    "linear_bias": False,
    "head_transform": False,
    "decoder_bias": False,
}

# Every part of it is one of the stock ModernBERT (Warner et al. 2024), so that weights can be exported to that class
_CRAM: dict[str, Any] = {
    "ffn": "geglu",
    "gate": "first",
    "final_norm": True,
    "first_attention_norm": False,
    "positions": "rope",
    "linear_bias": False,
    "norm_eps": 1e-5,
    "output_init": "zero",
    "window": 4,  # docs/recipe.md
    "global_every": 3,
}

ARCHITECTURES = {
    a.name: a
    for a in (
        # arXiv 2212.14034, final architecture; 119,589,889 parameters at a vocabulary of 32768
        Architecture("crammed-bert", 16, 768, 12, 3072, **_CRAMMED),
        # the same family at the size of a CPU; 11,015,169 parameters
        Architecture("crammed-bert-mini", 4, 256, 4, 1024, **_CRAMMED),
        Architecture("cram", 16, 768, 12, 3072, **_CRAM),
        Architecture("cram-mini", 4, 256, 4, 1024, **_CRAM),
        Architecture("crammed-bert-simple", 12, 768, 12, 3072),
        # Devlin et al. 2019 (no segment embeddings: pretraining has one segment)
        Architecture("bert-base", 12, 768, 12, 3072, norm="post", max_length=512),
        Architecture("bert-tiny", 2, 128, 2, 512, norm="post", max_length=512),
        # Izsak et al. 2021, "How to train BERT with an academic budget"
        Architecture("bert-large-izsak", 24, 1024, 16, 4096, norm_eps=1e-6),
    )
}
