"""A run's model for use from Python: embeddings of texts, logits of tokens, and what may stand for <mask>."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tokenizers
import torch

from cramming_train.data.special_tokens import MASK_ID, SPECIAL_TOKENS
from cramming_train.errors import UsageError
from cramming_train.evaluation.encoding import frame
from cramming_train.evaluation.subject import TextPipeline
from cramming_train.runs import Run

MASK = SPECIAL_TOKENS[MASK_ID]
BATCH = 64  # texts embedded at once


class Prediction(NamedTuple):
    """A token that may stand at a mask."""

    token: str
    id: int
    probability: float


class LanguageModel:
    """The newest weights of a run, with its own way from text to tokens. Made by :func:`cramming_train.load`.

    Texts are cleaned as in training, tokenised and framed as ``<cls> text <sep>``.

    Attributes:
        tokenizer: the run's :class:`tokenizers.Tokenizer`. Special tokens written in a text are text to it.
        model: the :class:`cramming_train.model.MaskedLM`, in evaluation mode.
        max_length: the most tokens of one text, <cls> and <sep> included.
    """

    def __init__(self, run: Run, device: torch.device | str = "cpu"):
        self.model = run.load_model(device)
        self.tokenizer: tokenizers.Tokenizer = run.tokenizer()
        self.max_length = self.model.architecture.max_length
        self.device = torch.device(device)
        self._text = TextPipeline(run.recipe.data.clean, self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text: cleaned, tokenised, framed, and cut to ``max_length``."""
        return frame([self._tokens(text)], self.max_length).tolist()

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """One vector a text, fp32 [texts, hidden], on the CPU.

        It is the mean of the last hidden states (after the final norm, where there is one) over all tokens, <cls> and
        <sep> included. Longer texts are cut to ``max_length``.
        """
        if isinstance(texts, str):
            raise TypeError("embed: want a list of texts, got one string")
        vectors = [torch.empty(0, self.model.architecture.hidden)]
        for start in range(0, len(texts), BATCH):
            rows = [torch.tensor(self.encode(text)) for text in texts[start : start + BATCH]]
            hidden_TN = self._hidden(rows)
            means = [part.mean(dim=0) for part in hidden_TN.float().split([len(row) for row in rows])]
            vectors.append(torch.stack(means).cpu())
        return torch.cat(vectors)

    @torch.no_grad()
    def logits(self, ids: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Vocabulary logits at every position of one sequence: ids [T] -> fp32 [T, V], on the CPU.

        Raises:
            ValueError: not one sequence of 1 to ``max_length`` ids of the vocabulary.
        """
        row_T = torch.as_tensor(ids, dtype=torch.int64)
        if row_T.dim() != 1 or not 0 < len(row_T) <= self.max_length:
            raise ValueError(f"logits: got ids of shape {list(row_T.shape)}, want [T], T from 1 to {self.max_length}")
        if row_T.min() < 0 or row_T.max() >= self.model.vocab_size:
            raise ValueError(f"logits: an id is outside the vocabulary of {self.model.vocab_size}")
        return self.model.logits(self._hidden([row_T])).float().cpu()

    def fill(self, text: str, top: int = 5) -> list[list[Prediction]]:
        """For each ``<mask>`` of the text the ``top`` likeliest tokens, given all the rest.

        Raises:
            UsageError: no <mask> in the text, or more tokens than ``max_length``.
        """
        parts = text.split(MASK)
        if len(parts) == 1:
            raise UsageError(f"no {MASK} in the text: write {MASK} where a token is to be predicted")
        pieces = [self._tokens(parts[0])]
        for part in parts[1:]:
            pieces += [np.array([MASK_ID], dtype=np.int32), self._tokens(part)]
        ids = np.concatenate(pieces)
        if len(ids) + 2 > self.max_length:
            raise UsageError(f"the text has {len(ids) + 2} tokens with <cls> and <sep>; want at most {self.max_length}")
        row = torch.from_numpy(frame([ids], self.max_length))
        probabilities_MV = self.logits(row)[row == MASK_ID].softmax(dim=-1)
        best = probabilities_MV.topk(min(top, self.model.vocab_size))
        return [
            [Prediction(self.tokenizer.id_to_token(i) or "", i, p) for i, p in zip(indices, values, strict=True)]
            for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _tokens(self, text: str) -> np.ndarray:
        ids = self.tokenizer.encode(self._text.clean(text), add_special_tokens=False).ids
        return np.array(ids, dtype=np.int32)

    def _hidden(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """Hidden states of whole sequences, packed, [T, N]."""
        ends = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0).to(torch.int32)
        ids_T = torch.cat(list(rows)).to(self.device, torch.int64)
        return self.model.encoder(ids_T, ends.to(self.device), max(len(row) for row in rows))
