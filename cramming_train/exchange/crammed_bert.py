"""The original project's models (github.com/JonasGeiping/cramming, ``ScriptableCrammedBERT``). Read, not written.

Its fused projection has rows [H, 3, D]: query, key and value of one head stand together. Its rotary embedding is
refused, whatever its kind: one kind returns queries and keys unrotated, the others differ from ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cramming_train.errors import UsageError
from cramming_train.exchange.names import renamed, without_tied
from cramming_train.exchange.wanted import require
from cramming_train.recipes import Architecture

_EMBEDDING = "encoder.embedding.word_embedding.weight"
_BUFFERS = (".norm_factor", ".position_ids")
_TABLE = {
    "encoder.embedding.word_embedding": "encoder.embedding.tokens",
    "encoder.embedding.pos_embedding.embedding": "encoder.embedding.positions",
    "encoder.embedding.pos_embedding.scale_factor": "encoder.embedding.position_scale",
    "encoder.embedding.norm": "encoder.embedding.norm",
    "encoder.layers.{}.norm1": "encoder.blocks.{}.norm1",
    "encoder.layers.{}.attn.self_attention.query_key_value": "encoder.blocks.{}.qkv",
    "encoder.layers.{}.attn.dense": "encoder.blocks.{}.attention_out",
    "encoder.layers.{}.norm2": "encoder.blocks.{}.norm2",
    "encoder.layers.{}.ffn.dense_in": "encoder.blocks.{}.ffn_in",
    "encoder.layers.{}.ffn.dense_out": "encoder.blocks.{}.ffn_out",
    "encoder.final_norm": "encoder.final_norm",
    "prediction_head.dense": "transform.dense",
    "prediction_head.norm": "transform.norm",
    "decoder.bias": "decoder_bias",
}


def architecture_of(config: Mapping[str, Any], origin: str) -> Architecture:
    """The architecture of the configuration ``arch``; UsageError where it is none of ours."""
    embedding, attention = config["embedding"], config["attention"]
    require(
        config, origin, architectures=["ScriptableCrammedBERT"], norm=("LayerNorm", "ApexLayerNorm"),
        norm_scheme="pre", nonlin=("GELU", "GELUglu"), objective_layout="MLM",
    )  # fmt: skip
    require(
        embedding, f"{origin}: embedding", pos_embedding=("learned", "scaled-sinusoidal"), normalization=True,
        embedding_dim=config["hidden_size"],
    )  # fmt: skip
    require(
        attention, f"{origin}: attention", type="self-attention", causal_attention=False,
        rotary_embedding=(False, None), sequence_op="torch-softmax", skip_output_projection=False,
        qkv_bias=config["use_bias"],
    )  # fmt: skip
    return Architecture(
        "crammed-bert", config["num_transformer_layers"], config["hidden_size"], attention["num_attention_heads"],
        config["intermed_size"], ffn="geglu" if config["nonlin"] == "GELUglu" else "gelu",
        final_norm=config["final_norm"], positions=embedding["pos_embedding"], max_length=embedding["max_seq_length"],
        linear_bias=config["use_bias"], norm_eps=config["norm_eps"], head_transform=not config["skip_head_transform"],
        decoder_bias=config["decoder_bias"], init_std=config.get("init", {}).get("std", 0.02),
        dropout=config.get("hidden_dropout_prob", 0.1), attention_dropout=attention.get("dropout_prob", 0.1),
        embedding_dropout=embedding.get("dropout_prob", 0.1),
    )  # fmt: skip


def imported(architecture: Architecture, weights: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """Their weights under our names, rows of the fused projection in our order."""
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith(_BUFFERS)}
    without_tied(weights, "decoder.weight", _EMBEDDING, origin)
    a = architecture
    for name in [name for name in weights if ".query_key_value." in name]:
        if weights[name].shape[0] != 3 * a.hidden:
            raise UsageError(f"{origin}: {name} has {weights[name].shape[0]} rows, want {3 * a.hidden}")
        per_head = weights[name].unflatten(0, (a.heads, 3, a.head_dim))
        weights[name] = per_head.transpose(0, 1).flatten(0, 2).contiguous()
    return renamed(weights, _TABLE, origin)
