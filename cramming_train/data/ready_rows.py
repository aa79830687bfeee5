"""Ready-made rows of tokens, local or from the hub: checked, renumbered where need be, and stored as ours."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from cramming_train.data.hub import download_tokenizer, open_stream, read_row_stream, stream_columns
from cramming_train.data.progress import Progress
from cramming_train.data.special_tokens import SPECIAL_TOKENS
from cramming_train.data.store import COLUMN, TOKENIZER_FILE, row_dtype, write_rows
from cramming_train.data.tokenizer import load_tokenizer
from cramming_train.errors import UsageError
from cramming_train.recipes import Data

BATCH_ROWS = 4096
HELD_OUT_EVERY = 200  # the rows with number 0, 200, 400, ... : half a percent, from all of the order


def local_rows(path: Path) -> bool:
    """Is this a file or folder of token rows (parquet or save_to_disk with a column input_ids)?"""
    if path.is_dir() and (path / "state.json").is_file():
        return True
    first = path if path.suffix == ".parquet" else next(iter(sorted(path.glob("*.parquet"))), None)
    if first is None or not first.is_file():
        return False
    import pyarrow
    import pyarrow.parquet

    try:
        return COLUMN in pyarrow.parquet.read_schema(first).names
    except pyarrow.ArrowException:
        return False


def open_local(path: Path) -> tuple[Any, tokenizers.Tokenizer]:
    """The rows as an iterable data set, and the tokenizer beside them."""
    import datasets
    import pyarrow.parquet

    if path.is_dir() and (path / "state.json").is_file():
        stored = datasets.load_from_disk(str(path))
        if COLUMN not in stored.column_names:
            raise UsageError(
                f"{path}: a saved data set without a column {COLUMN!r} (there: {', '.join(stored.column_names)}); "
                "for text give .parquet or .jsonl files"
            )
        stream = stored.to_iterable_dataset()
    else:
        files = sorted(str(p) for p in path.glob("*.parquet")) if path.is_dir() else [str(path)]
        files = [file for file in files if pyarrow.parquet.read_metadata(file).num_rows]
        if not files:
            raise UsageError(f"{path}: too few rows; want at least {HELD_OUT_EVERY}")
        stream = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    folder = path if path.is_dir() else path.parent
    for candidate in (folder / TOKENIZER_FILE, folder.parent / TOKENIZER_FILE):
        if candidate.is_file():
            return stream, load_tokenizer(candidate)
    raise UsageError(f"{path}: no {TOKENIZER_FILE} beside the rows; put the tokenizer that made them there")


def open_hub(source: str) -> tuple[Any, tokenizers.Tokenizer] | None:
    """The same for a hub data set; None where it has no column of rows."""
    stream = open_stream(source)
    if COLUMN not in stream_columns(stream, source):
        return None
    return stream, load_tokenizer(download_tokenizer(source))


def store_rows(
    stream: Any,
    tokenizer: tokenizers.Tokenizer,
    origin: str,
    recipe: Data,
    out: Path,
    scratch: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Write train/, validation/ and tokenizer.json; the order of the rows is kept."""
    if tokenizer.get_vocab_size() != recipe.vocab_size:
        raise UsageError(
            f"{origin}: its tokenizer has {tokenizer.get_vocab_size()} tokens, the recipe asks for "
            f"{recipe.vocab_size}; give --set data.vocab_size={tokenizer.get_vocab_size()}"
        )
    tokenizer, renumbering = with_special_ids(tokenizer, origin)
    tokenizer.save(str(out / TOKENIZER_FILE))
    dtype = row_dtype(recipe.vocab_size)
    held_out = scratch / "held_out.rows"
    counts = np.zeros(recipe.vocab_size, dtype=np.int64)

    def training_blocks() -> Iterator[np.ndarray]:
        first, room = 0, math.inf if recipe.max_rows is None else recipe.max_rows
        with open(held_out, "wb") as file:
            for batch in read_row_stream(stream, origin, COLUMN, BATCH_ROWS):
                rows = renumbering[_as_array(batch, origin, recipe)].astype(dtype)
                is_held_out = (np.arange(first, first + len(rows)) % HELD_OUT_EVERY) == 0
                rows[is_held_out].tofile(file)
                first += len(rows)
                kept = rows[~is_held_out][: min(room, len(rows))]
                np.add(counts, np.bincount(kept.reshape(-1), minlength=len(counts)), out=counts)
                room -= len(kept)
                yield kept
                if not room:
                    return

    with progress.stage("rows", "rows", total=recipe.max_rows) as stage:
        rows, digest = write_rows(out / "train", training_blocks(), recipe.row_length, dtype, None, "train", stage.add)
    validation = np.fromfile(held_out, dtype=dtype).reshape(-1, recipe.row_length)
    validation_rows, validation_digest = write_rows(
        out / "validation", iter([validation]), recipe.row_length, dtype, None, "validation"
    )
    if not rows or not validation_rows:
        raise UsageError(f"{origin}: too few rows; want at least {HELD_OUT_EVERY}")
    surprise = -np.log((counts + 1.0) / (counts + 1.0).sum())
    return {
        "rows": rows,
        "validation_rows": validation_rows,
        "tokens": rows * recipe.row_length,
        "unigram_loss": float(surprise[validation].mean()),
        "sha256": {"train": digest, "validation": validation_digest},
    }


def with_special_ids(tokenizer: tokenizers.Tokenizer, origin: str) -> tuple[tokenizers.Tokenizer, np.ndarray]:
    """The tokenizer with its special tokens at ids 0 to 6, and the map from old ids to new ones.

    The original assigns special ids by the process's string hash seed; ours are fixed, so ids are swapped.
    """
    content = json.loads(tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    renumbering = np.arange(tokenizer.get_vocab_size())
    if sorted(vocabulary.values()) != renumbering.tolist():
        raise UsageError(f"{origin}: the ids of its vocabulary are not 0 to {len(renumbering) - 1}")
    for setting in ("post_processor", "truncation", "padding"):  # these hold ids, and change what encode() returns
        content[setting] = None
    for target, token in enumerate(SPECIAL_TOKENS):
        present = vocabulary.get(token)
        if present is None:
            raise UsageError(f"{origin}: its tokenizer has no {token}; want {' '.join(SPECIAL_TOKENS)}")
        other = int(np.flatnonzero(renumbering == target)[0])
        renumbering[[present, other]] = renumbering[[other, present]]
    names = {old: token for token, old in vocabulary.items()}
    content["model"]["vocab"] = {
        names[old]: int(renumbering[old]) for old in sorted(names, key=lambda o: renumbering[o])
    }
    for added in content.get("added_tokens", []):
        added["id"] = int(renumbering[added["id"]])
    renumbered = tokenizers.Tokenizer.from_str(json.dumps(content))
    renumbered.encode_special_tokens = True
    return renumbered, renumbering


def _as_array(batch: list[list[int]], origin: str, recipe: Data) -> np.ndarray:
    if not all(isinstance(row, list) for row in batch):
        raise UsageError(f"{origin}: a row of column {COLUMN!r} holds no list of token ids")
    lengths = {len(row) for row in batch}
    if lengths != {recipe.row_length}:
        wrong = next(length for length in lengths if length != recipe.row_length)
        raise UsageError(
            f"{origin}: a row has {wrong} tokens, the recipe asks for {recipe.row_length}; "
            f"give --set data.row_length={wrong} if all rows have that length"
        )
    rows = np.asarray(batch)
    if rows.dtype.kind not in "iu":
        raise UsageError(f"{origin}: column {COLUMN!r} holds {rows.dtype}, want token ids")
    if rows.min() < 0 or rows.max() >= recipe.vocab_size:
        wrong = rows.min() if rows.min() < 0 else rows.max()
        raise UsageError(f"{origin}: token id {wrong} is outside the vocabulary of {recipe.vocab_size}")
    return rows
