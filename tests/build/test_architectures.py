"""Which architectures a build is for."""

import pytest

from tests.build.helpers import native_build, program

ALL = list(native_build.ARCHITECTURES)


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """``gpus("8.6", ...)`` puts an nvidia-smi that lists these on an otherwise empty PATH."""

    def put(*capabilities: str, status: int = 0) -> None:
        monkeypatch.setenv("PATH", str(tmp_path / "path"))
        listing = "\n".join(capabilities)
        program(tmp_path / "path" / "nvidia-smi", f"import sys\nprint({listing!r})\nsys.exit({status})")

    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    return put


def test_all_where_there_is_no_gpu(stand_in, gpus):
    """No nvidia-smi."""
    assert native_build.choose_architectures(stand_in.path, everywhere=False) == ALL


@pytest.mark.parametrize("listed, expected", [
    (["8.6"], [86]),
    (["9.0", "8.6", "8.6"], [86, 90]),
    (["12.0"], [120]),
    (["8.0", "6.1"], [80]),  # one card that this version has no code for
    (["6.1"], ALL),
    (["12.1"], ALL),  # newer than this version: PTX serves it
    (["[N/A]"], ALL),
    (["No devices were found"], ALL),
])  # fmt: skip
def test_the_present_gpus_for_an_editable_install(stand_in, gpus, listed, expected):
    """Of this machine; a wheel is for all."""
    gpus(*listed)
    assert native_build.choose_architectures(stand_in.path, everywhere=False) == expected
    assert native_build.choose_architectures(stand_in.path, everywhere=True) == ALL


def test_an_nvidia_smi_that_fails(stand_in, gpus):
    """Such as one that cannot talk to the driver: as if there were none."""
    gpus("8.6", status=9)
    assert native_build.choose_architectures(stand_in.path, everywhere=False) == ALL


def test_an_older_nvcc_builds_for_those_it_knows(stand_in, gpus):
    """A GPU that it does not know is served by PTX."""
    stand_in.set(architectures=[50, 75, 80, 86])
    assert native_build.choose_architectures(stand_in.path, everywhere=True) == [75, 80, 86]
    gpus("12.0")
    assert native_build.choose_architectures(stand_in.path, everywhere=False) == [75, 80, 86]


@pytest.mark.parametrize("asked, expected", [("80", [80]), ("90,80", [80, 90]), (" 86; 75 86 ", [75, 86])])
@pytest.mark.parametrize("everywhere", [False, True])
def test_the_variable_decides(stand_in, gpus, monkeypatch, asked, expected, everywhere):
    """Over the present GPU and over a wheel's all."""
    gpus("8.9")
    monkeypatch.setenv("CRAMKERNELS_CUDA_ARCHS", asked)
    assert native_build.choose_architectures(stand_in.path, everywhere=everywhere) == expected


@pytest.mark.parametrize("asked", ["8.6", "sm_86", "native", "80,,", " ", "70", "80,121", "86a"])
def test_bad_values_are_an_error(stand_in, gpus, monkeypatch, asked):
    """Not a number, or one that we have no code for, though nvcc knows it."""
    monkeypatch.setenv("CRAMKERNELS_CUDA_ARCHS", asked)
    with pytest.raises(native_build.BuildError) as error:
        native_build.choose_architectures(stand_in.path, everywhere=False)
    assert str(error.value).startswith(f"CRAMKERNELS_CUDA_ARCHS: got {asked!r}, want ")


def test_machine_code_for_each_and_ptx_for_the_rest():
    """Every architecture has its code; the PTX is of the newest; 75 alone lacks sm_80's instructions."""
    flags = native_build._code_flags(ALL)
    assert [flag.partition(",code=")[2] for flag in flags] == [*(f"sm_{n}" for n in ALL), "compute_80"]
    assert native_build._code_flags([75]) == [
        "-gencode=arch=compute_75,code=sm_75", "-gencode=arch=compute_75,code=compute_75",
    ]  # fmt: skip
