"""Every field of every recipe, written out: a recipe that changes by accident fails here."""

import dataclasses

import pytest

from cramming_train.recipes import ARCHITECTURES, BUNDLES, DATASETS, EVALUATIONS, TRAININGS

# What all of the BERT family here have in common; each line below names the rest
ARCHITECTURE = {
    "gate": "second", "max_length": 128, "rope_base": 10000.0, "norm_eps": 1e-12, "init_std": 0.02, "dropout": 0.1,
    "attention_dropout": 0.1, "embedding_dropout": 0.1, "document_attention": False, "window": None,
    "global_every": None, "first_attention_norm": True, "output_init": "normal",
}  # fmt: skip
CRAMMED = {
    **ARCHITECTURE, "ffn": "geglu", "norm": "pre", "final_norm": True, "positions": "scaled-sinusoidal",
    "linear_bias": False, "head_transform": False, "decoder_bias": False,
}  # fmt: skip
CRAM = {
    **ARCHITECTURE, "ffn": "geglu", "gate": "first", "norm": "pre", "final_norm": True, "positions": "rope",
    "linear_bias": False, "head_transform": True, "decoder_bias": True, "first_attention_norm": False,
    "norm_eps": 1e-5, "output_init": "zero", "window": 4, "global_every": 3,
}  # fmt: skip
CLASSIC = {
    **ARCHITECTURE, "ffn": "gelu", "final_norm": False, "positions": "learned", "linear_bias": True,
    "head_transform": True, "decoder_bias": True,
}  # fmt: skip
EXPECTED_ARCHITECTURES = {
    "crammed-bert": {**CRAMMED, "layers": 16, "hidden": 768, "heads": 12, "ffn_hidden": 3072},
    "crammed-bert-mini": {**CRAMMED, "layers": 4, "hidden": 256, "heads": 4, "ffn_hidden": 1024},
    "cram": {**CRAM, "layers": 16, "hidden": 768, "heads": 12, "ffn_hidden": 3072},
    "cram-mini": {**CRAM, "layers": 4, "hidden": 256, "heads": 4, "ffn_hidden": 1024},
    "crammed-bert-simple": {**CLASSIC, "layers": 12, "hidden": 768, "heads": 12, "ffn_hidden": 3072, "norm": "pre"},
    "bert-base": {
        **CLASSIC, "layers": 12, "hidden": 768, "heads": 12, "ffn_hidden": 3072, "norm": "post", "max_length": 512,
    },
    "bert-tiny": {
        **CLASSIC, "layers": 2, "hidden": 128, "heads": 2, "ffn_hidden": 512, "norm": "post", "max_length": 512,
    },
    "bert-large-izsak": {
        **CLASSIC, "layers": 24, "hidden": 1024, "heads": 16, "ffn_hidden": 4096, "norm": "pre", "norm_eps": 1e-6,
    },
}  # fmt: skip

ADAMW = {
    "optimizer": "adamw", "betas": (0.9, 0.98), "eps": 1e-12, "weight_decay": 0.01, "grad_clip": None, "warmup": 0.0,
    "batch_ramp": 0.0, "micro_batch_size": 128, "random_share": 0.1, "keep_share": 0.1, "dropout": False,
    "precision": "fp16", "compile": "auto", "cuda_graph": True, "matrix_lr": 0.02, "momentum": 0.95,
    "matrix_interval": 1, "cooldown": 0.4, "unigram_bias": False,
    "first_window": None, "window_growth": 0.5, "averaging": "none", "averaging_share": 0.1,
}  # fmt: skip
QUARTER = {"masking_rate": 0.25, "masking_rate_final": 0.25}
BERT_RATE = {"masking_rate": 0.15, "masking_rate_final": 0.15}
EXPECTED_TRAININGS = {
    "bert-o4": {
        **ADAMW, **QUARTER, "peak_lr": 1e-3, "schedule": "triangle", "batch_size": 8192, "batch_ramp": 0.6,
        "grad_clip": 0.5,
    },
    "bert-o4-mini": {
        **ADAMW, **QUARTER, "peak_lr": 1e-3, "schedule": "triangle", "batch_size": 32, "micro_batch_size": 32,
        "grad_clip": 0.5,
    },
    "cram": {
        **ADAMW, **QUARTER, "optimizer": "muon", "peak_lr": 2e-3, "schedule": "linear", "warmup": 0.02,
        "batch_size": 512, "unigram_bias": True, "weight_decay": 0.1,
    },
    "cram-mini": {
        **ADAMW, **QUARTER, "optimizer": "muon", "peak_lr": 2e-3, "schedule": "linear", "warmup": 0.02,
        "batch_size": 8, "micro_batch_size": 8, "matrix_interval": 2, "unigram_bias": True, "weight_decay": 0.5,
    },
    "bert-o3": {
        **ADAMW, "peak_lr": 1e-3, "schedule": "triangle", "batch_size": 4096, "batch_ramp": 0.5, "grad_clip": 0.5,
        "masking_rate": 0.15625, "masking_rate_final": 0.15625,
    },
    "bert-o2": {
        **ADAMW, **BERT_RATE, "peak_lr": 1e-3, "schedule": "one-cycle", "batch_size": 1536, "batch_ramp": 0.5,
    },
    "bert-o1": {**ADAMW, **BERT_RATE, "peak_lr": 7e-4, "schedule": "cosine", "batch_size": 1536},
    "bert-base-o": {
        **ADAMW, **BERT_RATE, "peak_lr": 5e-4, "schedule": "cosine", "warmup": 30_000 / 900_000, "batch_size": 1536,
    },
    "bert-original": {
        **ADAMW, **BERT_RATE, "optimizer": "adam", "peak_lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8,
        "schedule": "polynomial", "warmup": 80_000 / 8_000_000, "batch_size": 512, "micro_batch_size": 64,
        "dropout": True,
    },
    "bert-izsak": {
        **ADAMW, **BERT_RATE, "peak_lr": 2e-3, "eps": 1e-6, "schedule": "linear", "warmup": 0.06, "batch_size": 4096,
        "dropout": True,
    },
}  # fmt: skip

EXPECTED_DATA = {
    "crammed": {
        "clean": "ascii", "vocab_size": 32768, "row_length": 128, "compression_threshold": 0.3,
        "deduplicate": "paragraph", "substring_characters": 100, "order": "sentence-length-curriculum",
        "max_rows": None, "validation_fraction": 0.005, "tokenizer_characters": 100_000_000, "seed": 0,
    },
}  # fmt: skip
EXPECTED_DATA["cram"] = {**EXPECTED_DATA["crammed"], "order": "random"}

GLUE = {
    "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.0, "schedule": "cosine", "warmup": 0.1, "warmup_steps": None,
    "batch_size": 16, "epochs": 5, "max_length": 128, "max_train_rows": None, "dropout": 0.1,
    "classifier_hidden": 1024, "pooling": "cls", "seeds": 5,
}  # fmt: skip
EXPECTED_EVALUATIONS = {
    "glue-sane": {**GLUE, "learning_rate": 4e-5},
    "glue-sane-original": {**GLUE, "learning_rate": 4e-5, "warmup_steps": 267},
    "glue": {
        **GLUE, "learning_rate": 2e-5, "weight_decay": 0.1, "schedule": "linear", "warmup": 0.06, "batch_size": 32,
        "epochs": 10, "pooling": "mean",
    },
    "superglue": {**GLUE, "learning_rate": 1e-5, "epochs": 10},
    "swag": {**GLUE, "learning_rate": 1e-5, "weight_decay": 0.1},
    "race": {**GLUE, "learning_rate": 1e-5, "weight_decay": 0.1},
}  # fmt: skip

TABLES = {
    "architecture": (ARCHITECTURES, EXPECTED_ARCHITECTURES),
    "training": (TRAININGS, EXPECTED_TRAININGS),
    "data": (DATASETS, EXPECTED_DATA),
    "evaluation": (EVALUATIONS, EXPECTED_EVALUATIONS),
}


@pytest.mark.parametrize("part", TABLES)
def test_no_recipe_more_or_less(part):
    actual, expected = TABLES[part]
    assert list(actual) == list(expected)


@pytest.mark.parametrize("part, name", [(part, name) for part in TABLES for name in TABLES[part][1]])
def test_every_field(part, name):
    actual, expected = TABLES[part]
    assert dataclasses.asdict(actual[name]) == {"name": name, **expected[name]}


def test_what_each_bundle_is_made_of():
    parts = {
        name: (r.architecture.name, r.training.name, r.data.name, r.evaluation.name) for name, r in BUNDLES.items()
    }
    assert parts == {
        "cram": ("cram", "cram", "cram", "glue-sane"),
        "crammed-bert": ("crammed-bert", "bert-o4", "crammed", "glue-sane"),
        "crammed-bert-mini": ("crammed-bert-mini", "bert-o4-mini", "crammed", "glue-sane"),
        "cram-mini": ("cram-mini", "cram-mini", "cram", "glue-sane"),
        "crammed-bert-simple": ("crammed-bert-simple", "bert-o4", "crammed", "glue-sane"),
        "bert-base": ("bert-base", "bert-original", "crammed", "glue-sane"),
        "bert-tiny": ("bert-tiny", "bert-o4-mini", "crammed", "glue-sane"),
        "bert-large-izsak": ("bert-large-izsak", "bert-izsak", "crammed", "glue-sane"),
    }
    for name, recipe in BUNDLES.items():
        assert recipe.name == name
        assert recipe.architecture is ARCHITECTURES[recipe.architecture.name]
        assert recipe.training is TRAININGS[recipe.training.name]


def test_derived_widths():
    crammed, base = ARCHITECTURES["crammed-bert"], ARCHITECTURES["bert-base"]
    assert (crammed.head_dim, crammed.ffn_inner) == (64, 1536)
    assert (base.head_dim, base.ffn_inner) == (64, 3072)
