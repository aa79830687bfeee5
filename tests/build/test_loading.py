"""A library that is missing, damaged, stale or for another machine: in words, never a crash."""

import ctypes
import os
import shutil
import subprocess
import sys

import pytest
import torch

from cramkernels import info, library

COMPLETE = (*library.ENTRY_POINTS, "ck_set_launch_hook", "ck_driver_version")


@pytest.fixture
def load(monkeypatch, tmp_path):
    """``load(C source)``: what loading a library made of it says; without a source, whatever lies at its path."""
    monkeypatch.setattr(library, "PATH", tmp_path / library.PATH.name)

    def run(source: str | None = None):
        if source is not None:
            if shutil.which("gcc") is None:
                pytest.skip("gcc is not installed")
            (tmp_path / "library.c").write_text(source)
            command = ["gcc", "-shared", "-fPIC", "-o", str(library.PATH), str(tmp_path / "library.c")]
            subprocess.run(command, check=True)
        return library.load.__wrapped__()

    library.obstacle.cache_clear()
    yield run
    library.obstacle.cache_clear()


def source_of(abi: int = library.ABI, functions=COMPLETE, driver: int = 0) -> str:
    """A library that does nothing."""
    lines = [f"int ck_abi(void) {{ return {abi}; }}", 'const char *ck_architectures(void) { return "80,90"; }']
    lines += ['const char *ck_error_string(int status) { return "words"; }']
    lines += [f"int {name}(void *a) {{ return {driver}; }}" for name in functions]
    return "\n".join(lines)


def test_a_good_one(load):
    """The stand-in for the cases below is as good as the real one."""
    loaded = load(source_of())
    assert loaded.architectures == (80, 90) and set(loaded.calls) == set(library.ENTRY_POINTS)


def test_missing(load):
    """Why that may be."""
    assert load() == "the CUDA library was not built (no nvcc at install time, or CRAMKERNELS_CUDA=off)"


@pytest.mark.parametrize("content", [b"", b"not a library", b"\x7fELF\x02\x01\x01" + bytes(100)])
def test_corrupt(load, content):
    """Empty, text, a header and nothing behind it."""
    library.PATH.write_bytes(content)
    assert load().startswith(f"{library.PATH.name} cannot be loaded (")


def test_cut_off(load):
    """An interrupted copy of a real one, at any length: the loader itself would die of a bus error."""
    load(source_of())
    code = f"""
from pathlib import Path
from cramkernels import library
whole = Path({str(library.PATH)!r}).read_bytes()
for parts in range(8):
    library.PATH = Path({str(library.PATH.parent)!r}) / f"copy{{parts}}.so"
    library.PATH.write_bytes(whole[: len(whole) * parts // 8])
    print(library.load.__wrapped__())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, f"died: {run.returncode}"
    said = run.stdout.splitlines()
    assert len(said) == 8
    for parts, words in enumerate(said):
        assert words.startswith(f"copy{parts}.so cannot be loaded (") and words.endswith("run pip install again")


@pytest.mark.parametrize("abi", [0, library.ABI - 1, library.ABI + 1])
def test_another_abi(load, abi):
    """Older or newer."""
    said = f"{library.PATH.name} is stale (ABI {abi}, this version wants {library.ABI}); run pip install again"
    assert load(source_of(abi)) == said


def test_some_other_library(load):
    """Without ck_abi."""
    assert load("int other(void) { return 1; }").startswith(f"{library.PATH.name} is stale (ABI None")


@pytest.mark.parametrize("absent", library.ENTRY_POINTS)
def test_a_library_from_before_an_entry_point_was_added(load, absent):
    """The ABI number alone does not tell: an editable install after a pull."""
    said = load(source_of(functions=[name for name in COMPLETE if name != absent]))
    assert isinstance(said, str) and f"{library.PATH.name} is stale" in said and absent in said


def test_none_serves_and_info_says_why(load, monkeypatch):
    """The fallback works, the report has the words."""
    words = load()
    monkeypatch.setattr(library, "load", lambda: words)
    assert library.obstacle.__wrapped__(0) == words
    assert f"CUDA library: {words}" in info.report()
    with pytest.raises(RuntimeError, match="was not built"), library.launch_hook(print):
        pass


@pytest.mark.parametrize("driver, capability, words", [
    (13000, (8, 0), None),
    (13010, (8, 9), None),
    (12080, (8, 0), "the driver is for CUDA 12.8, the library needs 13.0 (driver 580)"),
    (0, (8, 0), "the driver is for CUDA 0.0, the library needs 13.0 (driver 580)"),
    (13000, (7, 5), "the library has no code for sm_75 (it has sm_80, sm_90)"),
])  # fmt: skip
def test_the_driver_and_the_device(load, monkeypatch, driver, capability, words):
    """Too old a driver, a device without code."""
    loaded = load(source_of(driver=driver))
    monkeypatch.setattr(library, "load", lambda: loaded)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    assert library.obstacle.__wrapped__(0) == words


@pytest.mark.parametrize("capability, built, served", [
    ((8, 0), (80,), True),
    ((8, 6), (80,), True),  # machine code of a lower minor version runs
    ((8, 0), (86,), False),  # not of a higher one
    ((8, 0), (75, 86), False),
    ((8, 9), (75, 86), True),
    ((7, 5), (75, 80), True),
    ((7, 0), (75, 80), False),
    ((9, 0), (80, 86), True),  # PTX of the newest
    ((9, 0), (80, 120), False),  # PTX is for what comes after 120
    ((12, 1), (80, 120), True),
    ((10, 0), (75, 80, 86, 89, 90), True),
])  # fmt: skip
def test_which_devices_are_served(capability, built, served):
    """Machine code within a major version, PTX beyond the newest."""
    said = library.architecture_obstacle(capability, built)
    assert (said is None) == served
    assert served or f"sm_{capability[0]}{capability[1]}" in said


def test_older_than_the_sources(monkeypatch, tmp_path):
    """Any source or header that is newer, in any folder; nothing else counts."""
    built, sources = tmp_path / "library.so", tmp_path / "csrc"
    (sources / "deep").mkdir(parents=True)
    monkeypatch.setattr(library, "PATH", built)
    monkeypatch.setattr(library, "SOURCES", sources)
    assert not library.is_older_than_sources()
    built.write_text("")
    os.utime(built, (1000, 1000))
    for name in ("deep/a.cu", "b.cuh", "deep/c.h", "build.py"):
        (sources / name).write_text("")
        os.utime(sources / name, (900, 900))
    assert not library.is_older_than_sources()
    os.utime(sources / "build.py", (1100, 1100))
    assert not library.is_older_than_sources()
    for name in ("deep/a.cu", "b.cuh", "deep/c.h"):
        os.utime(sources / name, (1100, 1100))
        assert library.is_older_than_sources()
        os.utime(sources / name, (900, 900))
    os.utime(sources / "b.cuh", (1100, 1100))
    monkeypatch.setattr(library, "SOURCES", tmp_path / "absent")  # an installed wheel
    assert not library.is_older_than_sources()


def test_info_says_that_the_library_is_older(load, monkeypatch):
    """And what to do."""
    loaded = load(source_of())
    assert isinstance(loaded.handle, ctypes.CDLL)
    monkeypatch.setattr(library, "load", lambda: loaded)
    monkeypatch.setattr(library, "is_older_than_sources", lambda: True)
    assert "OLDER THAN csrc/: run pip install -e . again" in info.report()
    monkeypatch.setattr(library, "is_older_than_sources", lambda: False)
    assert "OLDER" not in info.report() and "for sm_80, sm_90, no driver here" in info.report()
