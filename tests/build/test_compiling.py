"""The real compiler on the two smallest sources, in a folder whose name has a space."""

import ctypes
import os
import shutil

import pytest

from benchmarks import resources
from tests.build.helpers import ROOT, native_build


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """csrc without the families."""
    folder = tmp_path_factory.mktemp("real") / "a folder" / "csrc"
    shutil.copytree(ROOT / "csrc", folder)
    for path in folder.rglob("*.cu"):
        if path.name not in ("reduce.cu", "library.cu"):
            path.unlink()
    return folder


@pytest.fixture
def build(sources, nvcc, monkeypatch):
    """Builds for sm_80; the names of the objects made anew."""
    monkeypatch.setattr(native_build, "SOURCES", sources)
    work = sources.parent / "work"

    def ages():
        return {path.name: path.stat().st_mtime_ns for path in (work / "80").glob("*.o")}

    def run():
        before = ages()
        native_build.build(nvcc, [80], work, sources.parent / native_build.LIBRARY)
        return sorted(name for name, age in ages().items() if before.get(name) != age)

    return run


def test_the_library(build, sources):
    """Compiled, loaded, asked; then nothing, or what has changed, is compiled again."""
    assert build() == ["common-library.cu.o", "norm-reduce.cu.o"]
    library = ctypes.CDLL(str(sources.parent / native_build.LIBRARY))
    library.ck_architectures.restype = ctypes.c_char_p
    assert library.ck_architectures() == b"80" and hasattr(library, "ck_norm_reduce")

    assert build() == []
    os.utime(sources / "common" / "vector.cuh")  # included by reduce.cu alone
    assert build() == ["norm-reduce.cu.o"]
    os.utime(sources / "api.h")  # included through launch.h
    assert build() == ["common-library.cu.o", "norm-reduce.cu.o"]


def test_what_is_kept_beside_the_objects(build, sources, nvcc):
    """ptxas's report and the PTX, from which the resource table is made; no other intermediate file."""
    build()
    (row,) = resources.measure(nvcc, [80], sources.parent / "work")
    assert (row.kernel, row.architecture, row.threads, row.shared_bytes) == ("ck_reduce_partials", 80, 256, 1024)
    kept = [path for path in (sources.parent / "work").rglob("*.ptx/*")]
    assert kept and all(path.suffix == ".ptx" for path in kept)


def test_a_mistake_in_a_source(build, sources):
    """The compiler's words, with file and line."""
    path = sources / "norm" / "reduce.cu"
    text = path.read_text()
    path.write_text(text.replace("kWarps = 8;", "kWarps = eight;"))
    try:
        with pytest.raises(native_build.BuildError, match=r'reduce.cu"?\(\d+\): error: identifier "eight"'):
            build()
    finally:
        path.write_text(text)
    assert "norm-reduce.cu.o" in build()
