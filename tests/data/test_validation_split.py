"""Held-out text: whole documents, in no case trained on; a file named validation.* in a folder is exactly that text."""

import random

import pytest

from cramming_train.errors import UsageError
from tests.data.helpers import Writer, all_rows, prepare, small, tokens_of, write


def documents_in(prepared, rows) -> list[tuple[int, ...]]:
    """The whole documents of rows in the order of the corpus; the last, perhaps cut, is left out."""
    stream = all_rows(rows).reshape(-1).tolist()
    found, start = [], 0
    for position, token in enumerate(stream):
        if token == 5:
            found.append(tuple(stream[start : position + 1]))
            start = position + 1
    return found


@pytest.mark.parametrize("fraction", [0.03, 0.1, 0.5])
def test_documents_are_held_back_whole(fraction, tmp_path):
    documents = Writer(71).documents(500)
    prepared = prepare(write(tmp_path / "a.jsonl", documents), small(validation_fraction=fraction), tmp_path)
    held_out = documents_in(prepared, prepared.validation)
    trained = documents_in(prepared, prepared.train)
    assert set(held_out).isdisjoint(trained)
    all_documents = [tuple(tokens_of(prepared, text)) for text in documents]
    assert set(held_out) | set(trained) <= set(all_documents)
    assert len(held_out) + len(trained) >= len(documents) - 2
    assert fraction * 500 * 0.5 < len(held_out) < fraction * 500 * 1.6


def test_repeated_documents_fall_on_one_side(tmp_path):
    """Copies of a held-out document would make it trained text."""
    documents = Writer(72).documents(150) * 3
    random.Random(1).shuffle(documents)
    prepared = prepare(write(tmp_path / "a.jsonl", documents), small(validation_fraction=0.2), tmp_path)
    held_out, trained = documents_in(prepared, prepared.validation), documents_in(prepared, prepared.train)
    assert len(held_out) > 30 and len(held_out) > 1.5 * len(set(held_out)), "copies are together"
    assert set(held_out).isdisjoint(trained)


@pytest.mark.parametrize("deduplicate", ["none", "paragraph"])
def test_a_small_corpus_holds_back_one_document_and_its_copies(deduplicate, tmp_path):
    """No document may fall below the threshold; the one with the smallest hash is then held back."""
    writer = Writer(81)
    texts = [" ".join(writer.sentence() for _ in range(40)) for _ in range(40)]  # one long paragraph each
    documents = texts * 2
    recipe = small(validation_fraction=1e-9, deduplicate=deduplicate)
    prepared = prepare(write(tmp_path / "a.jsonl", documents), recipe, tmp_path)
    held_out, trained = documents_in(prepared, prepared.validation), documents_in(prepared, prepared.train)
    assert len(all_rows(prepared.validation)) > 0
    stream = all_rows(prepared.validation).reshape(-1).tolist()
    first = stream[: stream.index(5)] if 5 in stream else stream
    assert len(first) > 100
    assert not any(list(document[: len(first)]) == first for document in trained), "its copy is trained on"
    assert set(held_out).isdisjoint(trained)


def test_the_split_does_not_hang_on_the_order_of_the_documents(tmp_path):
    documents = Writer(73).documents(300)
    recipe = small(validation_fraction=0.1, vocab_size=128)
    one = prepare(write(tmp_path / "a.jsonl", documents), recipe, tmp_path)
    random.Random(2).shuffle(documents)
    other = prepare(write(tmp_path / "b.jsonl", documents), recipe, tmp_path)
    words = [
        {one.tokenizer.decode(list(ids[:-1])) for ids in documents_in(one, one.validation)},
        {other.tokenizer.decode(list(ids[:-1])) for ids in documents_in(other, other.validation)},
    ]
    assert len(words[0] ^ words[1]) <= 2, "but for what the dropped rest cuts"


@pytest.mark.parametrize("name", ["validation.txt", "validation.jsonl.gz", "validation.parquet", "validation.csv.zst"])
def test_validation_file_of_a_folder(name, tmp_path):
    training, held_out = Writer(74).documents(150), Writer(75).documents(25)
    write(tmp_path / "text" / "a.jsonl", training)
    write(tmp_path / "text" / "deep" / name, held_out)
    prepared = prepare(tmp_path / "text", small(), tmp_path)
    trained = documents_in(prepared, prepared.train)
    assert trained == [tuple(tokens_of(prepared, text)) for text in training][: len(trained)]
    assert len(training) - len(trained) <= 1
    length = sum(len(tokens_of(prepared, text)) for text in held_out)
    if not name.endswith(".txt"):  # a .txt file is fewer, longer documents
        assert prepared.validation.read(0, len(prepared.validation)).size == length // 24 * 24


def test_validation_file_of_a_glob_and_of_a_list_of_files(tmp_path, monkeypatch):
    """A shell turns text/*.jsonl into a list of names; the result must be that of the quoted glob."""
    write(tmp_path / "text" / "a.jsonl", Writer(76).documents(150))
    write(tmp_path / "text" / "validation.jsonl", Writer(77).documents(25))
    by_folder = prepare(tmp_path / "text", small(), tmp_path)
    by_glob = prepare(f"{tmp_path}/text/*.jsonl", small(), tmp_path)
    assert by_glob.metadata["sha256"] == by_folder.metadata["sha256"]
    by_list = prepare([tmp_path / "text" / "a.jsonl", tmp_path / "text" / "validation.jsonl"], small(), tmp_path)
    assert by_list.metadata["sha256"] == by_folder.metadata["sha256"]


def test_a_lone_file_named_validation_is_text_like_any_other(tmp_path):
    source = write(tmp_path / "validation.jsonl", Writer(78).documents(150))
    prepared = prepare(source, small(), tmp_path)
    assert len(prepared.train) > 5 * len(prepared.validation) > 0


def test_only_a_validation_file(tmp_path):
    write(tmp_path / "text" / "validation.jsonl", Writer(79).documents(150))
    with pytest.raises(UsageError) as error:
        prepare(tmp_path / "text", small(), tmp_path)
    assert "validation" in str(error.value) or "training" in str(error.value), "says that nothing is left to train on"


def test_one_document_cannot_be_split(tmp_path):
    text = "\n\n".join(Writer(80).documents(60)).replace("\n", " ")
    with pytest.raises(UsageError, match="not one held-out row"):
        prepare(write(tmp_path / "a.jsonl", [text]), small(), tmp_path)
