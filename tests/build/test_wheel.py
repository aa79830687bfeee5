"""Wheels made by pip in a copy of the tree: what is in them, and what is not."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.build.helpers import ROOT, copy_tree, native_build, program, run_setup

LIBRARY = f"cramkernels/{native_build.LIBRARY}"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """One for all wheels: what an earlier one has left behind is not in a later one."""
    return copy_tree(tmp_path_factory.mktemp("wheel"))


def wheel(tree, folder, **environment: str) -> zipfile.ZipFile:
    """``pip wheel .``"""
    words = ("-m", "pip", "wheel", ".", "--no-build-isolation", "--no-deps", "--no-index", "-w", str(folder))
    run = run_setup(tree, *words, PIP_DISABLE_PIP_VERSION_CHECK="1", **environment)
    assert run.returncode == 0, run.stdout + run.stderr
    (made,) = folder.glob("*.whl")
    return zipfile.ZipFile(made)


def assert_is_packages(names: list[str]) -> None:
    """Every file of the two packages, Python or not; nothing of csrc, tests, or another place."""
    assert {name.split("/")[0].split("-")[0] for name in names} == {"cramkernels", "cramming_train"}
    assert not [name for name in names if name.endswith((".cu", ".cuh", ".h", ".o", ".ptx", ".new"))]
    assert {name for name in names if ".dist-info/" not in name} - {LIBRARY} == set(package_files())
    data = {"cramkernels/py.typed", *(f"cramming_train/{name}" for name in ("py.typed", "report.html", "scaling.json"))}
    assert data <= set(names)
    assert {"cramkernels/cuda/__init__.py", "cramming_train/exchange/modeling_cram.py"} <= set(names)
    assert len(names) == len(set(names))


def package_files() -> list[str]:
    """What lies in the packages' folders, but for what running and building leave there."""
    paths = [path for package in ("cramkernels", "cramming_train") for path in (ROOT / package).rglob("*")]
    made = (".so", ".new", ".pyc")
    return [path.relative_to(ROOT).as_posix() for path in paths if path.is_file() and path.suffix not in made]


def tag_of(made: zipfile.ZipFile) -> str:
    """The wheel's tag: that of its name, which has to be the one that it holds."""
    name = Path(made.filename).stem
    (metadata,) = [name for name in made.namelist() if name.endswith(".dist-info/WHEEL")]
    tag = "-".join(name.split("-")[-3:])
    assert f"Tag: {tag}\n" in made.read(metadata).decode().replace("\r", "")
    return tag


def is_for(made: zipfile.ZipFile, version: str, *platform: str) -> bool:
    """Whether pip would install the wheel into that Python, here or on the platform."""
    words = ["--dry-run", "--no-deps", "--no-index", "--only-binary=:all:", "--target", "unused"]
    words += ["--python-version", version, *(f"--platform={name}" for name in platform), made.filename]
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *words]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0 or "is not a supported wheel" in run.stderr, run.stderr
    return run.returncode == 0


def test_with_a_compiler_and_then_without(tree, stand_in, tmp_path):
    """Once the library, for the architectures asked for; then, in the same tree, none."""
    program(stand_in.path.with_name("nvidia-smi"), 'print("8.9")')
    compiled = wheel(tree, tmp_path / "on", CUDACXX=str(stand_in.path), CRAMKERNELS_CUDA_ARCHS="80")
    names = compiled.namelist()
    assert_is_packages(names)
    assert [name for name in names if ".so" in name] == [LIBRARY]
    assert compiled.read(LIBRARY) == (tree / "build" / "native" / "80" / native_build.LIBRARY).read_bytes()
    assert len(stand_in.calls()) == 1 + len(list((tree / "csrc").rglob("*.cu")))
    assert not (tree / LIBRARY).exists()  # the tree itself stays as it was
    assert tag_of(compiled).startswith("py3-none-") and tag_of(compiled) != "py3-none-any"
    assert is_for(compiled, "3.10") and is_for(compiled, "3.14") and not is_for(compiled, "3.14", "win_amd64")

    again = wheel(tree, tmp_path / "again", CUDACXX=str(stand_in.path), CRAMKERNELS_CUDA_ARCHS="80")
    assert stand_in.calls() == [] and again.read(LIBRARY) == compiled.read(LIBRARY)

    pure = wheel(tree, tmp_path / "off", CUDACXX=str(stand_in.path), CRAMKERNELS_CUDA="off")
    off = pure.namelist()
    assert stand_in.calls() == []
    assert_is_packages(off)
    assert not [name for name in off if ".so" in name]
    assert set(names) - set(off) == {LIBRARY}
    assert tag_of(pure) == "py3-none-any"


def test_a_wheel_is_for_all_architectures(tree, stand_in, tmp_path):
    """Whatever GPU is here; and a library in the tree, of an editable install, does not get into it."""
    program(stand_in.path.with_name("nvidia-smi"), 'print("8.9")')
    (tree / LIBRARY).write_text("of the editable install")
    try:
        made = wheel(tree, tmp_path / "all", path=stand_in.path.parent)
        assert made.read(LIBRARY).startswith(b"linked\n")
    finally:
        (tree / LIBRARY).unlink()
    compiling = [words for words in stand_in.calls() if "-c" in words]
    for words in compiling:
        codes = [word.rpartition("=")[2] for word in words if word.startswith("-gencode")]
        assert codes == ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_120", "compute_80"]
    assert compiling
