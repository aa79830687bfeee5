"""Readers: the same documents from every format and compression, from files, folders and globs."""

import json

import pytest
import zstandard

from cramming_train.data.files import (
    TXT_DOCUMENT_CHARACTERS,
    find_files,
    is_local,
    is_validation_file,
    read_documents,
)
from cramming_train.errors import UsageError
from tests.data.helpers import Writer, encode, pack, write

ROWS = (".jsonl", ".csv", ".parquet")
COMPRESSIONS = ("", ".gz", ".zst")


@pytest.fixture(scope="module")
def documents() -> list[str]:
    odd = ['quotes " and, commas', "two\nlines", "", "naïve – Größe 東京 🙂", "  spaces  ", "tab\there", "[1]"]
    return Writer(1).documents(33) + odd


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", ROWS)
def test_a_document_a_row(kind, compression, documents, tmp_path):
    path = write(tmp_path / f"text{kind}{compression}", documents)
    assert list(read_documents(path, "text")) == documents


@pytest.mark.parametrize("kind", ROWS)
def test_another_column(kind, documents, tmp_path):
    path = write(tmp_path / f"text{kind}", documents, column="body")
    assert list(read_documents(path, "body")) == documents


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_plain_text_is_cut_at_blank_lines_and_nothing_is_lost(compression, tmp_path):
    writer = Writer(2)
    paragraphs = [writer.paragraph() for _ in range(300)]  # about 70,000 characters
    path = write(tmp_path / f"book.txt{compression}", paragraphs)
    found = list(read_documents(path, "text"))
    assert len(found) > 3
    assert all(len(text) >= TXT_DOCUMENT_CHARACTERS for text in found[:-1])
    assert "\n\n".join(found) == "\n\n".join(paragraphs)


def test_plain_text_longer_than_one_block_keeps_every_word(tmp_path):
    """Blocks end anywhere, also inside a blank line or inside a character of several bytes."""
    writer = Writer(3)
    words = [writer.random.choice((" ", "\n", "\n\n", "\n \n")) + "wört" + str(i) for i in range(250_000)]
    path = tmp_path / "long.txt"
    path.write_text("".join(words), encoding="utf-8")
    assert path.stat().st_size > 2 << 20
    found = list(read_documents(path, "text"))
    assert " ".join(found).split() == "".join(words).split()
    assert all(TXT_DOCUMENT_CHARACTERS <= len(text) < 2 * TXT_DOCUMENT_CHARACTERS for text in found[:-1])


def test_plain_text_without_a_blank_line_still_streams(tmp_path):
    writer = Writer(4)
    lines = [writer.sentence() for _ in range(50_000)]
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(lines))
    found = list(read_documents(path, "text"))
    assert len(found) > 2 and max(map(len, found)) < 4 << 20
    assert "".join(found) == "\n".join(lines)
    assert all(text.endswith("\n") for text in found[:-1]), "cut at the end of a line"


def test_line_ends_of_other_systems(tmp_path):
    path = tmp_path / "dos.csv"
    path.write_bytes(b'id,text\r\n0,"one\r\ntwo"\r\n1,three\r\n')
    assert list(read_documents(path, "text")) == ["one\ntwo", "three"]
    jsonl = tmp_path / "dos.jsonl"
    jsonl.write_bytes(b'{"text": "a\xe2\x80\xa8b"}\r\n\r\n{"text": "c"}\r\n')
    assert list(read_documents(jsonl, "text")) == ["a\u2028b", "c"]


def test_missing_values_are_empty_documents(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text('{"text": null}\n{"text": "b"}\n')
    assert list(read_documents(path, "text")) == ["", "b"]


def test_gzip_members_one_after_another(documents, tmp_path):
    """``cat a.gz b.gz`` is a gzip file."""
    path = tmp_path / "two.jsonl.gz"
    path.write_bytes(pack(encode(documents[:9], ".jsonl"), ".gz") + pack(encode(documents[9:], ".jsonl"), ".gz"))
    assert list(read_documents(path, "text")) == documents


def test_zst_frames_one_after_another(documents, tmp_path):
    """``cat a.zst b.zst``, and what parallel compressors write."""
    path = tmp_path / "two.jsonl.zst"
    path.write_bytes(pack(encode(documents[:9], ".jsonl"), ".zst") + pack(encode(documents[9:], ".jsonl"), ".zst"))
    assert list(read_documents(path, "text")) == documents


def test_zst_with_a_long_window(documents, tmp_path):
    """``zstd --long=31``, as large public corpora are packed."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = tmp_path / "long.jsonl.zst"
    path.write_bytes(compressor.compress(encode(documents, ".jsonl")) + compressor.flush())
    assert list(read_documents(path, "text")) == documents


def test_byte_order_mark(tmp_path):
    """Spreadsheet programs write one; it is no part of the first column's name."""
    for name, content in (("a.csv", "text,id\nhello,1\n"), ("b.jsonl", '{"text": "hello"}\n')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert list(read_documents(tmp_path / name, "text")) == ["hello"], name


def test_folder_is_searched_in_sorted_order(tmp_path):
    for name in ("b/two.txt", "a/one.jsonl.gz", "three.csv", "b/c/four.parquet", ".hidden.txt", "README.md", "x.json"):
        write(tmp_path / name, ["some text"]) if name[-2:] != "md" and name[-4:] != "json" else (
            tmp_path / name
        ).write_text("{}")
    found = find_files(str(tmp_path))
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "a/one.jsonl.gz", "b/c/four.parquet", "b/two.txt", "three.csv",
    ]  # fmt: skip
    assert find_files(str(tmp_path)) == sorted(found)


def test_globs(tmp_path):
    for name in ("a1.txt", "a2.txt", "b1.txt", "deep/down/a3.txt"):
        write(tmp_path / name, ["text"])
    names = [path.name for path in find_files(f"{tmp_path}/a*.txt")]
    assert names == ["a1.txt", "a2.txt"]
    assert [path.name for path in find_files(f"{tmp_path}/**/a*.txt")] == ["a1.txt", "a2.txt", "a3.txt"]
    write(tmp_path / "odd[1].txt", ["text"])
    assert [path.name for path in find_files(f"{tmp_path}/odd[1].txt")] == ["odd[1].txt"], "a file's own name first"


@pytest.mark.parametrize(
    ("name", "held_out"),
    [
        ("validation.txt", True), ("validation.jsonl.gz", True), ("validation.parquet", True),
        ("train.txt", False), ("validation_notes.txt", False), ("my.validation.txt", False),
    ],
)  # fmt: skip
def test_which_names_are_held_out_text(name, held_out, tmp_path):
    assert is_validation_file(tmp_path / name) is held_out


def test_local_names_against_hub_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    local = ("./x", "/x/y", "~/x", "x/*.gz", "x.txt", "x.jsonl.zst", "corpus")
    assert [is_local(name) for name in local] == [True] * len(local)
    hub = ("wikitext", "user/name", "user/name:config", "corpora")
    assert [is_local(name) for name in hub] == [False] * len(hub)


@pytest.mark.parametrize("record", ["[1]", '"text"', "3"])
def test_a_line_that_is_no_object(record, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"text": "a"}) + "\n" + record + "\n")
    with pytest.raises(UsageError, match="bad.jsonl, line 2: want a JSON object"):
        list(read_documents(path, "text"))
