"""Hub sources through a stand-in: text and rows as streams, and every way in which they can fail."""

import numpy as np
import pytest

from cramming_train.data import hub
from cramming_train.errors import RunError, UsageError
from tests.data.helpers import Writer, all_rows, prepare, small, write
from tests.data.stand_in import HubStandIn, rows_tokenizer


@pytest.fixture
def stand_in(monkeypatch):
    return HubStandIn(monkeypatch)


@pytest.mark.parametrize("described", [True, False])
def test_text(described, stand_in, tmp_path):
    """The same rows as from a file; columns known beforehand or only from the first record."""
    documents = Writer(151).documents(120)
    stand_in.add_text("user/books", documents, described=described)
    prepared = prepare("user/books", small(), tmp_path)
    local = prepare(write(tmp_path / "a.jsonl", documents), small(), tmp_path)
    assert prepared.metadata["sha256"] == local.metadata["sha256"]
    assert prepared.metadata["source_kind"] == "hub" and prepared.metadata["source"] == "user/books"
    assert set(stand_in.asked) == {("user/books", None, "train", True)}, "streamed, the training split"


def test_configuration(stand_in, tmp_path):
    stand_in.add_text("user/books", Writer(152).documents(90))
    prepare("user/books:small", small(), tmp_path)
    assert set(stand_in.asked) == {("user/books", "small", "train", True)}


def test_another_column(stand_in, tmp_path):
    stand_in.add_text("user/books", Writer(153).documents(90), column="body")
    assert len(prepare("user/books", small(), tmp_path, text_column="body").train) > 0
    with pytest.raises(UsageError, match=r"user/books: no column 'text' \(there: id, body\); use --text-column"):
        prepare("user/books", small(), tmp_path)
    with pytest.raises(UsageError, match="column 'id' holds int, want text"):
        prepare("user/books", small(), tmp_path, text_column="id")


def test_text_beside_a_file(stand_in, tmp_path):
    stand_in.add_text("user/books", Writer(154).documents(60))
    local = write(tmp_path / "a.jsonl", Writer(155).documents(60))
    prepared = prepare([local, "user/books"], small(), tmp_path)
    assert prepared.metadata["documents"] == 120 and prepared.metadata["source_kind"] == "mixture"


def test_missing_texts_are_empty_documents(stand_in, tmp_path):
    """As in local files."""
    stand_in.add_text("user/books", [*Writer(156).documents(90), None, *Writer(157).documents(9)])
    assert prepare("user/books", small(), tmp_path).metadata["documents"] == 99


def test_unknown_name(stand_in, tmp_path):
    with pytest.raises(UsageError, match="--data user/nothing: Dataset 'user/nothing' doesn't exist"):
        prepare("user/nothing", small(), tmp_path)


@pytest.mark.parametrize("described", [True, False])
def test_stream_that_breaks_off(described, stand_in, tmp_path):
    """The network's errors are no bugs: one line, and nothing is kept."""

    class ReadTimeout(Exception):
        """Network libraries derive theirs from Exception."""

    stand_in.add_text("user/books", Writer(158).documents(90), described=described)
    stand_in.fail("user/books", ReadTimeout("The read operation timed out"), after=50)
    with pytest.raises(RunError, match="user/books: .*The read operation timed out"):
        prepare("user/books", small(), tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_empty_data_set(stand_in, tmp_path, monkeypatch):
    import datasets

    def nothing():
        yield from ()

    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: datasets.IterableDataset.from_generator(nothing))
    with pytest.raises(UsageError, match="user/nothing: "):
        prepare("user/nothing", small(), tmp_path)


def test_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RunError, match="user/books: not a local path, and the hub is out of reach: HF_HUB_OFFLINE"):
        prepare("user/books", small(), tmp_path)


@pytest.mark.parametrize("value", ["1", "true", "YES", "On"])
def test_obstacles(value, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert hub.hub_obstacle() == "HF_HUB_OFFLINE is set"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    assert hub.hub_obstacle() is None, "behind a proxy a direct connection says nothing"


def test_rows(stand_in, tmp_path):
    stand_in.add_rows("user/rows", rows_tokenizer(320), rows=650, row_length=24)
    prepared = prepare("user/rows", small(), tmp_path)
    given = stand_in.rows["user/rows"]
    held_out = np.arange(650) % 200 == 0
    assert np.array_equal(all_rows(prepared.train), given[~held_out]), "in their own order"
    assert np.array_equal(all_rows(prepared.validation), given[held_out])
    assert prepared.metadata["source_kind"] == "rows"


def test_rows_without_a_tokenizer(stand_in, tmp_path):
    stand_in.add_rows("user/rows", rows_tokenizer(320), rows=650, row_length=24)
    stand_in._tokenizers.clear()
    with pytest.raises(RunError, match="user/rows: its tokenizer.json: .*404"):
        prepare("user/rows", small(), tmp_path)


def test_rows_beside_text(stand_in, tmp_path):
    stand_in.add_rows("user/rows", rows_tokenizer(320), rows=650, row_length=24)
    local = write(tmp_path / "a.jsonl", Writer(159).documents(60))
    with pytest.raises(UsageError, match="user/rows: ready-made rows cannot be mixed"):
        prepare(["user/rows", local], small(), tmp_path)
    with pytest.raises(UsageError, match="user/rows: "):
        prepare([local, "user/rows"], small(), tmp_path)


def test_only_as_many_rows_are_fetched_as_are_asked_for(stand_in, tmp_path, monkeypatch):
    from cramming_train.data import ready_rows

    monkeypatch.setattr(ready_rows, "BATCH_ROWS", 50)
    stand_in.add_rows("user/rows", rows_tokenizer(320), rows=2000, row_length=24)
    stand_in.fail("user/rows", RunError("read too far"), after=500)
    prepared = prepare("user/rows", small(max_rows=300), tmp_path)
    assert len(prepared.train) == 300 and len(prepared.validation) == 2
