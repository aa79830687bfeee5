"""Word n-grams that texts and rows of tokens have in common, found by their hashes.

The measure of GPT-3 (Brown et al. 2020, arXiv 2005.14165, section 4 and appendix C): two texts overlap where 13 words
in a row are the same, letter case and punctuation aside; a text of 8 to 12 words, where all of it is found; shorter
ones collide by chance and are not looked for. Both sides are cleaned and split into WordPiece tokens alike, so a word
is the tokens from one that starts a word to the next, and nothing has to be decoded.

Shapes: rows are [n, S]; "flat" arrays hold the tokens or words of many owners (rows or texts) one after another, beside
an array of the same length that names each one's owner.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import numpy as np
import tokenizers

from cramming_train.data.cleaning import cleaner
from cramming_train.data.special_tokens import SPECIAL_TOKENS
from cramming_train.errors import UsageError

WORDS = 13
SHORTEST = 8
SOURCE = "Brown et al. 2020, arXiv 2005.14165, section 4 and appendix C"
BATCH_TEXTS = 4096
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that its powers are invertible modulo 2^64


class Words:
    """From tokens to words, by the vocabulary of one WordPiece tokenizer.

    Raises:
        UsageError: the tokenizer is of another kind, whose tokens do not tell where words start.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        model = json.loads(tokenizer.to_str())["model"]
        if model["type"] != "WordPiece":
            raise UsageError(f"overlap is measured with WordPiece tokenizers; the rows' is a {model['type']}")
        prefix = model["continuing_subword_prefix"]
        tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        self._continues = np.array([token.startswith(prefix) for token, _ in tokens])
        self._special = np.array([token in SPECIAL_TOKENS for token, _ in tokens])
        letters = np.array([any(c.isalnum() for c in token.removeprefix(prefix)) for token, _ in tokens])
        self._is_text = letters | self._special  # the rest is punctuation, and passed over
        codes = np.random.default_rng(0).integers(1 << 63, size=len(tokens), dtype=np.uint64)
        self._codes = _mixed(codes)

    def of(self, ids: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(hash, owner, is special) of every word; special tokens, <unk> among them, count as words of their own."""
        text = self._is_text[ids]
        ids, owners = ids[text], owners[text]
        starts_word = ~self._continues[ids]
        starts_word[1:] |= owners[1:] != owners[:-1]
        starts_word[:1] = True
        starts = np.flatnonzero(starts_word)
        places = np.arange(len(ids)) - np.repeat(starts, np.diff(starts, append=len(ids)))
        powers = _powers(int(places.max(initial=0)) + 1)
        hashes = np.add.reduceat(self._codes[ids] * powers[places], starts) if len(starts) else ids.astype(np.uint64)
        return hashes, owners[starts], self._special[ids[starts]]


def ngrams(words: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(n, hashes, owners) of all n-grams within one owner and without special tokens, n from SHORTEST to WORDS."""
    hashes, owners, special = words
    specials_before = np.concatenate([[0], np.cumsum(special)])
    rolling = np.zeros(len(hashes), dtype=np.uint64)
    for n in range(1, WORDS + 1):
        if n > len(hashes):
            return
        rolling = rolling[: len(hashes) - n + 1] * _BASE + hashes[n - 1 :]
        if n >= SHORTEST:
            whole = owners[: len(rolling)] == owners[n - 1 :]
            whole &= specials_before[n:] == specials_before[: len(rolling)]
            yield n, _mixed(rolling[whole] + np.uint64(n)), owners[: len(rolling)][whole]


class Index:
    """The n-grams of texts, to be looked for in rows. About 25 bytes for every n-gram of the texts.

    ``checked`` says which texts are long enough to be looked for; ``overlapping()`` which were found so far.
    """

    def __init__(self, texts: Iterable[str], tokenizer: tokenizers.Tokenizer, clean: str):
        self._words = Words(tokenizer)
        hashes, owners, lengths = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for first, ids, text_numbers, count in _encoded(texts, tokenizer, clean):
            words = self._words.of(ids, text_numbers)
            lengths.append(np.bincount(words[1] - first, minlength=count))
            for n, found, owner in ngrams(words):
                # all 13-grams, or the whole of a shorter text
                fits = np.minimum(lengths[-1][owner - first], WORDS) == n
                hashes.append(found[fits])
                owners.append(owner[fits])
        flat = np.concatenate(hashes)
        order = np.argsort(flat)
        self._owners = np.concatenate(owners)[order].astype(np.int32)
        self._hashes, self._first = np.unique(flat[order], return_index=True)
        self._found = np.zeros(len(self._hashes), dtype=bool)
        self._texts = sum(len(part) for part in lengths)
        self.checked = np.zeros(self._texts, dtype=bool)
        self.checked[self._owners] = True
        self._filter = _Filter(self._hashes)

    def look_in(self, rows: np.ndarray) -> np.ndarray:
        """Note the n-grams that these rows [n, S] hold; returns for each row whether it holds any."""
        affected = np.zeros(len(rows), dtype=bool)
        owners = np.repeat(np.arange(len(rows)), rows.shape[1])
        for _, hashes, row in ngrams(self._words.of(rows.reshape(-1), owners)):
            maybe = self._filter.may_hold(hashes)
            hashes, row = hashes[maybe], row[maybe]
            places = np.minimum(np.searchsorted(self._hashes, hashes), max(len(self._hashes) - 1, 0))
            same = self._hashes[places] == hashes if len(self._hashes) else np.zeros(0, dtype=bool)
            self._found[places[same]] = True
            affected[row[same]] = True
        return affected

    def overlapping(self) -> np.ndarray:
        """For each text, whether any row looked at overlaps with it."""
        counts = np.diff(self._first, append=len(self._owners))
        overlapping = np.zeros(self._texts, dtype=bool)
        overlapping[self._owners[np.repeat(self._found, counts)]] = True
        return overlapping


class _Filter:
    """A bit for the top of every hash: most of what is not there is told by it, without a search."""

    def __init__(self, hashes: np.ndarray):
        self._bits = max(int(len(hashes) * 16).bit_length(), 10)
        self._table = np.zeros(1 << (self._bits - 3), dtype=np.uint8)
        places = hashes >> np.uint64(64 - self._bits)
        np.bitwise_or.at(self._table, places >> np.uint64(3), _bit(places))

    def may_hold(self, hashes: np.ndarray) -> np.ndarray:
        """False where a hash is certainly not there."""
        places = hashes >> np.uint64(64 - self._bits)
        return (self._table[places >> np.uint64(3)] & _bit(places)) != 0


def _bit(places: np.ndarray) -> np.ndarray:
    return np.left_shift(np.uint8(1), (places & np.uint64(7)).astype(np.uint8))


def _encoded(texts: Iterable[str], tokenizer: tokenizers.Tokenizer, clean: str):
    """(first text's number, token ids, their texts' numbers, texts) batch by batch."""
    cleaned = cleaner(clean)
    batch: list[str] = []
    first = 0

    def encode():
        encodings = tokenizer.encode_batch([cleaned(text) for text in batch], add_special_tokens=False)
        ids = np.concatenate([np.array(e.ids, dtype=np.int64) for e in encodings])
        return first, ids, np.repeat(np.arange(first, first + len(batch)), [len(e.ids) for e in encodings]), len(batch)

    for text in texts:
        batch.append(text)
        if len(batch) == BATCH_TEXTS:
            yield encode()
            first, batch = first + len(batch), []
    if batch:
        yield encode()


def _powers(count: int) -> np.ndarray:
    """The base to the power of 0, 1, ..., modulo 2^64."""
    powers = np.full(count, _BASE, dtype=np.uint64)
    powers[:1] = 1
    return np.multiply.accumulate(powers)


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """The same hashes with every bit depending on every other (the end of MurmurHash3)."""
    hashes = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    hashes = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return hashes ^ (hashes >> np.uint64(33))
