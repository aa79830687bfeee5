"""Data sets of the Hugging Face hub: raw text as a stream, and ready-made rows of tokens."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np

from cramming_train.errors import RunError, UsageError

# The original's own pre-tokenised Pile: 85,000,000 rows of 128 tokens in curriculum order, with its tokenizer
PILE_ROWS = "JonasGeiping/the_pile_WordPiecex32768_2efdb9d060d1ae95faf952ec1a50f020"
PILE_VOCAB_SIZE, PILE_ROW_LENGTH, PILE_ROW_COUNT = 32768, 128, 85_000_000
CONNECT_SECONDS = 4.0


def hub_obstacle() -> str | None:
    """Why the hub cannot be used, found out within seconds, or None."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return "HF_HUB_OFFLINE is set"
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return None  # a proxy answers for it; a direct connection would say nothing
    endpoint = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        with socket.create_connection((endpoint.hostname, endpoint.port or 443), timeout=CONNECT_SECONDS):
            return None
    except OSError as error:
        return f"no connection to {endpoint.hostname} ({error.strerror or error})"


def require_hub(name: str) -> None:
    """RunError where the hub is out of reach."""
    obstacle = hub_obstacle()
    if obstacle:
        raise RunError(f"--data {name}: not a local path, and the hub is out of reach: {obstacle}")


def open_stream(source: str) -> Any:
    """The training split of ``name`` or ``name:config`` as an iterable data set.

    Raises:
        UsageError: no such data set. RunError: the hub is out of reach.
    """
    import datasets

    require_hub(source)
    name, _, config = source.partition(":")
    try:
        return datasets.load_dataset(name, config or None, split="train", streaming=True)
    except (FileNotFoundError, ValueError) as error:  # DatasetNotFoundError is a FileNotFoundError
        raise UsageError(f"--data {source}: {str(error).splitlines()[0]}") from None
    except Exception as error:  # the libraries' network errors share no base class
        raise RunError(f"--data {source}: {type(error).__name__}: {str(error).splitlines()[0]}") from None


def stream_columns(stream: Any, source: str) -> list[str]:
    """Column names, from the description or else from the first record."""
    if stream.column_names:
        return list(stream.column_names)
    first = next(guarded(stream, source), None)
    if first is None:
        raise UsageError(f"--data {source}: the data set is empty")
    return list(first)


def read_text_stream(stream: Any, source: str, column: str) -> Iterator[str]:
    """Documents of a streamed data set."""
    columns = stream_columns(stream, source)
    if column not in columns:
        raise UsageError(f"--data {source}: no column {column!r} (there: {', '.join(columns)}); use --text-column")
    for record in guarded(stream.select_columns([column]), source):
        text = "" if record[column] is None else record[column]
        if not isinstance(text, str):
            raise UsageError(f"--data {source}: column {column!r} holds {type(text).__name__}, want text")
        yield text


def guarded(records: Iterable[Any], source: str) -> Iterator[Any]:
    """The same records; what goes wrong on the way becomes a RunError (network errors share no base class)."""
    try:
        yield from records
    except (UsageError, RunError):
        raise
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else ""
        raise RunError(f"--data {source}: {type(error).__name__}: {text}") from None


def read_row_stream(stream: Any, source: str, column: str, batch_rows: int) -> Iterator[list[list[int]]]:
    """Batches of ready-made rows."""
    for batch in guarded(stream.select_columns([column]).iter(batch_size=batch_rows), source):
        values = batch[column]
        yield [np.asarray(row).tolist() for row in values]


def download_tokenizer(source: str) -> Path:
    """The tokenizer.json that lies beside a hub data set's rows."""
    from huggingface_hub import hf_hub_download

    name = source.partition(":")[0]
    try:
        return Path(hf_hub_download(name, "tokenizer.json", repo_type="dataset"))
    except Exception as error:
        raise RunError(f"--data {source}: its tokenizer.json: {type(error).__name__}: {error}") from None
