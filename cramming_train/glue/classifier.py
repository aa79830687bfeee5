"""The pretrained encoder with a classification head."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from cramming_train.glue.encoding import PackedBatch
from cramming_train.model import MaskedLM
from cramming_train.seeds import derive_seed


class Classifier(nn.Module):
    """<cls> state -> Linear N -> C -> Tanh -> Dropout -> Linear C -> K.

    The head is drawn as the original's: weights from N(0, ``init_std`` of the architecture), biases 0.

    Args:
        model: a pretrained model; it is copied, not changed. Its own dropout rates are the encoder's.
        vocabulary: the ids in use (see :func:`compact_vocabulary`); the classifier takes indices into it.
        outputs: K, the number of classes, or 1 for regression.
        hidden: C.
        dropout: in the head.
        seed: of the head's weights and of its dropout.
    """

    def __init__(self, model: MaskedLM, vocabulary: np.ndarray, outputs: int, hidden: int, dropout: float, seed: int):
        super().__init__()
        self.body = copy.deepcopy(model)
        width = model.architecture.hidden
        self.pooler = nn.Linear(width, hidden)
        self.output = nn.Linear(hidden, outputs)
        self.dropout = dropout
        self.seed = seed
        self._keep_embedding_rows(vocabulary)
        self._draw_head(model.architecture.init_std)

    def forward(self, batch: PackedBatch, step: int | None = None) -> torch.Tensor:
        """Logits [B, K]. With ``step`` dropout is on, and its masks depend on (seed, step) alone."""
        dropout_seed = None if step is None else derive_seed(self.seed, "encoder dropout", step)
        states_BN = self.body.encoder(
            batch.ids_T,
            batch.cu_seqlens,
            batch.max_seqlen,
            positions_M=batch.positions_B,
            dropout_seed=dropout_seed,
        )
        pooled_BC = torch.tanh(self.pooler(states_BN))
        if step is not None:
            pooled_BC = self._drop(pooled_BC, step)
        return self.output(pooled_BC)

    def _drop(self, pooled_BC: torch.Tensor, step: int) -> torch.Tensor:
        generator = torch.Generator(pooled_BC.device).manual_seed(derive_seed(self.seed, "head dropout", step))
        draws = torch.rand(pooled_BC.shape, device=pooled_BC.device, generator=generator)
        return pooled_BC * ((draws >= self.dropout) / (1 - self.dropout)).to(pooled_BC.dtype)

    def _keep_embedding_rows(self, vocabulary: np.ndarray) -> None:
        tokens = self.body.encoder.embedding.tokens
        tokens.weight = nn.Parameter(tokens.weight.detach()[torch.from_numpy(vocabulary)])
        tokens.num_embeddings = len(vocabulary)

    def _draw_head(self, std: float) -> None:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "classifier head"))
        for linear in (self.pooler, self.output):
            nn.init.normal_(linear.weight, std=std, generator=generator)
            nn.init.zeros_(linear.bias)


def loss_of(logits_BK: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy, or mean squared error where there is one output; in fp32."""
    if logits_BK.shape[1] == 1:
        return functional.mse_loss(logits_BK.squeeze(1).float(), labels_B)
    return functional.cross_entropy(logits_BK.float(), labels_B)


def predictions_of(logits_BK: torch.Tensor) -> torch.Tensor:
    """Class numbers, or values where there is one output."""
    return logits_BK.squeeze(1).float() if logits_BK.shape[1] == 1 else logits_BK.argmax(dim=1)
