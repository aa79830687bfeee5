"""Wheels made by pip in a copy of the tree: what is in them, and what is not."""

import zipfile

import pytest

from tests.build.helpers import copy_tree, native_build, program, run_setup

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
    """Every Python file of the two packages, nothing of csrc, tests, or another place."""
    assert {name.split("/")[0].split("-")[0] for name in names} == {"cramkernels", "cramming_train"}
    assert not [name for name in names if name.endswith((".cu", ".cuh", ".h", ".o", ".ptx", ".new"))]
    assert {"cramkernels/library.py", "cramkernels/cuda/__init__.py", "cramming_train/__init__.py"} <= set(names)
    assert "cramming_train/report.html" in names
    assert len(names) == len(set(names))


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

    again = wheel(tree, tmp_path / "again", CUDACXX=str(stand_in.path), CRAMKERNELS_CUDA_ARCHS="80")
    assert stand_in.calls() == [] and again.read(LIBRARY) == compiled.read(LIBRARY)

    off = wheel(tree, tmp_path / "off", CUDACXX=str(stand_in.path), CRAMKERNELS_CUDA="off").namelist()
    assert stand_in.calls() == []
    assert_is_packages(off)
    assert not [name for name in off if ".so" in name]
    assert set(names) - set(off) == {LIBRARY}


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
