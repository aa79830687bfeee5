"""The cache: made once for a configuration and found again by it; never half of anything."""

import dataclasses
import os

import pytest

from cramming_train.data import prepare as module
from cramming_train.data.prepare import default_cache_dir
from cramming_train.errors import RunError, UsageError
from tests.data.helpers import Writer, all_rows, prepare, small, write


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "text" / "a.jsonl", Writer(101).documents(80))


def no_work(monkeypatch):
    def work(*args, **kwargs):
        raise AssertionError("work was done")

    monkeypatch.setattr(module, "_run", work)


def entries(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


def test_second_call_does_no_work(source, tmp_path, monkeypatch):
    first = prepare(source, small(), tmp_path)
    assert entries(tmp_path) == [f"prepared-{first.metadata['key']}"]
    no_work(monkeypatch)
    second = prepare(source, small(), tmp_path)
    assert second.path == first.path and second.metadata == first.metadata


def test_name_of_the_recipe_is_no_setting(source, tmp_path, monkeypatch):
    prepare(source, small(), tmp_path)
    no_work(monkeypatch)
    prepare(source, dataclasses.replace(small(), name="another"), tmp_path)


CHANGES = {
    "clean": "unicode", "vocab_size": 321, "row_length": 25, "compression_threshold": 0.9, "deduplicate": "paragraph",
    "substring_characters": 99, "order": "random", "max_rows": 50, "validation_fraction": 0.1,
    "tokenizer_characters": 99_999, "seed": 1,
}  # fmt: skip


def test_every_field_of_the_recipe_is_tried_below():
    assert set(CHANGES) == {field.name for field in dataclasses.fields(small())} - {"name"}


@pytest.mark.parametrize("field", CHANGES)
def test_other_settings_are_other_data(field, source, tmp_path, monkeypatch):
    plan = [module._identify(str(source))]
    key = module._key(plan, small(), "text")
    assert module._key(plan, small(**{field: CHANGES[field]}), "text") != key
    assert module._key(plan, small(), "body") != key


def test_two_settings_lie_beside_each_other(source, tmp_path):
    first, second = prepare(source, small(), tmp_path), prepare(source, small(row_length=31), tmp_path)
    assert len(entries(tmp_path)) == 2 and first.path != second.path
    assert second.train.read(0, 1).shape == (1, 31)


def test_changed_file_is_other_data(source, tmp_path):
    first = prepare(source, small(), tmp_path)
    write(source, Writer(102).documents(80))
    second = prepare(source, small(), tmp_path)
    assert first.path != second.path and first.metadata["sha256"] != second.metadata["sha256"]


def test_same_size_and_another_time_is_other_data(source, tmp_path):
    first = prepare(source, small(), tmp_path)
    os.utime(source, ns=(1, source.stat().st_mtime_ns + 1_000_000))
    assert prepare(source, small(), tmp_path).path != first.path


def test_new_file_in_the_folder_is_other_data(source, tmp_path):
    first = prepare(source.parent, small(), tmp_path)
    write(source.parent / "b.csv", Writer(103).documents(20))
    assert prepare(source.parent, small(), tmp_path).path != first.path


def test_order_of_the_sources_is_part_of_it(source, tmp_path):
    other = write(tmp_path / "b.jsonl", Writer(104).documents(40))
    assert prepare([source, other], small(), tmp_path).path != prepare([other, source], small(), tmp_path).path


def test_relative_and_absolute_paths_are_the_same_rows(source, tmp_path, monkeypatch):
    first = prepare(source, small(), tmp_path)
    monkeypatch.chdir(tmp_path)
    assert prepare("text/a.jsonl", small(), tmp_path).metadata["rows"] == first.metadata["rows"]


def test_out_is_found_again(source, tmp_path, monkeypatch):
    first = prepare(source, small(), tmp_path, out=tmp_path / "out")
    assert first.path == tmp_path / "out" and not (tmp_path / "cache").exists()
    no_work(monkeypatch)
    assert prepare(source, small(), tmp_path, out=tmp_path / "out").path == first.path


def test_damaged_cache_is_named(source, tmp_path):
    first = prepare(source, small(), tmp_path)
    (first.path / "tokenizer.json").unlink()
    with pytest.raises(RunError, match=f"tokenizer.json: missing or cut short; remove {first.path}"):
        prepare(source, small(), tmp_path)


@pytest.mark.parametrize("error", [RunError("boom"), OSError(28, "full"), KeyboardInterrupt(), ValueError("bug")])
@pytest.mark.parametrize("stage", ["spool_documents", "train_tokenizer", "pack_rows", "write_splits"])
def test_failure_at_any_stage_leaves_nothing(stage, error, source, tmp_path, monkeypatch):
    from cramming_train.data import pipeline

    def fails(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(pipeline, stage, fails)
        prepare(source, small(), tmp_path)
    assert entries(tmp_path) == []
    assert len(prepare(source, small(), tmp_path).train) > 0


def test_failure_after_the_rows_leaves_nothing(source, tmp_path, monkeypatch):
    from cramming_train.data import pipeline

    write_splits = pipeline.write_splits

    def late(*args):
        write_splits(*args)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(pipeline, "write_splits", late)
        prepare(source, small(), tmp_path)
    assert entries(tmp_path) == []


def test_remains_of_a_killed_process_are_not_taken_for_data(source, tmp_path, monkeypatch):
    """All but the last step done: a whole folder under its scratch name."""
    first = prepare(source, small(), tmp_path)
    rows = all_rows(first.train)
    scratch = tmp_path / "cache" / ".preparing-killed" / "result"
    scratch.parent.mkdir()
    first.path.rename(scratch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert module._newest_cached(small(), tmp_path / "cache") is None
    again = prepare(source, small(), tmp_path)
    assert again.path == first.path and (all_rows(again.train).shape == rows.shape)


def test_place(monkeypatch, tmp_path):
    monkeypatch.setenv("CRAMMING_CACHE", str(tmp_path / "mine"))
    assert default_cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("CRAMMING_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "cramming_train"


@pytest.mark.parametrize("sources", [[], ["auto", "x.txt"], ["x.txt", "auto"]])
def test_lists_of_sources_that_make_no_sense(sources, tmp_path):
    with pytest.raises(UsageError, match="no source given|cannot be mixed"):
        prepare(sources, small(), tmp_path)
