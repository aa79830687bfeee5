"""WordPiece, trained from scratch on the corpus: exactly the asked vocabulary, special tokens at ids 0 to 6."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from cramming_train.data.cleaning import normalizer
from cramming_train.data.special_tokens import SPECIAL_TOKENS
from cramming_train.errors import RunError, UsageError

MAX_WORD_CHARACTERS = 100
MAX_ALPHABET = 1000


def train_tokenizer(texts: Iterable[str], vocab_size: int, clean: str) -> tokenizers.Tokenizer:
    """Train on texts that are already cleaned; the result cleans new text itself, by the rule named ``clean``.

    Raises:
        UsageError: the texts have too few distinct pieces for the vocabulary.
    """
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>", max_input_chars_per_word=MAX_WORD_CHARACTERS))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        limit_alphabet=MAX_ALPHABET,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    reached = tokenizer.get_vocab_size()
    if reached != vocab_size:
        raise UsageError(
            f"the corpus is too small for a vocabulary of {vocab_size}: it yields {reached} tokens; "
            f"add text, or give --set data.vocab_size={max(reached // 64 * 64, 64)}"
        )
    tokenizer.normalizer = normalizer(clean)
    return literal(tokenizer)


def literal(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Make "<sep>" written in a text stay text: special tokens are placed by programs alone."""
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """From tokenizer.json; RunError where the file is missing or damaged."""
    try:
        return literal(tokenizers.Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises bare Exception
        raise RunError(f"{path}: not a readable tokenizer ({str(error).splitlines()[0]})") from None


def check_special_tokens(tokenizer: tokenizers.Tokenizer, origin: str) -> None:
    """Ready-made tokenizers must have our special tokens at our ids; UsageError otherwise."""
    for expected, token in enumerate(SPECIAL_TOKENS):
        if tokenizer.token_to_id(token) != expected:
            raise UsageError(
                f"{origin}: its tokenizer has {token} at id {tokenizer.token_to_id(token)}, want {expected} "
                f"(special tokens in the order {' '.join(SPECIAL_TOKENS)})"
            )
