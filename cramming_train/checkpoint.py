"""Checkpoints: safetensors and JSON, written atomically, checksummed, rolling. No pickle anywhere.

A checkpoint is a folder ``step-00000123`` with

* ``model.safetensors``      the weights,
* ``optimizer.safetensors``  ``<parameter name>/<state name>`` -> tensor,
* ``state.json``             counters, and the SHA-256 of the two files above and of itself.

It is written under a temporary name, synced to disk, and renamed: a folder with the final name is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from cramming_train.errors import RunError

KEEP = 2
MODEL_FILE, OPTIMIZER_FILE, STATE_FILE = "model.safetensors", "optimizer.safetensors", "state.json"
_TEMPORARY_PREFIX = ".writing-"


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def latest_checkpoint(folder: Path) -> Path:
    """The newest complete checkpoint; RunError where there is none."""
    found = list_checkpoints(folder)
    if not found:
        raise RunError(f"no checkpoint in {folder}: the run was stopped before its first one was saved; start it anew")
    return found[-1]


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> Path:
    """Write checkpoint ``step``, drop all but the newest ``KEEP``. OSError (disk full) leaves the others untouched."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    temporary = folder / f"{_TEMPORARY_PREFIX}{step:08d}"
    target = folder / f"step-{step:08d}"
    try:
        temporary.mkdir()
        checksums = {
            MODEL_FILE: _write_tensors(temporary / MODEL_FILE, dict(model.state_dict())),
            OPTIMIZER_FILE: _write_tensors(temporary / OPTIMIZER_FILE, optimizer_tensors(model, optimizer)),
        }
        content = {"step": step, **state, "sha256": checksums}
        content["sha256"][STATE_FILE] = _json_digest(content)
        _write_synced(temporary / STATE_FILE, json.dumps(content, indent=2).encode())
        replaced = folder / f"{_TEMPORARY_PREFIX}replaced"
        if target.exists():  # saved before at this very step, after a recovery
            target.rename(replaced)
        temporary.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
        _sync_folder(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in list_checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The counters of a checkpoint; RunError where it is damaged."""
    path = checkpoint / STATE_FILE
    try:
        state = json.loads(path.read_bytes())
        expected = state["sha256"].pop(STATE_FILE)
    except FileNotFoundError:
        raise RunError(_damaged(path, "the file is missing")) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RunError(_damaged(path, "it is not the JSON that was written")) from None
    if _json_digest(state) != expected:
        raise RunError(_damaged(path, "its checksum differs"))
    return state


def load_model_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint, verified against their checksum, on the CPU."""
    return _read_tensors(checkpoint / MODEL_FILE, load_state(checkpoint)["sha256"][MODEL_FILE])


def load_checkpoint(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore weights and optimizer in place and return the counters. Nothing is changed where a file is damaged."""
    state = load_state(checkpoint)
    weights = _read_tensors(checkpoint / MODEL_FILE, state["sha256"][MODEL_FILE])
    moments = _read_tensors(checkpoint / OPTIMIZER_FILE, state["sha256"][OPTIMIZER_FILE])
    load_weights(model, weights, checkpoint)
    restore_optimizer(model, optimizer, moments)
    return state


def load_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], origin: Path) -> None:
    """Copy weights into the model; RunError where they belong to another architecture."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first_line = str(error).splitlines()[-1].strip()
        raise RunError(f"{origin}: these weights do not fit the recipe's architecture ({first_line})") from None


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as flat named tensors, keyed by parameter name rather than by position."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{key}"] = value
    return tensors


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """The inverse of :func:`optimizer_tensors`."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for full_name, tensor in tensors.items():
        name, key = full_name.rsplit("/", 1)
        parameter = parameters[name]
        # fused AdamW keeps `step` as a tensor beside its parameter; all state lives on the parameter's device
        optimizer.state[parameter][key] = tensor.to(parameter.device, copy=True)


def remove_unfinished(folder: Path) -> None:
    """Drop what an interrupted write left behind."""
    for path in folder.glob(f"{_TEMPORARY_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def write_json_atomically(path: Path, content: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    write_text_atomically(path, json.dumps(content, indent=2) + "\n")


def write_text_atomically(path: Path, text: str) -> None:
    """The same for a text, in UTF-8."""
    temporary = path.with_name(f"{_TEMPORARY_PREFIX}{path.name}")
    try:
        _write_synced(temporary, text.encode())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    contiguous = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path)
    except SafetensorError as error:  # it wraps I/O errors in its own type and keeps only their text
        raise OSError(_errno_in(str(error)), str(error), str(path)) from None
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return _digest(file)


def _digest(file) -> str:  # hashlib.file_digest needs Python 3.11
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _errno_in(text: str) -> int:
    marker = "os error "
    if marker not in text:
        return 5  # EIO
    return int(text.split(marker, 1)[1].split(")", 1)[0])


def _read_tensors(path: Path, expected: str) -> dict[str, torch.Tensor]:
    try:
        with open(path, "rb") as file:
            digest = _digest(file)
        if digest != expected:
            raise RunError(_damaged(path, "its checksum differs"))
        return load_file(path)
    except FileNotFoundError:
        raise RunError(_damaged(path, "the file is missing")) from None
    except SafetensorError as error:
        raise RunError(_damaged(path, str(error))) from None


def _damaged(path: Path, why: str) -> str:
    return f"damaged checkpoint {path}: {why}; remove the folder {path.parent} to continue from the one before"


def _json_digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
