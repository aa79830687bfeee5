"""Masked language models of cramming_train for transformers: load the folder with ``trust_remote_code=True``.

Padded rows, plain PyTorch, nothing fused. Dropout is not part of it: this is for using weights, not for training them.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput


class CramConfig(PretrainedConfig):
    """``architecture``: the fields of the recipe's architecture, as JSON."""

    model_type = "cram"

    def __init__(self, vocab_size=32768, architecture=None, **kwargs):
        super().__init__(**kwargs)
        self.vocab_size = vocab_size
        self.architecture = architecture
        if architecture is not None:  # the names by which transformers' tools ask
            self.hidden_size = architecture["hidden"]
            self.num_hidden_layers = architecture["layers"]
            self.num_attention_heads = architecture["heads"]
            self.max_position_embeddings = architecture["max_length"]


class Embedding(nn.Module):
    def __init__(self, a, vocab_size):
        super().__init__()
        self.kind = a["positions"]
        self.tokens = nn.Embedding(vocab_size, a["hidden"])
        if self.kind == "learned":
            self.positions = nn.Embedding(a["max_length"], a["hidden"])
        elif self.kind == "scaled-sinusoidal":
            self.position_scale = nn.Parameter(torch.ones(1))
        self.norm = nn.LayerNorm(a["hidden"], eps=a["norm_eps"])

    def forward(self, ids_BS):
        x_BSN = self.tokens(ids_BS)
        if self.kind == "learned":
            x_BSN = x_BSN + self.positions.weight[: ids_BS.shape[1]]
        elif self.kind == "scaled-sinusoidal":
            angle = _angles(ids_BS, x_BSN.shape[2], 10000.0)
            table = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).to(x_BSN.dtype)
            x_BSN = x_BSN + self.position_scale * table
        return self.norm(x_BSN)


class Block(nn.Module):
    def __init__(self, a, first):
        super().__init__()
        self.a = a
        width, bias, eps = a["hidden"], a["linear_bias"], a["norm_eps"]
        gated = a["ffn"] == "geglu"
        has_norm1 = a["first_attention_norm"] or not first
        self.norm1 = nn.LayerNorm(width, eps=eps) if has_norm1 else nn.Identity()
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.attention_out = nn.Linear(width, width, bias=bias)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.ffn_in = nn.Linear(width, a["ffn_hidden"], bias=bias)
        self.ffn_out = nn.Linear(a["ffn_hidden"] // 2 if gated else a["ffn_hidden"], width, bias=bias)

    def forward(self, x_BSN, rope, visible):
        if self.a["norm"] == "pre":
            x_BSN = x_BSN + self.attend(self.norm1(x_BSN), rope, visible)
            return x_BSN + self.feed_forward(self.norm2(x_BSN))
        x_BSN = self.norm1(x_BSN + self.attend(x_BSN, rope, visible))
        return self.norm2(x_BSN + self.feed_forward(x_BSN))

    def attend(self, x_BSN, rope, visible):
        q, k, v = self.qkv(x_BSN).unflatten(2, (3, self.a["heads"], -1)).permute(2, 0, 3, 1, 4)
        if rope is not None:
            q, k = _rotated(q, rope), _rotated(k, rope)
        mixed_BHSD = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return self.attention_out(mixed_BHSD.transpose(1, 2).flatten(2))

    def feed_forward(self, x_BSN):
        inner = self.ffn_in(x_BSN)
        if self.a["ffn"] == "geglu":
            first, second = inner.chunk(2, dim=-1)
            return self.ffn_out(first * F.gelu(second) if self.a["gate"] == "second" else F.gelu(first) * second)
        return self.ffn_out(F.gelu(inner))


class Encoder(nn.Module):
    def __init__(self, a, vocab_size):
        super().__init__()
        self.a = a
        self.embedding = Embedding(a, vocab_size)
        self.blocks = nn.ModuleList(Block(a, layer == 0) for layer in range(a["layers"]))
        self.final_norm = nn.LayerNorm(a["hidden"], eps=a["norm_eps"]) if a["final_norm"] else nn.Identity()

    def forward(self, ids_BS, mask_BS):
        rope = None
        if self.a["positions"] == "rope":
            angle = _angles(ids_BS, self.a["hidden"] // self.a["heads"], self.a["rope_base"])
            dtype = self.embedding.tokens.weight.dtype
            rope = angle.cos().to(dtype), angle.sin().to(dtype)
        every, near = (self.visible(ids_BS, mask_BS, window) for window in (None, self.a["window"]))
        x_BSN = self.embedding(ids_BS)
        for layer, block in enumerate(self.blocks):
            is_global = self.a["global_every"] and layer % self.a["global_every"] == 0
            x_BSN = block(x_BSN, rope, every if is_global else near)
        return self.final_norm(x_BSN)

    def visible(self, ids_BS, mask_BS, window):
        """Which key each query sees, [B or 1, 1, S or 1, S]; None where all see all. Every token sees itself."""
        visible = None if mask_BS is None else mask_BS.bool()[:, None, None, :]
        if window is not None:
            index = torch.arange(ids_BS.shape[1], device=ids_BS.device)
            distance = (index[:, None] - index[None, :]).abs()
            near = distance <= window
            visible = near[None, None] if visible is None else (visible & near) | (distance == 0)
        return visible


class HeadTransform(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.dense = nn.Linear(a["hidden"], a["hidden"], bias=a["linear_bias"])
        self.norm = nn.LayerNorm(a["hidden"], eps=a["norm_eps"])

    def forward(self, x_BSN):
        return self.norm(F.gelu(self.dense(x_BSN)))


class CramForMaskedLM(PreTrainedModel):
    """The decoder's matrix is the token embedding."""

    config_class = CramConfig

    def __init__(self, config):
        super().__init__(config)
        a = config.architecture
        self.encoder = Encoder(a, config.vocab_size)
        self.transform = HeadTransform(a) if a["head_transform"] else nn.Identity()
        self.decoder_bias = nn.Parameter(torch.zeros(config.vocab_size)) if a["decoder_bias"] else None
        self.post_init()

    def get_input_embeddings(self):
        return self.encoder.embedding.tokens

    def forward(self, input_ids, attention_mask=None, labels=None, **_):
        """Logits [B, S, V]; with ``labels`` the mean cross-entropy where they are not -100.

        Rows are padded on the right; ``attention_mask`` [B, S] is 1 on tokens.
        """
        limit = self.config.architecture["max_length"]
        if input_ids.shape[1] > limit:
            raise ValueError(f"input_ids: rows of {input_ids.shape[1]} tokens, want at most {limit}")
        hidden_BSN = self.transform(self.encoder(input_ids, attention_mask))
        logits_BSV = F.linear(hidden_BSN, self.get_input_embeddings().weight, self.decoder_bias)
        loss = None if labels is None else F.cross_entropy(logits_BSV.flatten(0, 1).float(), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits_BSV)


def _angles(ids_BS, width, base):
    """Position times base^(-2i / width), fp64 [S, width / 2]."""
    device = ids_BS.device
    frequency = base ** (-torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)
    return torch.arange(ids_BS.shape[1], dtype=torch.float64, device=device)[:, None] * frequency


def _rotated(x_BHSD, rope):
    """Pairs (i, i + D / 2), each turned by its angle."""
    cos, sin = rope
    low, high = x_BHSD.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)
