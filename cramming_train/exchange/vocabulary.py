"""Tokenizers for ``transformers``, and foreign ones with their special tokens where ours are.

An exported tokenizer gives the ids of this package's text pipeline (clean, tokenise, ``<cls> A <sep>``) by its own
normaliser, except that

* special tokens written in a text, such as ``<mask>``, are special tokens, as ``transformers`` has it: fill-mask needs
  that. Here they are text. Cleaning then sees the text on both sides apart;
* halves of surrogate pairs are refused by the ``tokenizers`` library; here they are dropped;
* a few dozen rare characters (beyond U+2E80) of which Python's and the library's tables of Unicode differ.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from cramming_train.data.cleaning import normalizer
from cramming_train.data.ready_rows import with_special_ids
from cramming_train.data.special_tokens import BOS_ID, CLS_ID, EOS_ID, PAD_ID, SEP_ID, SPECIAL_TOKENS
from cramming_train.data.tokenizer import load_tokenizer
from cramming_train.errors import RunError, UsageError
from cramming_train.runs import read_json

TOKEN_IDS = {  # of config.json
    "pad_token_id": PAD_ID,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "cls_token_id": CLS_ID,
    "sep_token_id": SEP_ID,
}
ROLES = ("pad_token", "bos_token", "eos_token", "unk_token", "cls_token", "sep_token", "mask_token")
_BERT_NAMES = {"[PAD]": "<pad>", "[UNK]": "<unk>", "[CLS]": "<cls>", "[SEP]": "<sep>", "[MASK]": "<mask>"}
_MAY_LACK = ("<s>", "</s>")  # nothing here places them


def write_tokenizer(tokenizer: tokenizers.Tokenizer, clean: str, max_length: int, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json of a run whose text goes through the cleaning named ``clean``."""
    copy = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    if clean != "none" and not _cleans(copy, clean):  # the tokenizer of ready-made rows: cleaned first here too
        own = [copy.normalizer] if copy.normalizer is not None else []
        copy.normalizer = normalizers.Sequence([normalizer(clean), *own])
    copy.post_processor = processors.TemplateProcessing(
        single="<cls> $A <sep>",
        pair="<cls> $A <sep> $B <sep>",
        special_tokens=[("<cls>", CLS_ID), ("<sep>", SEP_ID)],
    )
    copy.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],  # one segment, so no token types
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        **dict(zip(ROLES, SPECIAL_TOKENS, strict=True)),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _cleans(tokenizer: tokenizers.Tokenizer, clean: str) -> bool:
    ours = tokenizers.Tokenizer(models.WordPiece({"<unk>": 0}, unk_token="<unk>"))
    ours.normalizer = normalizer(clean)
    return json.loads(tokenizer.to_str())["normalizer"] == json.loads(ours.to_str())["normalizer"]


def read_tokenizer(folder: Path) -> tuple[tokenizers.Tokenizer, np.ndarray]:
    """A foreign WordPiece tokenizer with our special tokens at ids 0 to 6, and the map from its ids to ours.

    BERT's ``[CLS]`` and so on take our names. Where there is no ``<s>`` or ``</s>``, they are appended: the map has
    then one or two entries more than the foreign tokenizer has ids.

    Raises:
        UsageError: no tokenizer in the folder, not WordPiece, or a special token is missing.
    """
    content = json.loads(_foreign(folder).to_str())
    model = content["model"]
    if model["type"] != "WordPiece":
        raise UsageError(f"{folder}: its tokenizer is {model['type']}; want WordPiece")
    vocabulary = model["vocab"]
    for theirs, ours in _BERT_NAMES.items():
        if theirs in vocabulary and ours not in vocabulary:
            vocabulary[ours] = vocabulary.pop(theirs)
    for token in _MAY_LACK:
        vocabulary.setdefault(token, len(vocabulary))
    model["unk_token"] = _BERT_NAMES.get(model["unk_token"], model["unk_token"])
    content["post_processor"] = None  # it names the tokens of before
    content["added_tokens"] = [_renamed(added, vocabulary) for added in content["added_tokens"]]
    renamed = tokenizers.Tokenizer.from_str(json.dumps(content))
    renamed.add_special_tokens([token for token in SPECIAL_TOKENS if token in vocabulary])
    return with_special_ids(renamed, str(folder))


def _renamed(added: dict[str, Any], vocabulary: dict[str, int]) -> dict[str, Any]:
    ours = _BERT_NAMES.get(added["content"])
    return {**added, "content": ours} if ours is not None and vocabulary.get(ours) == added["id"] else added


def _foreign(folder: Path) -> tokenizers.Tokenizer:
    if (folder / "tokenizer.json").is_file():
        return load_tokenizer(folder / "tokenizer.json")
    if not (folder / "vocab.txt").is_file():
        raise UsageError(f"{folder}: no tokenizer.json and no vocab.txt; put the tokenizer there")
    try:
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    except UnicodeDecodeError:
        raise RunError(f"{folder / 'vocab.txt'}: not UTF-8; the file is damaged") from None
    vocabulary = {token.rstrip("\r"): number for number, token in enumerate(lines)}
    settings = folder / "tokenizer_config.json"
    lower = read_json(settings).get("do_lower_case", True) if settings.is_file() else True
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer
