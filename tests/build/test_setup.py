"""setup.py as pip runs it, in a copy of the tree."""

import pytest

from tests.build.helpers import copy_tree, native_build, program, run_setup

INPLACE = ("setup.py", "build_ext", "--inplace")
ASK = ("-c", "import sys; sys.path.insert(0, 'csrc'); import build_backend as b; b.get_requires_for_build_editable()")


@pytest.fixture
def tree(tmp_path):
    """A copy of the tree in which nothing has been built."""
    return copy_tree(tmp_path)


def library_of(tree):
    """Where an editable install has it."""
    return tree / "cramkernels" / native_build.LIBRARY


def test_off_builds_nothing(tree, stand_in):
    """The compiler is not even asked for its version, and a library of an earlier build does not stay behind."""
    library_of(tree).write_text("of an earlier build")
    run = run_setup(tree, *INPLACE, CRAMKERNELS_CUDA="off", CUDACXX=str(stand_in.path))
    assert run.returncode == 0, run.stderr
    assert "CRAMKERNELS_CUDA=off: no CUDA kernels are built" in run.stdout
    assert stand_in.calls() == [] and not list(tree.rglob("*.so")) and not list(tree.rglob("*.o"))


def test_no_nvcc_is_said_and_is_no_error(tree, tmp_path):
    """A pure Python install."""
    run = run_setup(tree, *INPLACE, path=tmp_path / "nowhere")
    assert run.returncode == 0, run.stderr
    assert "no nvcc: no CUDA kernels are built" in run.stdout and not list(tree.rglob("*.so"))


def test_force_without_nvcc(tree, tmp_path):
    """One line."""
    run = run_setup(tree, *INPLACE, path=tmp_path / "nowhere", CRAMKERNELS_CUDA="force")
    assert run.returncode != 0
    assert run.stderr == "CRAMKERNELS_CUDA=force, but there is no nvcc: set CUDACXX or CUDA_HOME\n"


@pytest.mark.parametrize("command, variable, value, words", [
    (INPLACE, "CRAMKERNELS_CUDA", "yes", "got 'yes', want auto, force or off"),
    (ASK, "CRAMKERNELS_CUDA", "yes", "got 'yes', want auto, force or off"),
    (INPLACE, "CRAMKERNELS_CUDA_ARCHS", "8.6", "got '8.6', want numbers such as 80,86"),
    (INPLACE, "CRAMKERNELS_CUDA_ARCHS", "70", "got '70', want some of [75, 80, 86, 89, 90, 120] ("),
])  # fmt: skip
def test_bad_values_are_one_line(tree, stand_in, command, variable, value, words):
    """No traceback."""
    run = run_setup(tree, *command, CUDACXX=str(stand_in.path), **{variable: value})
    assert run.returncode != 0
    assert run.stderr.startswith(f"{variable}: {words}") and run.stderr.count("\n") == 1, run.stderr
    assert stand_in.calls() == []


def test_a_compiler_that_fails(tree, stand_in):
    """Its command and its words are all there is."""
    stand_in.set(breaks="reduce.cu")
    run = run_setup(tree, *INPLACE, CUDACXX=str(stand_in.path))
    assert run.returncode != 0 and "Traceback" not in run.stderr
    assert run.stderr.startswith(str(stand_in.path))
    assert run.stderr.endswith('reduce.cu(7): error: identifier "foo" is undefined\n')
    assert not library_of(tree).exists()


def test_an_editable_install_is_for_the_present_gpu(tree, stand_in):
    """In the package's folder."""
    program(stand_in.path.with_name("nvidia-smi"), 'print("8.9")')
    run = run_setup(tree, *INPLACE, path=stand_in.path.parent)
    assert run.returncode == 0, run.stderr
    assert f"{stand_in.path}: compiling csrc/ for sm_89\n" in run.stdout
    assert library_of(tree).read_text().startswith("linked\n")
    for words in stand_in.calls():
        assert [w for w in words if w.startswith("-gencode")] == [
            "-gencode=arch=compute_80,code=sm_89", "-gencode=arch=compute_80,code=compute_80",
        ]  # fmt: skip
