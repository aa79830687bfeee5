"""A stand-in for the hub: datasets.load_dataset and hf_hub_download answered from memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import tokenizers

from cramming_train.data import hub
from cramming_train.data.special_tokens import SPECIAL_TOKENS
from cramming_train.data.tokenizer import train_tokenizer
from tests.data.helpers import Writer


def rows_tokenizer(vocab_size: int, special_ids: list[int] | None = None) -> tokenizers.Tokenizer:
    """A tokenizer that made ready-made rows; its special tokens may lie elsewhere."""
    texts = [text.lower() for text in Writer(141).documents(120)]
    tokenizer = train_tokenizer(texts, vocab_size, "ascii")
    if special_ids is None:
        return tokenizer
    content = json.loads(tokenizer.to_str())
    names = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    rest = iter(names[7:])
    placed = dict(zip(special_ids, SPECIAL_TOKENS, strict=True))
    order = [placed[index] if index in placed else next(rest) for index in range(vocab_size)]
    content["model"]["vocab"] = {name: index for index, name in enumerate(order)}
    for added in content["added_tokens"]:
        added["id"] = order.index(added["content"])
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def random_rows(count: int, row_length: int, vocab_size: int, seed: int = 3) -> np.ndarray:
    """Rows of any ids."""
    return np.random.default_rng(seed).integers(0, vocab_size, (count, row_length)).astype(np.int32)


class HubStandIn:
    """Holds data sets by name; unknown names fail as the library fails."""

    def __init__(self, monkeypatch):
        self.asked: list[tuple] = []
        self.rows: dict[str, np.ndarray] = {}
        self._makers: dict[str, Callable[[], datasets.IterableDataset]] = {}
        self._tokenizers: dict[str, tokenizers.Tokenizer] = {}
        self._failures: dict[str, tuple[BaseException, int]] = {}
        monkeypatch.setattr(hub, "hub_obstacle", lambda: None)
        monkeypatch.setattr(datasets, "load_dataset", self._load(datasets.load_dataset))
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self._download)

    def add_text(self, name: str, documents: list, column: str = "text", described: bool = True) -> None:
        """Raw text; ``described`` data sets know their columns beforehand."""
        self._add(name, lambda i: {"id": i, column: documents[i]}, len(documents), described, None)

    def add_rows(self, name: str, tokenizer, rows: int, row_length: int, vocab_size: int | None = None) -> None:
        """Rows of tokens, with a tokenizer.json beside them."""
        values = random_rows(rows, row_length, vocab_size or tokenizer.get_vocab_size())
        self.rows[name] = values
        self._tokenizers[name] = tokenizer
        features = datasets.Features({"input_ids": datasets.Sequence(datasets.Value("int32"), length=row_length)})
        self._add(name, lambda i: {"input_ids": values[i].tolist()}, rows, True, features)

    def fail(self, name: str, error: BaseException, after: int) -> None:
        """Let the stream of a data set break off."""
        self._failures[name] = (error, after)

    def _add(self, name, record, count, described, features) -> None:
        def records():
            for index in range(count):
                if name in self._failures and index >= self._failures[name][1]:
                    raise self._failures[name][0]
                yield record(index)

        def make():
            if described and features is None:
                first = datasets.Dataset.from_list([record(0)]).features
                return datasets.IterableDataset.from_generator(records, features=first)
            return datasets.IterableDataset.from_generator(records, features=features)

        self._makers[name] = make

    def _load(self, real):
        def load_dataset(path, name=None, *args, split=None, streaming=False, **kwargs):
            if path == "parquet":  # local files are read by the same function
                return real(path, name, *args, split=split, streaming=streaming, **kwargs)
            self.asked.append((path, name, split, streaming))
            if path not in self._makers:
                raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{path}' doesn't exist on the Hub")
            return self._makers[path]()

        return load_dataset

    def _download(self, repo_id, filename, repo_type=None):
        assert (filename, repo_type) == ("tokenizer.json", "dataset")
        if repo_id not in self._tokenizers:
            raise huggingface_hub.errors.EntryNotFoundError("404: no such file")
        path = Path(tempfile.mkdtemp()) / filename
        self._tokenizers[repo_id].save(str(path))
        return str(path)
