"""The file of floors: written where there is none, held where there is one, and damage named."""

import json
import os

import pytest

from benchmarks import devices, floors
from benchmarks.floors import ALLOWANCE, ATTEMPTS, Floors, TooSlow


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(floors.time, "sleep", lambda seconds: None)


def given(*measured):
    """A measurement that gives these ratios in turn, then the last."""
    left = list(measured)
    return lambda: {"eager": left.pop(0) if len(left) > 1 else left[0]}


def test_a_machine_without_floors_writes_and_then_holds_them(tmp_path):
    first = Floors("a-machine", tmp_path)
    assert first.hold("op", given(1.23456)) == {"eager": 1.23456}
    path = first.write()
    assert path == tmp_path / "a-machine.json" and json.loads(path.read_text()) == {"op": {"eager": 1.2346}}
    assert os.listdir(tmp_path) == [path.name]
    second = Floors("a-machine", tmp_path)
    second.hold("op", given(1.2346 * ALLOWANCE - 1e-6))
    second.hold("op", given(0.5))
    assert second.write() is None
    with pytest.raises(TooSlow, match=rf"op: 1.48\d x eager's time, committed 1.235, .*{ATTEMPTS} attempts"):
        second.hold("op", given(1.2 * 1.2346))


def test_the_allowance_is_less_than_a_fifth():
    assert 1.05 < ALLOWANCE < 1.15


def test_one_disturbance_is_not_a_slowdown(tmp_path):
    floors.store(tmp_path / "m.json", {"op": {"eager": 1.0}})
    assert Floors("m", tmp_path).hold("op", given(3.0, 1.05)) == {"eager": 1.05}


def test_new_benchmarks_and_peers_are_added(tmp_path):
    floors.store(tmp_path / "m.json", {"op": {"eager": 1.0}})
    more = Floors("m", tmp_path)
    more.hold("op", lambda: {"eager": 1.01, "compiled": 2.0})
    more.hold("new", given(0.7))
    more.write()
    assert floors.read(tmp_path / "m.json") == {"op": {"eager": 1.0, "compiled": 2.0}, "new": {"eager": 0.7}}


def test_without_floors_the_loose_ceilings_hold(tmp_path):
    machine = Floors("m", tmp_path)
    with pytest.raises(TooSlow, match="1.9.* x eager's time, 1.7 on any machine"):
        machine.hold("op", given(1.9), {"eager": 1.7})
    assert machine.write() is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "[]", '{"op": 1}', '{"op": {"eager": "fast"}}', "\x00\xff"])
def test_a_damaged_file_is_named(text, tmp_path):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ValueError, match=r"m\.json: no file of floors"):
        Floors("m", tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = floors.store(tmp_path / "m.json", {"op": {"eager": 1.0}})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(floors.Path, "replace", full)
    with pytest.raises(OSError):
        floors.store(path, {})
    assert floors.read(path) == {"op": {"eager": 1.0}} and os.listdir(tmp_path) == [path.name]


def test_medians_of_runs(tmp_path, capsys):
    paths = [floors.store(tmp_path / f"{i}.json", {"op": {"eager": ratio}}) for i, ratio in enumerate((1, 1.1, 1.2))]
    assert floors.main([*map(str, paths), "--out", str(tmp_path / "all.json")]) == 0
    assert floors.read(tmp_path / "all.json") == {"op": {"eager": 1.1}}
    assert "medians of 3 runs; the worst single ratio departs 10.0%" in capsys.readouterr().out
    assert floors.main([str(tmp_path / "absent"), "--out", "x"]) == 2


def test_the_committed_floors_are_readable():
    for path in floors.FOLDER.glob("*.json"):
        assert floors.read(path)


def test_keys():
    assert devices.key(devices.Processor(1)).endswith("-1-thread")
    assert devices.key(devices.Processor(2)).endswith("-2-threads")
    assert set(devices.key(devices.Processor())) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_processors_that_call_themselves_the_same_are_kept_apart(monkeypatch):
    monkeypatch.setattr(devices, "processor", lambda: "AMD EPYC")
    monkeypatch.setattr(devices, "_family", lambda: " family 25")
    found = set()
    for units in ("AVX2", "AVX512"):
        monkeypatch.setattr(devices.torch.backends.cpu, "get_cpu_capability", lambda units=units: units)
        found.add(devices.key(devices.Processor()))
    assert found == {"amd-epyc-family-25-avx2-1-thread", "amd-epyc-family-25-avx512-1-thread"}
