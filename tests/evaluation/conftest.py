"""A toy language, a model of two small layers, and GLUE-like files small enough to train on in seconds."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch

from cramming_train.checkpoint import save_checkpoint
from cramming_train.data.special_tokens import SPECIAL_TOKENS
from cramming_train.model import build_model
from cramming_train.recipes import Recipe, apply_overrides, get_recipe

WORDS = [f"w{chr(97 + number // 26)}{chr(97 + number % 26)}" for number in range(60)]
SMALL = (
    "architecture.layers=2",
    "architecture.hidden=32",
    "architecture.heads=2",
    "architecture.ffn_hidden=64",
    "evaluation.classifier_hidden=32",
    "evaluation.learning_rate=2e-3",
    "evaluation.max_length=32",
)


@pytest.fixture(scope="session")
def tokenizer() -> tokenizers.Tokenizer:
    """One id for each of the toy words."""
    vocabulary = {token: number for number, token in enumerate((*SPECIAL_TOKENS, *WORDS))}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return made


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """crammed-bert-mini made small, with a learning rate for a model that knows nothing."""
    return apply_overrides(get_recipe("crammed-bert-mini"), SMALL)


def sentences(rng: np.random.Generator, rows: int) -> list[str]:
    """Random toy text of 2 to 12 words."""
    return [" ".join(rng.choice(WORDS, rng.integers(2, 13))) for _ in range(rows)]


def write_tsv(path: Path, columns: dict[str, list]) -> None:
    """A gzipped GLUE file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(columns), *("\t".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))


@pytest.fixture(scope="session")
def toy_glue(tmp_path_factory) -> Path:
    """cola: is the first toy word in the sentence; stsb: five times the share of the first half of the words;
    mnli without its mismatched split: random labels."""
    folder = tmp_path_factory.mktemp("glue")
    rng = np.random.default_rng(0)
    for split, rows in (("train", 400), ("validation", 120)):
        texts = [f"{text} {WORDS[0]}" if rng.random() < 0.5 else text for text in sentences(rng, rows)]
        write_tsv(
            folder / "cola" / f"{split}.tsv.gz",
            {"sentence": texts, "label": [int(WORDS[0] in text.split()) for text in texts]},
        )
        first, second = sentences(rng, rows), sentences(rng, rows)
        scores = [
            5 * np.mean([word in WORDS[:30] for word in f"{a} {b}".split()]) for a, b in zip(first, second, strict=True)
        ]
        write_tsv(folder / "stsb" / f"{split}.tsv.gz", {"sentence1": first, "sentence2": second, "label": scores})
    for split, rows in (("train", 40), ("validation_matched", 30)):
        write_tsv(
            folder / "mnli" / f"{split}.tsv.gz",
            {
                "premise": sentences(rng, rows),
                "hypothesis": sentences(rng, rows),
                "label": rng.integers(0, 3, rows).tolist(),
            },
        )
    return folder


@pytest.fixture(scope="session")
def toy_runs(tmp_path_factory, tokenizer, recipe) -> Path:
    """A folder with one run, "toy", of the small model with random weights."""
    runs = tmp_path_factory.mktemp("runs")
    run = runs / "toy"
    run.mkdir()
    model = build_model(recipe.architecture, tokenizer.get_vocab_size(), seed=7)
    optimizer = torch.optim.AdamW(model.parameters())
    save_checkpoint(run / "checkpoints", 3, model, optimizer, {"vocab_size": tokenizer.get_vocab_size()})
    tokenizer.save(str(run / "tokenizer.json"))
    (run / "recipe.json").write_text(json.dumps({"recipe": recipe.to_dict(), "seed": 7, "data": {"path": "gone"}}))
    return runs
