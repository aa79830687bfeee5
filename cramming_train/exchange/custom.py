"""Our own architectures for ``transformers`` with ``trust_remote_code=True``: any of them, under our own names.

The code travels with the weights as ``modeling_cram.py``, which needs nothing of this package.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cramming_train.errors import UsageError
from cramming_train.exchange.vocabulary import TOKEN_IDS
from cramming_train.recipes import Architecture

MODEL_TYPE, CLASS = "cram", "CramForMaskedLM"
CODE = Path(__file__).with_name("modeling_cram.py")


def config_of(architecture: Architecture, vocab_size: int) -> dict[str, Any]:
    """config.json."""
    return {
        "model_type": MODEL_TYPE,
        "architectures": [CLASS],
        "auto_map": {"AutoConfig": f"{CODE.stem}.CramConfig", "AutoModelForMaskedLM": f"{CODE.stem}.{CLASS}"},
        "vocab_size": vocab_size,
        "architecture": dataclasses.asdict(architecture),
        "tie_word_embeddings": False,  # there is no second matrix to tie
        **TOKEN_IDS,
    }


def exported(architecture: Architecture, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under our names."""
    return dict(weights)


def architecture_of(config: Mapping[str, Any], origin: str) -> Architecture:
    """The architecture of a config.json; UsageError where it is of another version."""
    try:
        return Architecture(**config["architecture"])
    except TypeError as error:
        raise UsageError(f"{origin}: not an architecture of this version ({error})") from None


def imported(architecture: Architecture, weights: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """Our weights under our names."""
    return dict(weights)
