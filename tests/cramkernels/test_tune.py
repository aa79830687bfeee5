"""The table of launch configurations, the file that the tuner keeps, and the command where there is no GPU."""

import json
import os
import subprocess
import sys
import warnings

import pytest
import torch

from cramkernels import configurations, tune, tuned
from cramkernels.configurations import (
    BACKWARD,
    CUDA_SHORT_FORWARD,
    FORWARD,
    KEYS,
    MASKED,
    MID_BACKWARD,
    PLAIN,
    ROWS,
    SHARED_BYTES,
    Key,
    Tiling,
    candidates,
    keys_of,
)

KEY = Key(FORWARD, 16, 64, 128)
KINDS = ("", PLAIN, MASKED)
CARD = tuned.Card("NVIDIA GeForce RTX 3090", 86, "1.2.3")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def another(key, part=86):
    """A candidate that is not the table's."""
    return next(tiling for tiling in candidates(key, part) if tiling != ROWS[key, part])


def test_every_kernel_has_a_row_for_every_part():
    for part in SHARED_BYTES:
        assert part == 75 or keys_of(part) == list(KEYS)
    assert keys_of(75) == [Key(CUDA_SHORT_FORWARD, 16, head_dim, 128) for head_dim in (32, 64)]
    for kernel in (FORWARD, BACKWARD):
        for bits in (16, 32):
            for head_dim in (32, 64, 128):
                for longest in (1, 64, 65, 128, 129, 5000):
                    x = torch.zeros(1, head_dim, dtype=torch.bfloat16 if bits == 16 else torch.float32)
                    for kind in KINDS:
                        tiling = configurations.tiling_for(kernel, x, longest, kind)
                        assert not tiling.whole or tiling.tile >= longest
                        assert tiling.tile % 16 == 0 and tiling.warps in (4, 8)


@pytest.mark.parametrize("kernel, kind, head_dim, longest, name", [
    (BACKWARD, PLAIN, 64, 128, 128), (MID_BACKWARD, PLAIN, 64, 512, 0), (BACKWARD, MASKED, 128, 128, 0),
    (MID_BACKWARD, MASKED, 32, 512, 0),
])  # fmt: skip
def test_some_kinds_of_calls_have_rows_of_their_own(kernel, kind, head_dim, longest, name):
    x = torch.zeros(1, head_dim, dtype=torch.bfloat16)
    others, own = (ROWS[Key(key, 16, head_dim, name), 80] for key in (kernel, kernel + kind))
    assert configurations.tiling_for(kernel, x, longest) == others != own
    assert configurations.tiling_for(kernel, x, longest, kind) == own


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_take_the_row_for_all(kind):
    x = torch.zeros(1, 32, dtype=torch.bfloat16)
    assert configurations.tiling_for(BACKWARD, x, 128, kind) == ROWS[Key(BACKWARD, 16, 32, 128), 80]


@pytest.mark.parametrize("longest", [128, 512])
def test_calls_with_more_to_do_are_not_plain(longest, monkeypatch):
    """With a rotation, a mask or dropout the registers of four warps would not hold it all."""
    attention = pytest.importorskip("cramkernels.triton.attention")
    taken = []
    for launcher in (attention.backward, attention.mid_backward):
        name = launcher.__name__.rsplit(".", 1)[1]
        monkeypatch.setattr(launcher, name, lambda *arguments: taken.append(arguments[5]))
    qkv, cu_seqlens = torch.zeros(longest, 3, 1, 64, dtype=torch.bfloat16), torch.tensor([0, longest])
    out, lse = qkv[:, 0], torch.zeros(1, longest)
    angles, mask = torch.ones(longest, 32), torch.ones(longest, dtype=torch.bool)
    for cos, key_mask, dropout_p in ((None, None, 0.0), (angles, None, 0.0), (None, mask, 0.0), (None, None, 0.1)):
        attention.attention_backward(
            out, qkv, out, lse, cu_seqlens, longest, cos, cos, key_mask, None, 0.125, dropout_p, None
        )
    assert [tiling.warps for tiling in taken] == [4, 8, 8, 8]


def test_rows_of_whole_sequences_hold_them():
    for (key, _), tiling in ROWS.items():
        assert tiling.whole == bool(key.longest) and (not key.longest or tiling.tile >= key.longest), key


def test_candidates_hold_whole_sequences_and_begin_with_the_table():
    for (key, part), own in ROWS.items():
        found = candidates(key, part)
        assert found[0] == own and len(set(found)) == len(found) > 3
        assert all(tiling.whole == own.whole and tiling.tile >= key.longest for tiling in found)


def test_a_part_that_is_not_in_the_table_takes_the_one_before(monkeypatch):
    for capability, part in {(8, 0): 80, (8, 7): 86, (9, 0): 90, (10, 3): 90, (12, 1): 120, (7, 0): 75}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        assert configurations.part_of(torch.device("cuda", 0)) == part


def test_round_trip(tmp_path):
    choices = {key: another(key) for key in KEYS}
    path = tuned.store(CARD, choices)
    assert path == tmp_path / "cramkernels" / "tuned" / "nvidia-geforce-rtx-3090-sm_86.json"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuned.load(CARD) == choices
        assert tuned.load(CARD._replace(device="another card")) == {}
    assert os.listdir(path.parent) == [path.name]  # no temporary file is left


def test_a_relative_cache_home_counts_as_none(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert tuned.cache_folder() == tuned.Path("~/.cache/cramkernels").expanduser()


def test_a_failed_write_leaves_the_old_file(monkeypatch):
    path = tuned.store(CARD, {KEY: another(KEY)})
    before = path.read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tuned.Path, "replace", full)
    with pytest.raises(OSError):
        tuned.store(CARD, {})
    assert path.read_text() == before and os.listdir(path.parent) == [path.name]


def rewritten(change):
    """The file after a change to its content."""
    path = tuned.store(CARD, {KEY: another(KEY)})
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


BAD = {
    "another version": (lambda c: c.update(library="0.9"), "is for library 0.9, not 1.2.3"),
    "another format": (lambda c: c.update(format=0), "has format 0, not 1"),
    "no tilings": (lambda c: c.pop("tilings"), "is damaged (KeyError)"),
    "no list": (lambda c: c.update(tilings=7), "is damaged (TypeError)"),
    "no number": (lambda c: c["tilings"][0].pop("warps"), "is damaged (KeyError)"),
    "an unknown tile": (lambda c: c["tilings"][0].update(tile=12), "does not know, of triton.attention_forward"),
    "a tile that is too small": (lambda c: c["tilings"][0].update(tile=64), "does not know"),
    "an unhashable tile": (lambda c: c["tilings"][0].update(tile=[128]), "does not know"),
    "an unknown kernel": (lambda c: c["tilings"][0].update(kernel="x"), "does not know, of x"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_ignored_with_one_line(name):
    change, why = BAD[name]
    path = rewritten(change)
    with pytest.warns(RuntimeWarning) as caught:
        assert tuned.load(CARD) == {}
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith(f"{path} ") and why in message and "python -m cramkernels.tune" in message
    assert "\n" not in message


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": 1}'])
def test_a_damaged_file_is_ignored_with_one_line(text):
    path = tuned.store(CARD, {})
    path.write_bytes(text)
    with pytest.warns(RuntimeWarning, match="is ignored: run python -m cramkernels.tune again, or delete it"):
        assert tuned.load(CARD) == {}


def test_launchers_read_the_file_of_their_card_once(monkeypatch):
    """A card that is not here, but asked for its name."""
    device, chosen = torch.device("cuda", 0), another(KEY)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: CARD.device)
    monkeypatch.setattr(tuned, "library_version", lambda: CARD.library)
    tuned.store(CARD, {KEY: chosen})
    reads = []
    load = tuned.load
    monkeypatch.setattr(tuned, "load", lambda card: reads.append(card) or load(card))
    configurations._tuned.cache_clear()
    try:
        for key in (KEY, Key(BACKWARD, 16, 64, 128)):
            got = configurations._tiling.__wrapped__(*key, "", device, ())
            assert got == (chosen if key == KEY else ROWS[key, 86])
        assert reads == [CARD]
    finally:
        configurations._tuned.cache_clear()


def test_override():
    x, own, chosen = torch.zeros(1, 64).half(), ROWS[KEY, configurations.SIMULATED_PART], another(KEY, 80)
    assert configurations.tiling_for(FORWARD, x, 100) == own
    with configurations.override(KEY, chosen):
        assert configurations.tiling_for(FORWARD, x, 100) == chosen
        with configurations.override(KEY, own):
            assert configurations.tiling_for(FORWARD, x, 100) == own
        assert configurations.tiling_for(FORWARD, x, 100) == chosen
        assert configurations.tiling_for(FORWARD, x, 60) != chosen
    assert configurations.tiling_for(FORWARD, x, 100) == own


def test_the_table_stands_unless_another_is_clearly_faster():
    own, other = Tiling(64), Tiling(128)
    assert tune.fastest(own, {own: 1.0, other: 0.995}) == own
    assert tune.fastest(own, {own: 1.0, other: 0.9}) == other
    assert tune.fastest(own, {other: 5.0}) == other  # the table's does not run on this card
    assert tune.fastest(own, {}) == own


def test_medians_of_candidates_in_turns():
    order = []

    def call():
        order.append(configurations.tiling_for(FORWARD, torch.zeros(1, 64).half(), 100))
        if order[-1] == broken:
            raise RuntimeError("out of resource: shared memory")

    own, broken, third = candidates(KEY, 80)[:3]
    clocked = iter([5.0, 1.0] + [2.0, 3.0] * (tune.ROUNDS - 1))

    def clock(call):
        call()
        return next(clocked)

    assert tune.times(KEY, [own, broken, third], call, clock) == {own: 2.0, third: 3.0}
    assert order == [own, broken, third] + [own, third] * tune.ROUNDS


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_command_without_a_gpu(tmp_path):
    run = subprocess.run([sys.executable, "-m", "cramkernels.tune"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr == "error: there is no GPU here, and only a GPU can be timed: nothing was changed\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments, capability, line", [
    (["--device", "cpu"], (8, 6), "error: --device: got 'cpu', want cuda or cuda:N\n"),
    (["--device", "gpu7"], (8, 6), "error: --device: "),
    (["--device", "cuda:0"], (7, 0), "error: the kernels are for sm_75 and later, not sm_70\n"),
])  # fmt: skip
def test_refusals(arguments, capability, line, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert tune.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(line) and printed.err.count("\n") == 1 and not printed.out


@pytest.mark.parametrize("error, status, line", [
    (OSError(28, "No space left on device"), 1, "cannot be written: No space left on device\n"),
    (KeyboardInterrupt(), 130, "interrupted: what was timed until then is kept\n"),
    (None, 0, ""),
], ids=["disk full", "interrupted", "done"])  # fmt: skip
def test_the_command_on_a_card(error, status, line, monkeypatch, capsys):
    """Its frame: the card and the timing are pretended."""
    asked = []

    def pretended(card, device, part, clock, keys):
        asked.append((card.device, card.capability, str(device), part, clock, tuple(keys)))
        if error:
            raise error

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: CARD.device)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    monkeypatch.setattr(tune, "tune", pretended)
    assert tune.main([]) == status
    assert asked == [(CARD.device, 86, "cuda:0", 86, tune.cuda_clock, KEYS)]
    printed = capsys.readouterr()
    assert printed.err.endswith(line) and printed.err.count("\n") == (1 if error else 0)
    assert ("stored in" in printed.out) == (error is None)
