"""Reading the files of other programs: configuration and weights. Nothing that can run code is read."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cramming_train.errors import RunError, UsageError
from cramming_train.runs import read_json

SAFETENSORS = "model.safetensors"
CONFIGS = ("config.json", "model_config.json")  # of transformers, of the original project
_PREFIXES = ("module.", "_orig_mod.")  # of data parallelism and of torch.compile


def read_config(folder: Path) -> tuple[dict[str, Any], Path]:
    """The configuration and its file; UsageError where there is none."""
    for name in CONFIGS:
        if (folder / name).is_file():
            config = read_json(folder / name)
            if not isinstance(config, dict):
                raise UsageError(f"{folder / name}: want a JSON object")
            return config, folder / name
    raise UsageError(f"{folder}: no {' or '.join(CONFIGS)}; want the folder of a model")


def read_weights(folder: Path) -> tuple[dict[str, torch.Tensor], Path]:
    """Tensors in fp32 by name, and their file: model.safetensors, else the one ``.pth`` or ``.bin`` file there is.

    Raises:
        UsageError: no weights, or several files of them. RunError: the file is damaged, or holds more than tensors.
    """
    path = folder / SAFETENSORS
    if path.is_file():
        try:
            weights = load_file(path)
        except SafetensorError as error:
            raise RunError(f"{path}: the file is damaged ({error})") from None
    else:
        found = sorted([*folder.glob("*.pth"), *folder.glob("*.bin")])
        if len(found) != 1:
            there = ", ".join(file.name for file in found) or "none"
            raise UsageError(f"{folder}: want {SAFETENSORS} or one .pth or .bin file of weights (there: {there})")
        path = found[0]
        weights = _read_pickled(path)
    return {
        _bare(name): tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()
    }, path


def _read_pickled(path: Path) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise RunError(
            f"{path}: holds more than tensors and plain values, and is not read, since it could run code; "
            "save the model's state_dict alone"
        ) from None
    except (RuntimeError, EOFError, ValueError) as error:
        raise RunError(f"{path}: the file is damaged ({str(error).splitlines()[0]})") from None
    if isinstance(content, dict) and isinstance(content.get("model"), dict):  # the original's training checkpoint
        content = content["model"]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise RunError(f"{path}: want a dictionary of tensors, as a model's state_dict is")
    return content


def _bare(name: str) -> str:
    for prefix in _PREFIXES * 2:
        name = name.removeprefix(prefix)
    return name
