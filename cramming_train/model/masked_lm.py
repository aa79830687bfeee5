"""The masked language model: encoder, optional head transform, tied decoder, loss on the masked rows alone."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import linear

from cramkernels import MLMLoss, gelu_layer_norm, mlm_loss
from cramming_train.model.encoder import Encoder
from cramming_train.model.norm import LayerNorm
from cramming_train.recipes import Architecture
from cramming_train.seeds import derive_seed


class HeadTransform(nn.Module):
    """BERT's prediction-head transform: dense -> GELU -> LN."""

    def __init__(self, architecture: Architecture):
        super().__init__()
        self.dense = nn.Linear(architecture.hidden, architecture.hidden, bias=architecture.linear_bias)
        self.norm = LayerNorm(architecture.hidden, architecture.norm_eps)

    def forward(self, hidden_MN: torch.Tensor) -> torch.Tensor:
        """[M, N] -> [M, N]."""
        return gelu_layer_norm(self.dense(hidden_MN), self.norm.weight, self.norm.bias, eps=self.norm.eps)


class MaskedLM(nn.Module):
    """Everything that pretraining trains. The decoder's matrix is the token embedding."""

    def __init__(self, architecture: Architecture, vocab_size: int):
        super().__init__()
        self.architecture = architecture
        self.vocab_size = vocab_size
        self.encoder = Encoder(architecture, vocab_size)
        self.transform = HeadTransform(architecture) if architecture.head_transform else None
        self.decoder_bias = nn.Parameter(torch.zeros(vocab_size)) if architecture.decoder_bias else None

    def forward(
        self,
        ids_T: torch.Tensor,
        labels_M: torch.Tensor,
        positions_M: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        *,
        dropout_seed: int | torch.Tensor | None = None,
        grad_scale: torch.Tensor | None = None,
        window: int | None = None,
    ) -> MLMLoss:
        """Loss at the masked positions. For ``grad_scale`` (the loss scaler's) see :func:`cramkernels.mlm_loss`, for
        the rest :meth:`Encoder.forward`."""
        hidden_MN = self.encoder(
            ids_T, cu_seqlens, max_seqlen, positions_M=positions_M, dropout_seed=dropout_seed, window=window
        )
        transformed_MN = self._transformed(hidden_MN)
        return mlm_loss(transformed_MN, self._decoder, labels_M, bias=self.decoder_bias, grad_scale=grad_scale)

    def logits(self, hidden_MN: torch.Tensor) -> torch.Tensor:
        """Vocabulary logits [M, V] of hidden states."""
        return linear(self._transformed(hidden_MN), self._decoder, self.decoder_bias)

    @property
    def _decoder(self) -> torch.Tensor:
        return self.encoder.embedding.tokens.weight

    def _transformed(self, hidden_MN: torch.Tensor) -> torch.Tensor:
        return hidden_MN if self.transform is None else self.transform(hidden_MN)


def build_model(architecture: Architecture, vocab_size: int, *, seed: int) -> MaskedLM:
    """A freshly initialised model on the CPU: N(0, init_std) matrices and embeddings, zero biases, unit norms.

    The projections back to the residual (``attention_out``, ``ffn_out``) start as ``output_init`` says: "normal" as all
    others; "depth-scaled" with init_std / sqrt(2 x layers) (Radford et al. 2019, GPT-2); "zero", so that every block
    begins as the identity (Zhang et al. 2019, "Fixup"). The weights depend on (architecture, vocab_size, seed) alone.
    """
    model = MaskedLM(architecture, vocab_size)
    generator = torch.Generator().manual_seed(derive_seed(seed, "initialisation"))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=architecture.init_std, generator=generator)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if name.endswith(("attention_out", "ffn_out")):
            with torch.no_grad():  # scaled after the draw, so that the other weights do not depend on it
                module.weight.mul_(_output_scale(architecture))
    return model


def _output_scale(architecture: Architecture) -> float:
    return {"normal": 1.0, "depth-scaled": (2 * architecture.layers) ** -0.5, "zero": 0.0}[architecture.output_init]
