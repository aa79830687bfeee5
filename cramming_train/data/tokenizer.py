"""WordPiece, trained from scratch on the corpus: exactly the asked vocabulary, special tokens at ids 0 to 6."""

from __future__ import annotations

from collections import Counter
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

    ``texts`` is gone through more than once: for the letters, then for the words. The library numbers the letters
    inside words ("##a") in the order of a randomly seeded hash table and decides ties between merges by these
    numbers, so each training would end differently. Here letters and their numbers are chosen beforehand, by
    frequency and code.

    Raises:
        UsageError: the texts have too few distinct pieces for the vocabulary.
    """
    tokenizer = _empty_tokenizer({})
    letters = _alphabet(texts)
    inside = [f"##{letter}" for letter in letters if _can_be_inside_a_word(letter)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *inside],  # numbered in this order, before all else
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = tokenizer.get_vocab()
    reached = len(vocabulary)
    if reached > vocab_size:
        raise UsageError(
            f"a vocabulary of {vocab_size} cannot hold the {reached} letters and special tokens of this corpus; "
            f"give --set data.vocab_size={-(-reached // 64) * 64} or more"
        )
    if reached < vocab_size:
        raise UsageError(
            f"the corpus is too small for a vocabulary of {vocab_size}: it yields {reached} tokens; "
            f"add text, or give --set data.vocab_size={max(reached // 64 * 64, 64)}"
        )
    tokenizer = _empty_tokenizer(vocabulary)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.normalizer = normalizer(clean)
    return literal(tokenizer)


def _empty_tokenizer(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    model = models.WordPiece(vocabulary, unk_token="<unk>", max_input_chars_per_word=MAX_WORD_CHARACTERS)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _alphabet(texts: Iterable[str]) -> list[str]:
    """The most frequent characters, at most MAX_ALPHABET, in the order of their codes."""
    letters: set[str] = set()
    for text in texts:
        letters.update(text)
    chosen = sorted(letter for letter in letters if not letter.isspace())
    if len(chosen) > MAX_ALPHABET:
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text)
        chosen = sorted(sorted(chosen, key=lambda letter: (-counts[letter], letter))[:MAX_ALPHABET])
    return chosen


def _can_be_inside_a_word(letter: str) -> bool:
    return len(pre_tokenizers.BertPreTokenizer().pre_tokenize_str(f"a{letter}")) == 1


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
