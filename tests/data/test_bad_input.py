"""Bad input: one clear line, status 2 (the request) or 1 (the world), no traceback, nothing left half-written."""

import gzip
import json
import os
import random

import pyarrow as pa
import pyarrow.parquet
import pytest

from cramming_train.prepare import main
from tests.data.helpers import Writer, encode, pack, write

SETTINGS = ("data.vocab_size=320", "data.row_length=24", "data.compression_threshold=none")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAMMING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def fails(capsys, tmp_path, *sources, status, settings=SETTINGS, options=(), out=None) -> str:
    """Run the command, expect it to fail; returns its one line, and sees to it that nothing is left."""
    out = out or tmp_path / "made" / "out"
    arguments = ["--data", *map(str, sources), "--out", str(out), "--processes", "1", "--set", *settings, *options]
    got = main(arguments)
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("  ")]  # less progress
    assert got == status, errors
    assert len(errors) == 1 and errors[0].startswith("error: "), errors
    assert not out.exists()
    left = list(out.parent.iterdir()) if out.parent.is_dir() else []
    assert left == [], "nothing half-written"
    return errors[0]


@pytest.fixture
def documents() -> list[str]:
    return Writer(11).documents(60)


def test_the_cleaning_of_foreign_weights(documents, tmp_path, capsys):
    """It is none at all: good for rows that are ready, not for text."""
    path = write(tmp_path / "a.jsonl", documents)
    assert "want ascii or unicode" in fails(capsys, tmp_path, path, status=2, settings=(*SETTINGS, "data.clean=none"))


def test_the_same_call_succeeds_with_good_input(tmp_path, documents, capsys):
    """Or the other tests here would show nothing."""
    source = write(tmp_path / "good.jsonl", documents)
    assert main(["--data", str(source), "--out", str(tmp_path / "out"), "--processes", "1", "--set", *SETTINGS]) == 0
    assert "prepared: " in capsys.readouterr().out


def test_missing(capsys, tmp_path):
    assert "nothing.txt: no such file or folder" in fails(capsys, tmp_path, tmp_path / "nothing.txt", status=2)
    assert "no such file or folder" in fails(capsys, tmp_path, tmp_path / "no*.jsonl", status=2)


def test_one_missing_of_two(capsys, tmp_path, documents):
    good = write(tmp_path / "good.jsonl", documents)
    assert "nothing.txt" in fails(capsys, tmp_path, good, tmp_path / "nothing.txt", status=2)


def test_unknown_format(capsys, tmp_path):
    (tmp_path / "text.docx").write_text("x")
    assert "unknown format; want one of .txt, .jsonl" in fails(capsys, tmp_path, tmp_path / "text.docx", status=2)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.docx").write_text("x")
    assert "no file of a known format" in fails(capsys, tmp_path, tmp_path / "folder", status=2)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.parquet", "a.txt.gz", "a.csv.zst"])
def test_empty_file(name, capsys, tmp_path):
    (tmp_path / name).write_bytes(b"")
    assert f"{name}: the file is empty" in fails(capsys, tmp_path, tmp_path / name, status=2)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.gz", "a.txt.zst"])
def test_file_of_white_space(name, capsys, tmp_path):
    (tmp_path / name).write_bytes(pack(b" \n\n\t\n" * 50, os.path.splitext(name)[1]))
    assert "the sources hold no text" in fails(capsys, tmp_path, tmp_path / name, status=2)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.txt.gz", "a.jsonl.zst"])
def test_binary_file(name, capsys, tmp_path):
    data = random.Random(3).randbytes(9001)
    (tmp_path / name).write_bytes(pack(data, os.path.splitext(name)[1]))
    assert f"{name}: a binary file, not text" in fails(capsys, tmp_path, tmp_path / name, status=2)


def test_binary_parquet(capsys, tmp_path):
    (tmp_path / "a.parquet").write_bytes(random.Random(3).randbytes(9001))
    assert "a.parquet: damaged, or not a parquet" in fails(capsys, tmp_path, tmp_path / "a.parquet", status=1)


def test_parquet_cut_short(capsys, tmp_path, documents):
    data = encode(documents, ".parquet")
    (tmp_path / "a.parquet").write_bytes(data[: len(data) // 2])
    assert "a.parquet: damaged, or not a parquet" in fails(capsys, tmp_path, tmp_path / "a.parquet", status=1)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_wrong_column(name, capsys, tmp_path, documents):
    source = write(tmp_path / name, documents, column="body")
    line = fails(capsys, tmp_path, source, status=2)
    assert f"{name}: no column 'text' (there: id, body); choose one with --text-column" in line


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_column_that_holds_no_text(name, capsys, tmp_path, documents):
    source = write(tmp_path / name, documents)
    line = fails(capsys, tmp_path, source, status=2, options=("--text-column", "id"))
    assert f"{name}, row 1: column 'id' holds int, want text" in line


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_compressed_file_cut_short(compression, share, capsys, tmp_path):
    """Long enough that its beginning can be read: half a corpus must not pass for the whole."""
    data = pack(encode(Writer(12).documents(600), ".jsonl"), compression)
    path = tmp_path / f"a.jsonl{compression}"
    path.write_bytes(data[: int(len(data) * share)])
    assert f"{path.name}: the compressed file is damaged or cut short" in fails(capsys, tmp_path, path, status=1)


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_compressed_file_damaged(compression, capsys, tmp_path, documents):
    text = encode(documents, ".txt")
    data = bytearray(pack(text, compression))
    data[5000:5040] = bytes(40)  # in the middle of the compressed data
    path = tmp_path / f"a.txt{compression}"
    path.write_bytes(data)
    line = fails(capsys, tmp_path, path, status=1)
    assert f"{path.name}: the compressed file is damaged" in line


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
def test_not_compressed_at_all(name, capsys, tmp_path, documents):
    (tmp_path / name).write_bytes(encode(documents, ".txt"))
    assert f"{name}: the compressed file is damaged" in fails(capsys, tmp_path, tmp_path / name, status=1)


def test_compressed_without_saying_so(capsys, tmp_path, documents):
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(encode(documents, ".jsonl")))
    assert "a.jsonl: " in fails(capsys, tmp_path, tmp_path / "a.jsonl", status=2)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.txt.gz"])
def test_invalid_utf_8_far_into_the_file(name, capsys, tmp_path):
    latin = [*(Writer(5).documents(100) * 30), "caf\u00e9"]
    kind = os.path.splitext(name.removesuffix(".gz"))[1]
    data = encode(latin, kind).replace("\u00e9".encode(), b"\xe9").replace(b"\\u00e9", b"\xe9")
    assert len(data) > 2 << 20 and b"\xe9" in data
    (tmp_path / name).write_bytes(pack(data, os.path.splitext(name)[1]))
    line = fails(capsys, tmp_path, tmp_path / name, status=2)
    assert f"{name}: not UTF-8 text (" in line and "0xe9" in line


def test_broken_json_line(capsys, tmp_path, documents):
    lines = encode(documents, ".jsonl").splitlines()
    lines[41] = lines[41][:-3]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    assert "a.jsonl, line 42: not valid JSON" in fails(capsys, tmp_path, tmp_path / "a.jsonl", status=2)


def test_vocabulary_too_large(capsys, tmp_path, documents):
    source = write(tmp_path / "a.jsonl", documents)
    line = fails(capsys, tmp_path, source, status=2, settings=("data.vocab_size=20000",))
    assert "too small for a vocabulary of 20000: it yields " in line
    advised = line.split("data.vocab_size=")[1].strip()
    out = tmp_path / "out"
    assert main(["--data", str(source), "--out", str(out), "--processes", "1", "--set", f"data.vocab_size={advised}",
                 *SETTINGS[1:]]) == 0, "the advice works"  # fmt: skip


def test_vocabulary_smaller_than_the_alphabet(capsys, tmp_path, documents):
    source = write(tmp_path / "a.jsonl", [text + " 0123456789 ;:()[]{}#$%&*+=<>|~^_@/" for text in documents])
    line = fails(capsys, tmp_path, source, status=2, settings=("data.vocab_size=64", *SETTINGS[1:]))
    assert "too small for a vocabulary" not in line, "the vocabulary is too small, not the corpus"
    advised = line.split("data.vocab_size=")[1].split()[0]
    out = tmp_path / "out"
    assert main(["--data", str(source), "--out", str(out), "--processes", "1", "--set", f"data.vocab_size={advised}",
                 *SETTINGS[1:]]) == 0, "the advice works"  # fmt: skip


def test_too_little_text_for_a_row(capsys, tmp_path, documents):
    source = write(tmp_path / "a.jsonl", documents)
    line = fails(capsys, tmp_path, source, status=2, settings=(*SETTINGS, "data.compression_threshold=0.01"))
    assert "not one training row of 24 tokens" in line


def test_all_text_dropped_by_cleaning_says_how_to_keep_it(capsys, tmp_path):
    letters = [chr(code) for code in range(0x430, 0x450)]
    chosen = random.Random(1)
    words = ["".join(chosen.choices(letters, k=6)) for _ in range(4000)]
    source = write(tmp_path / "cyrillic.jsonl", [" ".join(words[i : i + 100]) for i in range(0, 4000, 100)])
    assert "data.clean=unicode" in fails(capsys, tmp_path, source, status=2)


def test_half_of_a_surrogate_pair(tmp_path, capsys, documents):
    """JSON can write what is no character; texts cut in the middle of an emoji do."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text + " \ud83d"}) + "\n" for text in documents))
    for clean in ("ascii", "unicode"):
        out = tmp_path / clean
        status = main(["--data", str(path), "--out", str(out), "--processes", "1", "--set", f"data.clean={clean}",
                       *SETTINGS])  # fmt: skip
        assert status == 0, capsys.readouterr().err


def test_processes_and_settings(capsys, tmp_path, documents):
    source = write(tmp_path / "a.jsonl", documents)
    assert "--processes: got 0" in fails(capsys, tmp_path, source, status=2, options=("--processes", "0"))
    assert "no such key" in fails(capsys, tmp_path, source, status=2, options=("--set", "data.vocab=3"))
    assert "data.clean: got 'asci'" in fails(capsys, tmp_path, source, status=2, options=("--set", "data.clean=asci"))


def test_empty_parquet(capsys, tmp_path):
    pyarrow.parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert "the sources hold no text" in fails(capsys, tmp_path, tmp_path / "a.parquet", status=2)
