"""Checkpoints: whole or not there, verified, and the newest two."""

import errno
import json

import pytest
import torch
from safetensors import SafetensorError

from cramming_train import checkpoint as ck
from cramming_train.errors import RunError, describe_os_error
from cramming_train.model import build_model
from cramming_train.optim.optimizer import build_optimizer
from cramming_train.recipes import Architecture, Training

TINY = Architecture("tiny", 1, 8, 2, 16)
STATE = {"rows": 7, "tokens": 70, "vocab_size": 40, "scaler": None}


def trained(seed=0, steps=2):
    model = build_model(TINY, 40, seed=seed)
    optimizer = build_optimizer(model, Training("t"))
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return model, optimizer


def test_round_trip_restores_every_bit_and_training_goes_on_alike(tmp_path):
    model, optimizer = trained()
    path = ck.save_checkpoint(tmp_path, 2, model, optimizer, STATE)
    other, other_optimizer = trained(seed=9, steps=1)
    state = ck.load_checkpoint(path, other, other_optimizer)
    assert state["rows"] == 7 and state["step"] == 2
    for m, o in ((model, optimizer), (other, other_optimizer)):
        for parameter in m.parameters():
            parameter.grad = torch.full_like(parameter, 0.1)
        o.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_only_the_newest_are_kept(tmp_path):
    model, optimizer = trained()
    for step in (0, 5, 10, 100):
        ck.save_checkpoint(tmp_path, step, model, optimizer, STATE)
    assert [path.name for path in ck.list_checkpoints(tmp_path)] == ["step-00000010", "step-00000100"]
    assert ck.latest_checkpoint(tmp_path).name == "step-00000100"


def test_saving_a_step_again_replaces_it(tmp_path):
    model, optimizer = trained()
    ck.save_checkpoint(tmp_path, 3, model, optimizer, STATE)
    path = ck.save_checkpoint(tmp_path, 3, model, optimizer, {**STATE, "rows": 8})
    assert ck.load_state(path)["rows"] == 8
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"]


@pytest.mark.parametrize("name", [ck.MODEL_FILE, ck.OPTIMIZER_FILE, ck.STATE_FILE])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_named_and_changes_nothing(tmp_path, name, damage):
    model, optimizer = trained()
    path = ck.save_checkpoint(tmp_path, 1, model, optimizer, STATE)
    content = bytearray((path / name).read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
        (path / name).write_bytes(content)
    elif damage == "truncate":
        (path / name).write_bytes(content[:-3])
    else:
        (path / name).unlink()
    other, other_optimizer = trained(seed=9)
    before = [parameter.clone() for parameter in other.parameters()]
    with pytest.raises(RunError, match=rf"damaged checkpoint .*{name}.*remove"):
        ck.load_checkpoint(path, other, other_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    model, optimizer = trained()
    ck.save_checkpoint(tmp_path, 1, model, optimizer, STATE)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    monkeypatch.setattr(ck, "_write_synced", full)
    with pytest.raises(OSError, match="No space"):
        ck.save_checkpoint(tmp_path, 2, model, optimizer, STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_full_disk_is_told_apart_inside_the_tensor_library(tmp_path, monkeypatch):
    """safetensors wraps I/O errors in a type of its own and keeps only their text."""

    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(ck, "save_file", full)
    model, optimizer = trained()
    with pytest.raises(OSError) as caught:
        ck.save_checkpoint(tmp_path, 1, model, optimizer, STATE)
    assert caught.value.errno == errno.ENOSPC and "disk full" in describe_os_error(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_a_kill_leaves_is_removed(tmp_path):
    (tmp_path / ".writing-00000001").mkdir(parents=True)
    (tmp_path / ".writing-00000001" / "model.safetensors").write_bytes(b"half")
    model, optimizer = trained()
    ck.save_checkpoint(tmp_path, 2, model, optimizer, STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_weights_of_another_architecture(tmp_path):
    model, optimizer = trained()
    path = ck.save_checkpoint(tmp_path, 1, model, optimizer, STATE)
    other = build_model(Architecture("other", 2, 8, 2, 16), 40, seed=0)
    with pytest.raises(RunError, match="do not fit"):
        ck.load_weights(other, ck.load_model_tensors(path), path)


def test_no_checkpoint(tmp_path):
    with pytest.raises(RunError, match="no checkpoint"):
        ck.latest_checkpoint(tmp_path)


def test_json_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    ck.write_json_atomically(path, {"a": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ck, "_write_synced", full)
    with pytest.raises(OSError):
        ck.write_json_atomically(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]
