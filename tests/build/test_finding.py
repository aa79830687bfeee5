"""Which nvcc is used, and when pip is asked to bring one."""

import importlib
import sys

import pytest

from tests.build.helpers import build_backend, native_build, program


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with an empty PATH and no packages."""
    (tmp_path / "path").mkdir()
    (tmp_path / "packages").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "packages")])
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    importlib.invalidate_caches()
    return tmp_path


def test_the_order_is_cudacxx_cuda_home_path_pip(machine, monkeypatch):
    """Each one that goes uncovers the next."""
    packaged = program(machine / "packages" / "nvidia" / "cu13" / "bin" / "nvcc", "")
    on_path = program(machine / "path" / "nvcc", "")
    of_home = program(machine / "home" / "bin" / "nvcc", "")
    named = program(machine / "named" / "my-nvcc", "")
    monkeypatch.setenv("CUDACXX", str(named))
    monkeypatch.setenv("CUDA_HOME", str(machine / "home"))
    for expected in (named, of_home, on_path, packaged):
        assert native_build.find_nvcc() == expected
        expected.unlink()
        importlib.invalidate_caches()
    assert native_build.find_nvcc() is None


def test_the_newest_of_pips_is_taken(machine):
    """Packages of two CUDA versions side by side."""
    for version in ("cu13", "cu14"):
        program(machine / "packages" / "nvidia" / version / "bin" / "nvcc", "")
    assert native_build.find_nvcc() == machine / "packages" / "nvidia" / "cu14" / "bin" / "nvcc"


def test_what_cannot_be_executed_is_no_nvcc(machine, monkeypatch):
    """A folder, a file without permission: passed over."""
    on_path = program(machine / "path" / "nvcc", "")
    plain = machine / "plain"
    plain.write_text("")
    for place in (plain, machine, machine / "absent"):
        monkeypatch.setenv("CUDACXX", str(place))
        assert native_build.find_nvcc() == on_path


@pytest.mark.parametrize("mode, nvcc, driver, asks", [
    ("auto", True, False, False),
    ("auto", True, True, False),
    ("auto", False, False, False),
    ("auto", False, True, True),
    ("force", False, False, True),
    ("force", True, False, False),
    ("off", False, True, False),
    ("off", True, True, False),
])  # fmt: skip
def test_when_pip_is_asked_for_nvcc(machine, monkeypatch, mode, nvcc, driver, asks):
    """A driver and no compiler, or force; never with one, never when off."""
    monkeypatch.setenv("CRAMKERNELS_CUDA", mode)
    monkeypatch.setattr(native_build.ctypes.util, "find_library", lambda name: driver and name == "cuda" or None)
    if nvcc:
        program(machine / "path" / "nvcc", "")
    asked = native_build.pip_requirements()
    assert asked == (native_build.PIP_NVCC if asks else [])
    names = {requirement.split(">")[0] for requirement in native_build.PIP_NVCC}
    assert names == {f"nvidia-{n}" for n in ("cuda-nvcc", "cuda-runtime", "cuda-crt", "cuda-cccl", "nvvm")}


def test_the_backend_asks_for_wheels_and_editable_installs(machine, monkeypatch):
    """PEP 517's hooks carry the requirements to pip."""
    monkeypatch.setattr(build_backend, "_wheel", lambda settings: ["of setuptools"])
    monkeypatch.setattr(build_backend, "_editable", lambda settings: ["of setuptools"])
    monkeypatch.setenv("PATH", str(machine / "path"))
    hooks = (build_backend.get_requires_for_build_wheel, build_backend.get_requires_for_build_editable)
    for mode, expected in (("force", native_build.PIP_NVCC), ("off", [])):
        monkeypatch.setenv("CRAMKERNELS_CUDA", mode)
        assert [hook() for hook in hooks] == [["of setuptools", *expected]] * 2


@pytest.mark.parametrize("value", ["", "on", "OFF", "1"])
def test_an_unknown_mode_is_an_error(monkeypatch, value):
    """With the value, and what is wanted."""
    monkeypatch.setenv("CRAMKERNELS_CUDA", value)
    with pytest.raises(native_build.BuildError, match=f"CRAMKERNELS_CUDA: got '{value}', want auto, force or off"):
        native_build.pip_requirements()
