"""The store: rows come back as written, from a memory map; damage is named."""

import dataclasses
import json
import random
import shutil

import datasets
import numpy as np
import pytest

from cramming_train.data import open_prepared
from cramming_train.data.store import READ_LATER, Rows, row_dtype, write_rows
from cramming_train.errors import RunError, UsageError
from tests.data.helpers import Writer, all_rows, prepare, small, write

RANDOM = np.random.default_rng(5)


def blocks_of(dtype, sizes=(7, 1, 300, 0, 64), row_length=13):
    return [RANDOM.integers(0, 60_000, (n, row_length)).astype(dtype) for n in sizes if n]


@pytest.fixture(params=[np.uint16, np.int32])
def stored(request, tmp_path):
    blocks = blocks_of(request.param)
    rows, digest = write_rows(tmp_path / "train", iter(blocks), 13, np.dtype(request.param), None, "train")
    expected = np.concatenate(blocks)
    assert rows == len(expected) and len(digest) == 64
    return Rows(tmp_path / "train" / "data-00000-of-00001.arrow", 13), expected, tmp_path / "train"


def test_types():
    assert row_dtype(64) == row_dtype(1 << 16) == np.uint16
    assert row_dtype((1 << 16) + 1) == np.int32


def test_read(stored):
    rows, expected, _ = stored
    assert len(rows) == 372
    for start, stop in ((0, 372), (0, 0), (372, 372), (6, 9), (7, 8), (8, 308), (100, 101), (300, 372), (371, 372)):
        found = rows.read(start, stop)
        assert found.dtype == expected.dtype and np.array_equal(found, expected[start:stop]), (start, stop)
    for start, stop in ((-1, 3), (3, 2), (0, 373)):
        with pytest.raises(IndexError):
            rows.read(start, stop)


def test_take(stored):
    rows, expected, _ = stored
    chosen = np.random.default_rng(1).permutation(372)[:200]
    assert np.array_equal(rows.take(chosen), expected[chosen])
    assert np.array_equal(rows.take(np.array([5, 5, 371, 0])), expected[[5, 5, 371, 0]])
    assert rows.take(np.array([], dtype=int)).shape == (0, 13)
    for wrong in ([-1], [372]):
        with pytest.raises(IndexError):
            rows.take(np.array(wrong))


def test_rows_are_views_of_the_file(stored):
    """Nothing is copied into memory before it is read."""
    rows, _, _ = stored
    inside = rows.read(10, 200)
    assert inside.base is not None and not inside.flags.owndata and not inside.flags.writeable


def test_other_programs_can_open_it(stored):
    rows, expected, folder = stored
    loaded = datasets.load_from_disk(str(folder))
    assert loaded.column_names == ["input_ids"] and len(loaded) == len(expected)
    assert loaded[17]["input_ids"] == expected[17].tolist()
    assert loaded.features["input_ids"].feature.dtype == expected.dtype.name


def test_limit_and_checksum(tmp_path):
    blocks = blocks_of(np.uint16)
    whole = write_rows(tmp_path / "a", iter(blocks), 13, np.dtype(np.uint16), None, "train")
    for limit in (1, 7, 8, 100, 371, 372, 9999):
        rows, digest = write_rows(tmp_path / str(limit), iter(blocks), 13, np.dtype(np.uint16), limit, "train")
        assert rows == min(limit, 372) and (digest == whole[1]) == (limit >= 372)


# --- whole prepared folders


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    write(folder / "a.jsonl", Writer(95).documents(120))
    return prepare(folder / "a.jsonl", small(), folder, out=folder / "out")


@pytest.fixture
def copy(prepared, tmp_path):
    return shutil.copytree(prepared.path, tmp_path / "copy")


def test_reopened(prepared, copy):
    """By path alone, in any place."""
    again = open_prepared(copy)
    assert again.metadata == prepared.metadata and again.path == copy
    assert np.array_equal(all_rows(again.train), all_rows(prepared.train))
    assert np.array_equal(all_rows(again.validation), all_rows(prepared.validation))
    assert again.tokenizer.to_str() == prepared.tokenizer.to_str()
    assert (again.vocab_size, again.row_length) == (320, 24)
    assert again.metadata["recipe"] == dataclasses.asdict(small())


def test_prepared_folder_as_the_source(prepared, copy, tmp_path):
    again = prepare(copy, small(order="random"), tmp_path)
    assert again.path == copy, "its own recipe stands; only the shapes must fit"
    for field, value in (("vocab_size", 384), ("row_length", 32)):
        with pytest.raises(UsageError, match=f"prepared with {field} .*give --set data.{field}="):
            prepare(copy, small(**{field: value}), tmp_path)
    with pytest.raises(UsageError, match="prepared data cannot be mixed"):
        prepare([copy, copy], small(), tmp_path)


def test_checksum_is_of_the_rows(prepared):
    import hashlib

    for split, rows in (("train", prepared.train), ("validation", prepared.validation)):
        assert prepared.metadata["sha256"][split] == hashlib.sha256(all_rows(rows).tobytes()).hexdigest()


FILES = ["train/data-00000-of-00001.arrow", "validation/data-00000-of-00001.arrow", "tokenizer.json",
         "train/state.json", "validation/dataset_info.json"]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_missing_file(name, copy):
    (copy / name).unlink()
    with pytest.raises(RunError, match=f"{name}: missing or cut short; remove .* and prepare the data again"):
        open_prepared(copy)


@pytest.mark.parametrize("name", FILES)
def test_file_cut_short(name, copy):
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:-1])
    with pytest.raises(RunError, match=f"{name}: missing or cut short"):
        open_prepared(copy)


@pytest.mark.parametrize("name", FILES[:3])
def test_changed_bytes(name, copy):
    """The checksums are there to be compared: in the rows, in the headers of the file, in the vocabulary."""
    content = bytearray((copy / name).read_bytes())
    for position in (len(content) // 2, 40, len(content) - 100):
        changed = bytearray(content)
        changed[position] ^= 0x15
        (copy / name).write_bytes(changed)
        with pytest.raises(RunError, match=str(copy)):
            opened = open_prepared(copy)
            assert opened.train.read(0, 5).shape == opened.validation.read(0, 5).shape == (5, 24)
            assert opened.tokenizer


def test_any_changed_byte_of_the_metadata_never_ends_in_a_traceback(copy, tmp_path):
    """Either it is named, or the folder still opens, or it counts as something else."""
    file = copy / "metadata.json"
    content = file.read_bytes()
    chosen = random.Random(3)
    for _ in range(150):
        changed = bytearray(content)
        changed[chosen.randrange(len(changed))] = chosen.randrange(256)
        file.write_bytes(changed)
        try:
            prepare(copy, small(), tmp_path)
        except (UsageError, RunError) as error:
            assert str(copy) in str(error)


@pytest.mark.parametrize("content", ["", "[]", "3", "{}", '{"file_bytes": {}}', '{"format": 1, "file_bytes": 3}'])
def test_other_metadata(content, copy):
    (copy / "metadata.json").write_text(content)
    with pytest.raises(RunError, match="damaged|another version"):
        open_prepared(copy)


@pytest.mark.parametrize("name", READ_LATER)
def test_metadata_that_lacks_a_field(name, copy):
    content = json.loads((copy / "metadata.json").read_text())
    del content[name]
    (copy / "metadata.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match="metadata.json: damaged"):
        open_prepared(copy)


def test_another_version(copy):
    content = json.loads((copy / "metadata.json").read_text())
    (copy / "metadata.json").write_text(json.dumps({**content, "format": 999}))
    with pytest.raises(RunError, match="made by another version"):
        open_prepared(copy)


def test_not_prepared(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UsageError, match="not a folder made by"):
            open_prepared(path)
