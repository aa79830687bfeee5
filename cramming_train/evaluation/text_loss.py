"""Held-out masked-LM loss of a run on any text files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cramming_train.data.cleaning import clean_text
from cramming_train.data.files import find_files, read_documents
from cramming_train.data.special_tokens import SEP_ID
from cramming_train.data.store import row_dtype
from cramming_train.errors import UsageError
from cramming_train.precision import Precision
from cramming_train.runs import Run
from cramming_train.validation import held_out_loss

DOCUMENTS = 64  # cleaned and tokenised at once


@dataclass(frozen=True)
class TextRows:
    """Rows of token ids in memory, as :class:`cramming_train.data.Rows` has them on disk.

    Attributes:
        ids: [rows, S].
        documents, characters, tokens: of the cleaned text; the tokens count a <sep> after every document.
    """

    ids: np.ndarray
    documents: int
    characters: int
    tokens: int

    @property
    def row_length(self) -> int:
        """Tokens in a row."""
        return self.ids.shape[1]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: np.ndarray) -> np.ndarray:
        """The rows with these numbers."""
        return self.ids[indices]


def text_loss(run: Run, sources: Sequence[str], column: str, device: torch.device) -> dict[str, Any]:
    """Loss on the documents of files, folders or globs (see :func:`find_files`), by the protocol of held-out rows.

    ``bits_per_character`` is the loss in bits times tokens per character: what a character would cost if every token
    cost as much as the masked ones. It compares models with other vocabularies, and is no rate of compression.

    Raises:
        UsageError: no such file, no text, or less than a row of it.
    """
    files = [path for source in sources for path in find_files(source)]
    rows = text_rows(run, files, column)
    dtype = Precision(run.recipe.training.precision, device).dtype
    result = held_out_loss(run.load_model(device), rows, device=device, autocast_dtype=dtype)
    bits = result["loss"] / math.log(2) * rows.tokens / rows.characters
    return {
        "files": [str(path) for path in files],
        **result,
        "bits_per_character": bits,
        "documents": rows.documents,
        "characters": rows.characters,
        "text_tokens": rows.tokens,
    }


def text_rows(run: Run, files: Sequence[Path], column: str) -> TextRows:
    """Clean and tokenise as the run's own text was, with <sep> after every document, and cut into its rows.

    Nothing is deduplicated or filtered; the end that fills no row is left out.
    """
    length, tokenizer = run.recipe.data.row_length, run.tokenizer()
    dtype = row_dtype(tokenizer.get_vocab_size())
    pieces, documents, characters = [], 0, 0
    texts = _clean_documents(files, column, run.recipe.data.clean)
    while chunk := list(islice(texts, DOCUMENTS)):
        for text, encoding in zip(chunk, tokenizer.encode_batch_fast(chunk, add_special_tokens=False), strict=True):
            if encoding.ids:
                pieces.append(np.array([*encoding.ids, SEP_ID], dtype=dtype))
                documents, characters = documents + 1, characters + len(text)
    tokens = sum(map(len, pieces))
    if tokens < length:
        names = ", ".join(map(str, files))
        raise UsageError(f"--data {names}: {tokens} tokens of text, less than one row of {length}; give more text")
    stream = np.concatenate(pieces)
    return TextRows(stream[: tokens // length * length].reshape(-1, length), documents, characters, tokens)


def _clean_documents(files: Sequence[Path], column: str, rule: str) -> Iterator[str]:
    """Documents as preparation cleans them: paragraph by paragraph."""
    for path in files:
        for text in read_documents(path, column):
            paragraphs = (clean_text(part, rule) for part in text.replace("\r\n", "\n").split("\n\n"))
            yield "\n".join(part for part in paragraphs if part)
