"""The pretrained encoder with a head for one task."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from cramming_train.evaluation.encoding import PackedBatch
from cramming_train.model import MaskedLM
from cramming_train.seeds import derive_seed


class Classifier(nn.Module):
    """State of a sequence -> Linear N -> C -> Tanh -> Dropout -> Linear C -> K.

    The head is drawn as the original's: weights from N(0, ``init_std`` of the architecture), biases 0.

    Args:
        model: a pretrained model; its encoder is copied, not changed. Its own dropout rates are the encoder's.
        vocabulary: the ids in use (see :func:`compact_vocabulary`); the classifier takes indices into it.
        outputs: K, the number of classes, or 1 for regression and for choices.
        hidden: C.
        dropout: in the head.
        seed: of the head's weights and of its dropout.
        pooling: what the state of a sequence is: "cls", that of its <cls>, or "mean", of all its tokens.
    """

    def __init__(
        self, model: MaskedLM, vocabulary: np.ndarray, outputs: int, hidden: int, dropout: float, seed: int,
        pooling: str = "cls",
    ):  # fmt: skip
        super().__init__()
        self.encoder = copy.deepcopy(model.encoder)
        self.pooler = nn.Linear(model.architecture.hidden, hidden)
        self.output = nn.Linear(hidden, outputs)
        self.dropout = dropout
        self.pooling = pooling
        self.seed = seed
        self._keep_embedding_rows(vocabulary)
        self._draw_head(model.architecture.init_std)

    def forward(self, batch: PackedBatch, step: int | None = None) -> torch.Tensor:
        """Logits [B, K]; for choices [B, most choices], -inf where an example has fewer.

        With ``step`` dropout is on, and its masks depend on (seed, step) alone.
        """
        dropout_seed = None if step is None else derive_seed(self.seed, "encoder dropout", step)
        pooled_SC = torch.tanh(self.pooler(self._states(batch, dropout_seed)))
        if step is not None:
            pooled_SC = self._drop(pooled_SC, step)
        logits_SK = self.output(pooled_SC)
        return logits_SK if batch.choices is None else by_choice(logits_SK, batch.choices)

    def _states(self, batch: PackedBatch, dropout_seed: int | None) -> torch.Tensor:
        """[S, N]."""
        positions_M = batch.positions_S if self.pooling == "cls" else None
        states = self.encoder(
            batch.ids_T, batch.cu_seqlens, batch.max_seqlen, positions_M=positions_M, dropout_seed=dropout_seed
        )
        if self.pooling == "cls":
            return states
        return torch.segment_reduce(states.float(), "mean", lengths=batch.cu_seqlens.diff().long())

    def _drop(self, pooled_SC: torch.Tensor, step: int) -> torch.Tensor:
        generator = torch.Generator(pooled_SC.device).manual_seed(derive_seed(self.seed, "head dropout", step))
        draws = torch.rand(pooled_SC.shape, device=pooled_SC.device, generator=generator)
        return pooled_SC * ((draws >= self.dropout) / (1 - self.dropout)).to(pooled_SC.dtype)

    def _keep_embedding_rows(self, vocabulary: np.ndarray) -> None:
        tokens = self.encoder.embedding.tokens
        tokens.weight = nn.Parameter(tokens.weight.detach()[torch.from_numpy(vocabulary)])
        tokens.num_embeddings = len(vocabulary)

    def _draw_head(self, std: float) -> None:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "classifier head"))
        for linear in (self.pooler, self.output):
            nn.init.normal_(linear.weight, std=std, generator=generator)
            nn.init.zeros_(linear.bias)


def by_choice(scores_S1: torch.Tensor, choices: Sequence[int]) -> torch.Tensor:
    """The scores [S, 1] of all sequences as a row [most choices] for each example, filled up with -inf."""
    rows = scores_S1.squeeze(1).split(list(choices))
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=-torch.inf)


def loss_of(logits_BK: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy; mean squared error of the one output where the labels are values; in fp32."""
    if labels_B.is_floating_point():
        return functional.mse_loss(logits_BK.squeeze(1).float(), labels_B)
    return functional.cross_entropy(logits_BK.float(), labels_B)


def predictions_of(logits_BK: torch.Tensor, *, regression: bool) -> torch.Tensor:
    """Class numbers or numbers of the chosen sequences; the values themselves for a regression."""
    return logits_BK.squeeze(1).float() if regression else logits_BK.argmax(dim=1)
