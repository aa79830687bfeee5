"""``auto``: what was prepared before, else the hub, else the embedded text with a loud notice on record."""

import dataclasses

import pytest

from cramming_train.data import embedded, hub
from cramming_train.data import prepare as module
from cramming_train.data.prepare import prepare_data
from cramming_train.errors import RunError
from tests.data.helpers import Writer, prepare, small, write
from tests.data.stand_in import HubStandIn, rows_tokenizer


@pytest.fixture
def documentation(monkeypatch, tmp_path):
    """The embedded source, looking into one small folder instead of all installed packages."""
    root = tmp_path / "packages"
    root.mkdir()
    for number, text in enumerate(Writer(131).documents(90)):
        (root / f"page{number}.md").write_text(text)
    monkeypatch.setattr(embedded, "_roots", lambda: [root])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return root


def auto(tmp_path, recipe, **options):
    return prepare("auto", recipe, tmp_path, **options)


def test_embedded_where_nothing_else_is(documentation, tmp_path, capsys):
    prepared = auto(tmp_path, small())
    shown = capsys.readouterr().err
    assert "NOTICE: --data auto: the hub is not available (HF_HUB_OFFLINE is set)" in shown
    assert "NOTICE: DEMONSTRATION DATA" in shown
    assert prepared.metadata["source"] == "embedded" == prepared.metadata["source_kind"]
    assert len(prepared.metadata["notices"]) == 2 and prepared.metadata["notices"][1] == embedded.NOTICE
    assert len(prepared.train) > 0


def test_the_notice_stays_on_record_when_found_again(documentation, tmp_path):
    first = auto(tmp_path, small())
    again = auto(tmp_path, small())
    assert again.path == first.path and embedded.NOTICE in again.metadata["notices"]


def test_embedded_by_name(documentation, tmp_path):
    prepared = prepare("embedded", small(), tmp_path)
    assert prepared.metadata["source_kind"] == "embedded" and prepared.metadata["documents"] > 60


def test_prepared_before_comes_first(documentation, tmp_path, capsys):
    mine = prepare(write(tmp_path / "a.jsonl", Writer(132).documents(90)), small(), tmp_path)
    found = auto(tmp_path, dataclasses.replace(small(), name="another", max_rows=9999))
    assert found.path == mine.path
    assert "DEMONSTRATION" not in capsys.readouterr().err


def test_newest_of_several(documentation, tmp_path):
    import os

    made = [prepare(write(tmp_path / f"{n}.jsonl", Writer(133 + n).documents(90)), small(), tmp_path) for n in range(3)]
    os.utime(made[1].path, (2e9, 2e9))
    assert auto(tmp_path, small()).path == made[1].path


@pytest.mark.parametrize("change", [{"row_length": 25}, {"vocab_size": 321}, {"order": "random"}, {"seed": 1}])
def test_data_of_another_recipe_does_not_count(change, documentation, tmp_path):
    prepare(write(tmp_path / "a.jsonl", Writer(136).documents(90)), small(), tmp_path)
    assert auto(tmp_path, small(**change)).metadata["source_kind"] == "embedded"


def test_embedded_data_does_not_count_as_real(documentation, tmp_path):
    """Once the hub can be reached, it is used."""
    prepare("embedded", small(), tmp_path)
    assert module._newest_cached(small(), tmp_path / "cache") is None


def test_damaged_entries_are_passed_over(documentation, tmp_path):
    mine = prepare(write(tmp_path / "a.jsonl", Writer(137).documents(90)), small(), tmp_path)
    (mine.path / "train" / "state.json").unlink()
    (tmp_path / "cache" / "prepared-rubbish").mkdir()
    (tmp_path / "cache" / "prepared-file").write_text("x")
    assert auto(tmp_path, small()).metadata["source_kind"] == "embedded"


def test_out_is_made_whatever_the_cache_holds(documentation, tmp_path):
    prepare(write(tmp_path / "a.jsonl", Writer(138).documents(90)), small(), tmp_path)
    assert auto(tmp_path, small(), out=tmp_path / "out").path == tmp_path / "out"


# --- with a hub


@pytest.fixture
def hosted(monkeypatch, documentation):
    """A hub that has the hosted rows, in a smaller shape."""
    monkeypatch.setattr(hub, "PILE_VOCAB_SIZE", 320)
    monkeypatch.setattr(hub, "PILE_ROW_LENGTH", 24)
    monkeypatch.setattr(hub, "PILE_ROW_COUNT", 900)
    stand_in = HubStandIn(monkeypatch)
    stand_in.add_rows(hub.PILE_ROWS, rows_tokenizer(320), rows=900, row_length=24)
    return stand_in


def test_hub_rows(hosted, tmp_path, capsys):
    prepared = auto(tmp_path, small())
    assert prepared.metadata["source"] == hub.PILE_ROWS and prepared.metadata["source_kind"] == "rows"
    assert "DEMONSTRATION" not in capsys.readouterr().err and prepared.metadata["notices"] == []
    assert len(prepared.train) + len(prepared.validation) == 900


def test_fewer_hub_rows_for_a_cpu(hosted, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CPU_HUB_ROWS", 333)
    assert len(auto(tmp_path / "a", small()).train) == 333
    assert len(auto(tmp_path / "b", small(), device_type="cuda").train) > 800
    assert len(auto(tmp_path / "c", small(max_rows=500)).train) == 500, "what the user asked for"


def test_hub_rows_are_found_again(hosted, tmp_path, monkeypatch):
    first = auto(tmp_path, small())
    monkeypatch.setattr(hub, "hub_obstacle", lambda: "offline now")
    assert auto(tmp_path, small()).path == first.path


def test_hub_rows_of_another_shape(hosted, tmp_path, capsys):
    prepared = auto(tmp_path, small(row_length=31))
    assert prepared.metadata["source_kind"] == "embedded"
    assert "the hosted rows have 24 tokens of a vocabulary of 320" in capsys.readouterr().err


def test_hub_that_fails_on_the_way(hosted, tmp_path, capsys):
    """A connection is no promise: half of the rows are not kept, and the notice says what happened."""
    hosted.fail(hub.PILE_ROWS, ConnectionResetError("Connection reset by peer"), after=300)
    prepared = auto(tmp_path, small())
    assert prepared.metadata["source_kind"] == "embedded"
    assert "Connection reset by peer" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [prepared.path.name]


def test_no_connection_is_found_out_within_seconds(documentation, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert "no connection to 127.0.0.1" in hub.hub_obstacle()
    assert auto(tmp_path, small()).metadata["source_kind"] == "embedded"
    assert "no connection to 127.0.0.1" in capsys.readouterr().err
    with pytest.raises(RunError, match="not a local path, and the hub is out of reach"):
        prepare_data(["user/name"], small(), cache_dir=tmp_path / "cache", progress=False)
