"""Runs with random weights and a small tokenizer, and the original project's model in plain PyTorch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import tokenizers
import torch
from torch import Tensor
from torch.nn import functional as F

from cramming_train.checkpoint import save_checkpoint
from cramming_train.data.special_tokens import SPECIAL_TOKENS
from cramming_train.data.tokenizer import train_tokenizer
from cramming_train.model import MaskedLM
from cramming_train.recipes import Architecture, get_recipe
from cramming_train.runs import Run
from tests.model.cases import random_model
from tests.model.plain import sinusoid_table

TEXT = "the quick brown fox jumps over the lazy dog; paris is the capital of france. 0123456789 !\"'()-"
VOCAB = 131


def small_tokenizer(clean: str = "ascii", vocab_size: int = VOCAB) -> tokenizers.Tokenizer:
    """Trained as ours are, on one sentence and words of two letters."""
    texts = [TEXT, *(f"{a}{b}" for a in "abcdefghij" for b in "klmnopqrst")] * 3
    return train_tokenizer(texts, vocab_size, clean)


def make_run(folder: Path, architecture: Architecture, tokenizer: tokenizers.Tokenizer, clean: str = "ascii") -> Run:
    """A run's folder with random weights, every one of them."""
    folder.mkdir(parents=True)
    vocab_size = tokenizer.get_vocab_size()
    model = random_model(architecture, dtype=torch.float32, vocab=vocab_size)
    with torch.no_grad():  # roundings grow with the scores of attention: beyond 1e-5, were these larger
        for block in model.encoder.blocks:
            block.qkv.weight *= 0.5
    save_checkpoint(folder / "checkpoints", 3, model, torch.optim.SGD(model.parameters()), {"vocab_size": vocab_size})
    tokenizer.save(str(folder / "tokenizer.json"))
    recipe = get_recipe("crammed-bert-mini")
    data = dataclasses.replace(recipe.data, clean=clean, vocab_size=vocab_size, row_length=architecture.max_length)
    recipe = dataclasses.replace(recipe, architecture=architecture, data=data)
    (folder / "recipe.json").write_text(json.dumps({"recipe": recipe.to_dict(), "seed": 0, "data": {"path": "gone"}}))
    return Run(folder)


@torch.no_grad()
def our_logits(model: MaskedLM, row: Tensor) -> Tensor:
    """Logits [T, V] of one sequence."""
    hidden = model.encoder(row, torch.tensor([0, len(row)], dtype=torch.int32), len(row))
    return model.logits(hidden)


def foreign_tokenizer(order: list[str], words: list[str]) -> tokenizers.Tokenizer:
    """As the original builds its own: special tokens in any order, before the words."""
    vocabulary = {token: number for number, token in enumerate([*order, *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.add_special_tokens(order)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <sep>", special_tokens=[("<sep>", vocabulary["<sep>"])]
    )
    return tokenizer


class Original:
    """The original's model, from its description: every name and the layout of every tensor are its own.

    ``crammed``: GEGLU, scaled sinusoids, no biases, final norm, no head. Otherwise as ``crammed-bert-simple``: plain
    GELU, learned positions, biases, head and decoder bias.
    """

    layers, width, heads, inner, length = 2, 24, 3, 36, 16

    def __init__(self, crammed: bool, vocab_size: int, seed: int = 0):
        self.crammed, self.vocab_size = crammed, vocab_size
        self.generator = torch.Generator().manual_seed(seed)
        width = self.width
        e = "encoder.embedding"
        self.weights = {f"{e}.word_embedding.weight": self._random(vocab_size, width)}
        if crammed:
            self.weights[f"{e}.pos_embedding.scale_factor"] = self._random(1)
        else:
            self.weights[f"{e}.pos_embedding.embedding.weight"] = self._random(self.length, width)
            self.weights[f"{e}.pos_embedding.position_ids"] = torch.arange(self.length)[None]
        self._norm(f"{e}.norm")
        for layer in range(self.layers):
            name = f"encoder.layers.{layer}"
            self._norm(f"{name}.norm1")
            self._norm(f"{name}.norm2")
            self.weights[f"{name}.attn.self_attention.norm_factor"] = torch.tensor(width // self.heads).rsqrt()
            self._linear(f"{name}.attn.self_attention.query_key_value", 3 * width, width)
            self._linear(f"{name}.attn.dense", width, width)
            self._linear(f"{name}.ffn.dense_in", self.inner, width)
            self._linear(f"{name}.ffn.dense_out", width, self.inner // 2 if crammed else self.inner)
        if crammed:
            self._norm("encoder.final_norm")
        else:
            self._linear("prediction_head.dense", width, width)
            self._norm("prediction_head.norm")
            self.weights["decoder.bias"] = self._random(vocab_size)
        self.weights["decoder.weight"] = self.weights[f"{e}.word_embedding.weight"].clone()

    def config(self) -> dict:
        """model_config.json as the original writes it."""
        return {
            "architectures": ["ScriptableCrammedBERT"], "num_transformer_layers": self.layers,
            "hidden_size": self.width, "intermed_size": self.inner, "hidden_dropout_prob": 0.1, "norm": "LayerNorm",
            "norm_eps": 1e-12, "norm_scheme": "pre", "nonlin": "GELUglu" if self.crammed else "GELU",
            "tie_weights": True, "decoder_bias": not self.crammed, "objective_layout": "MLM",
            "skip_head_transform": self.crammed, "use_bias": not self.crammed, "final_norm": self.crammed,
            "embedding": {
                "vocab_size": None, "pos_embedding": "scaled-sinusoidal" if self.crammed else "learned",
                "dropout_prob": 0.1, "pad_token_id": 0, "max_seq_length": self.length, "embedding_dim": self.width,
                "normalization": True,
            },
            "attention": {
                "type": "self-attention", "causal_attention": False, "num_attention_heads": self.heads,
                "dropout_prob": 0.1, "skip_output_projection": False, "qkv_bias": not self.crammed,
                "rotary_embedding": False, "sequence_op": "torch-softmax",
            },
            "init": {"type": "normal", "std": 0.02},
        }  # fmt: skip

    def logits(self, ids_BS: Tensor) -> Tensor:
        """[B, S, V], fp32."""
        w, rows, length = self.weights, *ids_BS.shape
        x = w["encoder.embedding.word_embedding.weight"][ids_BS]
        if self.crammed:
            table = sinusoid_table(self.length, self.width)[:length]
            x = x + w["encoder.embedding.pos_embedding.scale_factor"] * table
        else:
            x = x + w["encoder.embedding.pos_embedding.embedding.weight"][:length]
        x = self._normed("encoder.embedding.norm", x)
        for layer in range(self.layers):
            name = f"encoder.layers.{layer}"
            mixed = self._projected(f"{name}.attn.self_attention.query_key_value", self._normed(f"{name}.norm1", x))
            # query, key and value of one head stand together
            q, k, v = mixed.view(rows, length, self.heads, -1).chunk(3, dim=-1)
            scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * w[f"{name}.attn.self_attention.norm_factor"]
            context = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2)
            x = x + self._projected(f"{name}.attn.dense", context)
            inner = self._projected(f"{name}.ffn.dense_in", self._normed(f"{name}.norm2", x))
            if self.crammed:
                linear, gate = inner.chunk(2, dim=-1)
                inner = F.gelu(gate) * linear
            else:
                inner = F.gelu(inner)
            x = x + self._projected(f"{name}.ffn.dense_out", inner)
        if self.crammed:
            x = self._normed("encoder.final_norm", x)
        else:
            x = self._normed("prediction_head.norm", F.gelu(self._projected("prediction_head.dense", x)))
        return F.linear(x, w["decoder.weight"], w.get("decoder.bias"))

    def _random(self, *shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=self.generator)

    def _linear(self, name: str, outputs: int, inputs: int) -> None:
        self.weights[f"{name}.weight"] = self._random(outputs, inputs)
        if not self.crammed:
            self.weights[f"{name}.bias"] = self._random(outputs)

    def _norm(self, name: str) -> None:
        self.weights[f"{name}.weight"] = 1 + self._random(self.width)
        self.weights[f"{name}.bias"] = self._random(self.width)

    def _projected(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _normed(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.width,), self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-12)


SHUFFLED = ["<sep>", "<mask>", "<pad>", "</s>", "<cls>", "<s>", "<unk>"]
assert sorted(SHUFFLED) == sorted(SPECIAL_TOKENS)
