"""The embedded corpus: documentation of what is installed, the same every time, and nothing but text."""

import itertools

import pytest

from cramming_train.data import embedded
from cramming_train.data.embedded import read_embedded


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "_roots", lambda: [tmp_path])
    return tmp_path


LONG = "Long documentation of a thing that does what it says. " * 12


def test_docstrings_and_documents(root):
    (root / "a.py").write_text(f'"""{LONG}"""\nx = "not documentation"\ndef f():\n    r\'\'\'{LONG}two\'\'\'\n')
    (root / "b.rst").write_text(f"Title\n=====\n{LONG}")
    (root / "c.md").write_text(LONG)
    (root / "d.dist-info").mkdir()
    (root / "d.dist-info" / "METADATA").write_text(f"Name: d\n{LONG}")
    (root / "e.txt").write_text(LONG)
    found = list(read_embedded())
    assert found == [
        f"{LONG.strip()}\n\n{LONG}two", f"Title\n=====\n{LONG}", LONG, f"Name: d\n{LONG}",
    ]  # fmt: skip


def test_what_is_left_out(root):
    """Short remarks, unreadable files and huge generated ones do not stop it."""
    (root / "short.py").write_text('"""Short."""\n' * 40)
    (root / "short.md").write_text("short")
    (root / "latin.py").write_bytes(b'"""' + b"caf\xe9 " * 200 + b'"""')
    (root / "huge.md").write_text("x " * (5 << 19))
    (root / "folder.py").mkdir()
    (root / "broken.md").symlink_to(root / "nowhere")
    assert list(read_embedded()) == []


def test_every_machine_has_some():
    texts = list(itertools.islice(read_embedded(), 60))
    assert len(texts) == 60 and all(len(text) >= 400 for text in texts)
    words = " ".join(texts).lower().split()
    assert words.count("the") > 0.01 * len(words), "English"
    assert texts == list(itertools.islice(read_embedded(), 60))


def test_roots_do_not_overlap():
    roots = embedded._roots()
    assert roots and not any(a != b and a in b.parents for a in roots for b in roots)
