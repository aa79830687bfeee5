"""Data recipes: how raw text becomes rows of tokens. What text that is, is not part of the recipe."""

from __future__ import annotations

from dataclasses import dataclass

from cramming_train.recipes.checks import check_choice, check_positive, check_positive_or_none, check_share

ORDERS = ("sentence-length-curriculum", "unigram", "word-length", "random", "none")


@dataclass(frozen=True)
class Data:
    """From text to rows. Every field is part of the cache key."""

    name: str
    clean: str = "ascii"  # "ascii" (the original's), "unicode", or "none" for the rows and the text of foreign weights
    vocab_size: int = 32768
    row_length: int = 128  # tokens
    compression_threshold: float | None = 0.3  # keep a document iff tokens < threshold * characters; None keeps all
    deduplicate: str = "paragraph"  # "none", "paragraph" or "substring"
    substring_characters: int = 100  # length of the repeats that "substring" removes
    order: str = "sentence-length-curriculum"
    max_rows: int | None = None
    validation_fraction: float = 0.005  # of documents, where no validation file is given
    tokenizer_characters: int = 100_000_000  # the tokenizer is trained on a sample of at most this size
    seed: int = 0  # of the random order

    def __post_init__(self) -> None:
        check_choice(
            self, clean=("ascii", "unicode", "none"), deduplicate=("none", "paragraph", "substring"), order=ORDERS
        )
        check_positive(self, "vocab_size", "row_length", "validation_fraction", "tokenizer_characters")
        check_share(self, "validation_fraction")
        if self.vocab_size < 64:
            raise ValueError(f"data.vocab_size: got {self.vocab_size}, want at least 64")
        if self.row_length < 8:
            raise ValueError(f"data.row_length: got {self.row_length}, want at least 8")
        if self.substring_characters < 20:
            raise ValueError(f"data.substring_characters: got {self.substring_characters}, want at least 20")
        check_positive_or_none(self, "compression_threshold", "max_rows")


DATASETS = {d.name: d for d in (Data("crammed"), Data("cram", order="random"))}
