"""What is compiled again, and what is not, by a compiler that records its calls."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.build.helpers import native_build

EVERYTHING = ["both.cu", "linked", "one.cu", "plain.cu"]


class Project:
    """Three sources: two include shared.h, one of them own.h too."""

    def __init__(self, folder, nvcc):
        self.sources, self.work, self.output = folder / "my csrc", folder / "work", folder / "package" / "library.so"
        self.nvcc, self.architectures = nvcc, [80, 90]
        (self.sources / "sub").mkdir(parents=True)
        for name in ("shared.h", "own.h", "unused.h"):
            (self.sources / "sub" / name).write_text("")
        (self.sources / "sub" / "one.cu").write_text('#include "shared.h"\n')
        (self.sources / "sub" / "both.cu").write_text('#include "shared.h"\n#include "own.h"\n')
        (self.sources / "plain.cu").write_text("")

    def build(self):
        """What this build has compiled."""
        native_build.build(self.nvcc.path, self.architectures, self.work, self.output)
        return self.nvcc.compiled()


@pytest.fixture
def project(tmp_path, stand_in, monkeypatch):
    """Built once."""
    project = Project(tmp_path, stand_in)
    monkeypatch.setattr(native_build, "SOURCES", project.sources)
    assert project.build() == EVERYTHING
    assert project.output.read_text() == "linked\nplain.cu\nboth.cu\none.cu\n"
    return project


def test_nothing_changed(project):
    """Nothing is compiled or linked."""
    assert project.build() == []


@pytest.mark.parametrize("touched, compiled", [
    ("plain.cu", ["linked", "plain.cu"]),
    ("sub/one.cu", ["linked", "one.cu"]),
    ("sub/own.h", ["both.cu", "linked"]),
    ("sub/shared.h", ["both.cu", "linked", "one.cu"]),
    ("sub/unused.h", []),
])  # fmt: skip
def test_a_touched_file(project, touched, compiled):
    """Exactly what includes it; the installed library is newer than it in every case."""
    os.utime(project.sources / touched)
    assert project.build() == compiled
    assert project.output.stat().st_mtime >= (project.sources / touched).stat().st_mtime
    assert project.build() == []


def test_a_header_that_is_gone_and_no_longer_included(project):
    """Its users are compiled, and are content afterwards."""
    (project.sources / "sub" / "own.h").unlink()
    (project.sources / "sub" / "both.cu").write_text("")
    assert project.build() == ["both.cu", "linked"]
    assert project.build() == []


def test_changed_flags(project, monkeypatch):
    """Everything; so does going back."""
    monkeypatch.setattr(native_build, "FLAGS", [*native_build.FLAGS, "-lineinfo"])
    assert project.build() == EVERYTHING
    monkeypatch.undo()
    monkeypatch.setattr(native_build, "SOURCES", project.sources)
    assert project.build() == EVERYTHING


def test_another_release_at_the_same_path(project):
    """Objects of two compilers are not mixed."""
    project.nvcc.set(release="V13.1.2")
    assert project.build() == EVERYTHING


def test_each_set_of_architectures_has_its_objects(project):
    """Changing them back and forth compiles nothing, and installs the library asked for."""
    first = project.output.read_text()
    project.architectures = [80]
    assert project.build() == EVERYTHING
    (project.work / "80" / native_build.LIBRARY).write_text("for 80 alone")
    assert project.build() == [] and project.output.read_text() == "for 80 alone"
    project.architectures = [80, 90]
    assert project.build() == [] and project.output.read_text() == first


def test_a_removed_source(project):
    """Is not in the library."""
    (project.sources / "plain.cu").unlink()
    assert project.build() == ["linked"]
    assert project.output.read_text() == "linked\nboth.cu\none.cu\n"


def test_a_failed_compilation_shows_the_compilers_words_and_is_tried_again(project):
    """The half-written object is not taken for an object, the installed library stays."""
    before = project.output.read_text()
    os.utime(project.sources / "sub" / "one.cu")
    project.nvcc.set(breaks="one.cu")
    for _ in range(2):
        with pytest.raises(native_build.BuildError, match=r'one.cu\(7\): error: identifier "foo" is undefined'):
            project.build()
        assert project.output.read_text() == before and project.nvcc.compiled() == ["one.cu"]
    project.nvcc.set(breaks=None)
    assert project.build() == ["linked", "one.cu"]


def test_a_failure_leaves_the_other_objects_to_be_linked(project):
    """What did compile is not compiled again, but it is in the library."""
    os.utime(project.sources / "sub" / "shared.h")
    project.nvcc.set(breaks="one.cu")
    with pytest.raises(native_build.BuildError):
        project.build()
    assert project.nvcc.compiled() == ["both.cu", "one.cu"]
    project.nvcc.set(breaks=None)
    assert project.build() == ["linked", "one.cu"]


def test_a_link_that_did_not_happen_is_made_up_for(project):
    """Objects of a later compilation than the library's."""
    os.utime(project.sources / "plain.cu")
    native_build.compile_sources(project.nvcc.path, project.architectures, project.work)
    assert project.nvcc.compiled() == ["plain.cu"]
    assert project.build() == ["linked"]


def test_two_builds_at_once(project):
    """The second waits for the first, and compiles nothing."""
    os.utime(project.sources / "sub" / "shared.h")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_build, [project] * 2))
    assert project.nvcc.compiled() == ["both.cu", "linked", "one.cu"]


def _build(project):
    output = project.output.with_name(f"{threading.get_ident()}.so")
    native_build.build(project.nvcc.path, project.architectures, project.work, output)
    assert output.read_text() == project.output.read_text()


def test_a_header_saved_while_it_is_compiled(project):
    """Which version went in is not known: compiled again, and the library counts as older than the header."""
    project.nvcc.set(slow="one.cu")
    os.utime(project.sources / "sub" / "one.cu")
    project.build()
    header = project.sources / "sub" / "shared.h"
    assert project.output.stat().st_mtime < header.stat().st_mtime
    project.nvcc.set(slow=None)
    assert "one.cu" in project.build()
    assert project.build() == []


def test_the_installed_library_is_put_back(project):
    """Deleted or damaged: from the last link."""
    project.output.write_text("damaged")
    assert project.build() == [] and project.output.read_text().startswith("linked\n")
    project.output.unlink()
    assert project.build() == [] and project.output.read_text().startswith("linked\n")


def test_a_mapped_library_is_not_changed(project):
    """A process keeps the file it has opened."""
    with open(project.output) as opened:
        (project.sources / "plain.cu").unlink()
        project.build()
        assert "plain.cu" in opened.read() and "plain.cu" not in project.output.read_text()
