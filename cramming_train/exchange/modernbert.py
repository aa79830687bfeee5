"""ModernBERT (Warner et al. 2024) as ``transformers`` has it: the stock class of the architecture family ``cram``.

The first layer and every n-th after it attend globally, the others within a window or not, at the same rotary angles;
norms have biases, all linear layers have biases or none. Its GEGLU sends the first half
of ``Wi`` through the GELU; where ours sends the second, the halves change places. ``Wqkv`` has rows [3, H, D] as ours.
With dropout on the two differ in where it acts: ModernBERT's ``mlp_dropout`` is inside the FFN, before ``Wo``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cramming_train.errors import UsageError
from cramming_train.exchange.names import renamed, reversed_table, without_tied
from cramming_train.exchange.vocabulary import TOKEN_IDS
from cramming_train.exchange.wanted import require, require_fields
from cramming_train.recipes import Architecture

MODEL_TYPE, STOCK_CLASS = "modernbert", "ModernBertForMaskedLM"
_DECODER, _EMBEDDING = "decoder.weight", "model.embeddings.tok_embeddings.weight"
_TABLE = {
    "encoder.embedding.tokens": "model.embeddings.tok_embeddings",
    "encoder.embedding.norm": "model.embeddings.norm",
    "encoder.blocks.{}.norm1": "model.layers.{}.attn_norm",
    "encoder.blocks.{}.qkv": "model.layers.{}.attn.Wqkv",
    "encoder.blocks.{}.attention_out": "model.layers.{}.attn.Wo",
    "encoder.blocks.{}.norm2": "model.layers.{}.mlp_norm",
    "encoder.blocks.{}.ffn_in": "model.layers.{}.mlp.Wi",
    "encoder.blocks.{}.ffn_out": "model.layers.{}.mlp.Wo",
    "encoder.final_norm": "model.final_norm",
    "transform.dense": "head.dense",
    "transform.norm": "head.norm",
    "decoder_bias": "decoder.bias",
}


def obstacle(architecture: Architecture) -> str | None:
    """What of the architecture ModernBERT has not, or None."""
    a = architecture
    if a.window is not None and a.global_every is None:
        return f"architecture.window is {a.window} in every block, want architecture.global_every beside it"
    return require_fields(
        a, positions="rope", norm="pre", first_attention_norm=False, final_norm=True, ffn="geglu", head_transform=True,
    )  # fmt: skip


def config_of(architecture: Architecture, vocab_size: int) -> dict[str, Any]:
    """config.json, for transformers 5 (``layer_types``, ``rope_parameters``) and 4.48 or later (the names with
    ``global``)."""
    a = architecture
    rope = {"rope_type": "default", "rope_theta": a.rope_base}
    return {
        "model_type": MODEL_TYPE,
        "architectures": [STOCK_CLASS],
        "vocab_size": vocab_size,
        "hidden_size": a.hidden,
        "intermediate_size": a.ffn_inner,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "max_position_embeddings": a.max_length,
        "layer_types": _layer_types(a.layers, a.global_every if a.window is not None else 1),
        "rope_parameters": {"full_attention": rope, "sliding_attention": rope},
        "global_attn_every_n_layers": a.global_every or 1,
        "local_attention": 128 if a.window is None else 2 * a.window,
        "global_rope_theta": a.rope_base,
        "local_rope_theta": a.rope_base,
        "norm_eps": a.norm_eps,
        "norm_bias": True,
        "attention_bias": a.linear_bias,
        "mlp_bias": a.linear_bias,
        "classifier_bias": a.linear_bias,
        "decoder_bias": a.decoder_bias,
        "hidden_activation": "gelu",
        "classifier_activation": "gelu",
        "attention_dropout": a.attention_dropout,
        "mlp_dropout": a.dropout,
        "embedding_dropout": a.embedding_dropout,
        "initializer_range": a.init_std,
        "tie_word_embeddings": True,
        **TOKEN_IDS,
    }


def exported(architecture: Architecture, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under their names."""
    result = renamed(weights, _TABLE, "the run")
    if architecture.gate == "second":
        for name in [name for name in result if ".mlp.Wi." in name]:
            result[name] = torch.cat(result[name].chunk(2)[::-1])
    return result


def architecture_of(config: Mapping[str, Any], origin: str) -> Architecture:
    """The architecture of a config.json; UsageError where it is none of ours."""
    layers = config.get("num_hidden_layers", 22)
    window, global_every = _windows(config, layers, origin)
    require(
        {**config, **_ropes(config, window)}, origin,
        norm_bias=True, hidden_activation="gelu", classifier_activation="gelu", tie_word_embeddings=True,
        rope_type="default", rope_theta_of_windows="the others'", mlp_bias=config.get("attention_bias", False),
        classifier_bias=config.get("attention_bias", False),
    )  # fmt: skip
    return Architecture(
        MODEL_TYPE, layers, config["hidden_size"], config["num_attention_heads"], 2 * config["intermediate_size"],
        ffn="geglu", gate="first", final_norm=True, first_attention_norm=False, positions="rope",
        max_length=config["max_position_embeddings"], rope_base=_rope(config, "full_attention")["rope_theta"],
        linear_bias=config.get("attention_bias", False), norm_eps=config.get("norm_eps", 1e-5),
        decoder_bias=config.get("decoder_bias", True), init_std=config.get("initializer_range", 0.02),
        dropout=config.get("mlp_dropout", 0.0), attention_dropout=config.get("attention_dropout", 0.0),
        embedding_dropout=config.get("embedding_dropout", 0.0), window=window, global_every=global_every,
    )  # fmt: skip


def imported(architecture: Architecture, weights: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """Their weights under our names."""
    weights = dict(weights)
    without_tied(weights, _DECODER, _EMBEDDING, origin)
    return renamed(weights, reversed_table(_TABLE), origin)


def _layer_types(layers: int, every: int) -> list[str]:
    return ["sliding_attention" if layer % every else "full_attention" for layer in range(layers)]


def _windows(config: Mapping[str, Any], layers: int, origin: str) -> tuple[int | None, int | None]:
    """(window, global_every); UsageError where global layers are not each n-th."""
    types = config.get("layer_types") or _layer_types(layers, config.get("global_attn_every_n_layers", 3))
    if "sliding_attention" not in types:
        return None, None
    every = next((n for n in range(1, layers + 1) if types == _layer_types(layers, n)), None)
    if every is None:
        raise UsageError(f"{origin}: layer_types is {types}; the architectures here have full_attention in each n-th")
    return config.get("local_attention", 128) // 2, every


def _ropes(config: Mapping[str, Any], window: int | None) -> dict[str, Any]:
    own, local = _rope(config, "full_attention"), _rope(config, "sliding_attention")
    same = window is None or own == local
    return {
        "rope_type": own["rope_type"],
        "rope_theta_of_windows": "the others'" if same else local["rope_theta"],
    }


def _rope(config: Mapping[str, Any], layer_type: str) -> dict[str, Any]:
    written = (config.get("rope_parameters") or {}).get(layer_type) or {}
    old, default = (
        ("local_rope_theta", 10000.0) if layer_type == "sliding_attention" else ("global_rope_theta", 160000.0)
    )
    return {"rope_type": "default", "rope_theta": float(config.get(old, default)), **written}
