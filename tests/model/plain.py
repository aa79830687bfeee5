"""The masked LM once more, in plain PyTorch: padded rows, nothing fused; the package gives names and weights alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SEP = 5


class PlainMaskedLM:
    """Written from the description of the architectures, to be compared with :class:`cramming_train.model.MaskedLM`.

    ``weights`` are leaf tensors of their own, so that their gradients can be compared too.
    """

    def __init__(self, model: torch.nn.Module):
        self.a = model.architecture
        self.weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}

    def loss(self, ids_BS: Tensor, labels_M: Tensor, positions_M: Tensor) -> Tensor:
        """Mean cross-entropy at the masked positions, every row computed to the end."""
        return F.cross_entropy(self.logits(ids_BS)[positions_M], labels_M)

    def logits(self, ids_BS: Tensor) -> Tensor:
        """[B * S, V]: the tied decoder after the optional dense -> GELU -> LN."""
        z = self.hidden(ids_BS).flatten(0, 1)
        if self.a.head_transform:
            z = self.norm("transform.norm", F.gelu(self.linear("transform.dense", z)))
        z = z @ self.weights["encoder.embedding.tokens.weight"].T
        return z + self.weights["decoder_bias"] if self.a.decoder_bias else z

    def hidden(self, ids_BS: Tensor) -> Tensor:
        """[B, S, N] after the last norm."""
        self.document_BS, self.position_BS = places(ids_BS, self.a.document_attention)
        x = self.drop(self.embed(ids_BS), self.a.embedding_dropout)
        for layer in range(self.a.layers):
            name = f"encoder.blocks.{layer}"
            if self.a.norm == "pre":
                x = x + self.drop(self.attention(name, self.norm(f"{name}.norm1", x)), self.a.dropout)
                x = x + self.drop(self.feed_forward(name, self.norm(f"{name}.norm2", x)), self.a.dropout)
            else:
                x = self.norm(f"{name}.norm1", x + self.drop(self.attention(name, x), self.a.dropout))
                x = self.norm(f"{name}.norm2", x + self.drop(self.feed_forward(name, x), self.a.dropout))
        return self.norm("encoder.final_norm", x) if self.a.final_norm else x

    def embed(self, ids_BS: Tensor) -> Tensor:
        x = self.weights["encoder.embedding.tokens.weight"][ids_BS]
        if self.a.positions == "learned":
            x = x + self.weights["encoder.embedding.positions.weight"][self.position_BS]
        if self.a.positions == "scaled-sinusoidal":
            table = sinusoid_table(self.a.max_length, self.a.hidden).to(x.dtype)
            x = x + self.weights["encoder.embedding.position_scale"] * table[self.position_BS]
        return self.norm("encoder.embedding.norm", x)

    def attention(self, name: str, x_BSN: Tensor) -> Tensor:
        rows, length, _ = x_BSN.shape
        qkv = self.linear(f"{name}.qkv", x_BSN).view(rows, length, 3, self.a.heads, self.a.head_dim)
        q, k, v = (qkv[:, :, part].transpose(1, 2) for part in range(3))
        if self.a.positions == "rope":
            q, k = (rotated(x, self.position_BS, self.a.rope_base) for x in (q, k))
        mixed = self.mix(q, k, v, self.visible(int(name.split(".")[2])).unsqueeze(1))
        return self.linear(f"{name}.attention_out", mixed.transpose(1, 2).reshape(rows, length, -1))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)

    def visible(self, layer: int) -> Tensor:
        """[B, S, S]: which key each query sees."""
        together = self.document_BS.unsqueeze(2) == self.document_BS.unsqueeze(1)
        if self.a.window is None or self.a.global_every and layer % self.a.global_every == 0:
            return together
        index = torch.arange(together.shape[1])
        return together & ((index[:, None] - index[None, :]).abs() <= self.a.window)

    def feed_forward(self, name: str, x: Tensor) -> Tensor:
        inner = self.linear(f"{name}.ffn_in", x)
        if self.a.ffn == "geglu":
            first, second = inner[..., : self.a.ffn_hidden // 2], inner[..., self.a.ffn_hidden // 2 :]
            inner = first * F.gelu(second) if self.a.gate == "second" else F.gelu(first) * second
        else:
            inner = F.gelu(inner)
        return self.linear(f"{name}.ffn_out", inner)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def norm(self, name: str, x: Tensor) -> Tensor:
        if name == "encoder.blocks.0.norm1" and not self.a.first_attention_norm:
            return x
        return F.layer_norm(
            x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], self.a.norm_eps
        )

    def drop(self, x: Tensor, rate: float) -> Tensor:
        """No dropout here; a subclass may."""
        return x


def places(ids_BS: Tensor, document_attention: bool) -> tuple[Tensor, Tensor]:
    """For each token the number of its document within the row, and its position there, counted one by one."""
    document_BS, position_BS = torch.zeros_like(ids_BS), torch.zeros_like(ids_BS)
    for row in range(ids_BS.shape[0]):
        document = position = 0
        for column in range(ids_BS.shape[1]):
            document_BS[row, column], position_BS[row, column] = document, position
            position += 1
            if document_attention and ids_BS[row, column] == SEP:
                document, position = document + 1, 0
    return document_BS, position_BS


def sinusoid_table(length: int, width: int) -> Tensor:
    """sin(p / 10000^(2i/d)) on dimension 2i, cos on 2i + 1, rounded to fp32."""
    position = torch.arange(length, dtype=torch.float64)
    table = torch.zeros(length, width, dtype=torch.float64)
    for pair in range(width // 2):
        angle = position / 10000 ** (2 * pair / width)
        table[:, 2 * pair], table[:, 2 * pair + 1] = angle.sin(), angle.cos()
    return table.float()


def rotated(x_BHSD: Tensor, position_BS: Tensor, base: float) -> Tensor:
    """RoPE as multiplication of complex numbers x_i + i x_(i + D/2) by exp(i p theta_i), theta_i = base^(-2i/D)."""
    half = x_BHSD.shape[-1] // 2
    theta = torch.tensor([base ** (-2 * i / (2 * half)) for i in range(half)], dtype=torch.float64)
    angle = position_BS.double()[:, None, :, None] * theta
    turn = torch.complex(angle.cos().float().to(x_BHSD.dtype), angle.sin().float().to(x_BHSD.dtype))
    turned = torch.complex(x_BHSD[..., :half].contiguous(), x_BHSD[..., half:].contiguous()) * turn
    return torch.cat([turned.real, turned.imag], dim=-1)
