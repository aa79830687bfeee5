"""BERT (Devlin et al. 2019) as ``transformers`` has it, ``BertForMaskedLM``.

Our models have one segment. Written, the token type embeddings are zeros. Read, the first segment's row is added to
every position's; the second segment's is dropped, so that a pair of texts is one segment here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cramming_train.data.special_tokens import PAD_ID
from cramming_train.exchange.names import renamed, reversed_table, without_tied
from cramming_train.exchange.wanted import require, require_fields
from cramming_train.recipes import Architecture

MODEL_TYPE, STOCK_CLASS = "bert", "BertForMaskedLM"
_EMBEDDINGS, _HEAD = "bert.embeddings", "cls.predictions"
_POSITIONS, _TYPES = f"{_EMBEDDINGS}.position_embeddings.weight", f"{_EMBEDDINGS}.token_type_embeddings.weight"
_SEGMENTS = 2
_UNUSED = ("bert.pooler.", "cls.seq_relationship.", f"{_EMBEDDINGS}.position_ids")  # of the next-sentence task
_TABLE = {
    "encoder.embedding.tokens": f"{_EMBEDDINGS}.word_embeddings",
    "encoder.embedding.positions": f"{_EMBEDDINGS}.position_embeddings",
    "encoder.embedding.norm": f"{_EMBEDDINGS}.LayerNorm",
    "encoder.blocks.{}.qkv": "bert.encoder.layer.{}.attention.self.qkv",  # they have three matrices
    "encoder.blocks.{}.attention_out": "bert.encoder.layer.{}.attention.output.dense",
    "encoder.blocks.{}.norm1": "bert.encoder.layer.{}.attention.output.LayerNorm",
    "encoder.blocks.{}.ffn_in": "bert.encoder.layer.{}.intermediate.dense",
    "encoder.blocks.{}.ffn_out": "bert.encoder.layer.{}.output.dense",
    "encoder.blocks.{}.norm2": "bert.encoder.layer.{}.output.LayerNorm",
    "transform.dense": f"{_HEAD}.transform.dense",
    "transform.norm": f"{_HEAD}.transform.LayerNorm",
    "decoder_bias": f"{_HEAD}.bias",
}
_QKV = ("query", "key", "value")


def obstacle(architecture: Architecture) -> str | None:
    """What of the architecture BERT has not, or None."""
    return require_fields(
        architecture, positions="learned", norm="post", final_norm=False, ffn="gelu", linear_bias=True,
        head_transform=True, decoder_bias=True, window=None,
    )  # fmt: skip


def config_of(architecture: Architecture, vocab_size: int) -> dict[str, Any]:
    """config.json."""
    a = architecture
    return {
        "model_type": MODEL_TYPE,
        "architectures": [STOCK_CLASS],
        "vocab_size": vocab_size,
        "hidden_size": a.hidden,
        "intermediate_size": a.ffn_hidden,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "max_position_embeddings": a.max_length,
        "type_vocab_size": _SEGMENTS,
        "layer_norm_eps": a.norm_eps,
        "hidden_act": "gelu",
        "hidden_dropout_prob": a.dropout,
        "attention_probs_dropout_prob": a.attention_dropout,
        "initializer_range": a.init_std,
        "tie_word_embeddings": True,
        "pad_token_id": PAD_ID,
    }


def exported(architecture: Architecture, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under their names."""
    result = renamed(weights, _TABLE, "the run")
    for name in [name for name in result if ".self.qkv." in name]:
        for part, tensor in zip(_QKV, result.pop(name).chunk(3), strict=True):
            result[name.replace(".qkv.", f".{part}.")] = tensor.clone()
    result[_TYPES] = torch.zeros(_SEGMENTS, architecture.hidden)
    return result


def architecture_of(config: Mapping[str, Any], origin: str) -> Architecture:
    """The architecture of a config.json; UsageError where it is none of ours."""
    require(
        config, origin, hidden_act="gelu", position_embedding_type="absolute", tie_word_embeddings=True,
        is_decoder=False,
    )  # fmt: skip
    dropout = config.get("hidden_dropout_prob", 0.1)
    return Architecture(
        MODEL_TYPE, config["num_hidden_layers"], config["hidden_size"], config["num_attention_heads"],
        config["intermediate_size"], norm="post", max_length=config["max_position_embeddings"],
        norm_eps=config.get("layer_norm_eps", 1e-12), init_std=config.get("initializer_range", 0.02),
        dropout=dropout, attention_dropout=config.get("attention_probs_dropout_prob", 0.1), embedding_dropout=dropout,
    )  # fmt: skip


def imported(architecture: Architecture, weights: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """Their weights under our names. The first BERTs have LayerNorms with ``gamma`` and ``beta``."""
    weights = {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): tensor
        for name, tensor in weights.items()
        if not name.startswith(_UNUSED)
    }
    without_tied(weights, f"{_HEAD}.decoder.weight", f"{_EMBEDDINGS}.word_embeddings.weight", origin)
    without_tied(weights, f"{_HEAD}.decoder.bias", f"{_HEAD}.bias", origin)
    types = weights.pop(_TYPES, None)
    if types is not None and _POSITIONS in weights:
        weights[_POSITIONS] = weights[_POSITIONS] + types[0]
    for name in [name for name in weights if ".self.query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in _QKV]
        if all(part in weights for part in parts):
            weights[name.replace(".query.", ".qkv.")] = torch.cat([weights.pop(part) for part in parts])
    return renamed(weights, reversed_table(_TABLE), origin)
