"""``python -m cramming_train.prepare`` as a user types it."""

import json

import pytest

from cramming_train.data import open_prepared
from cramming_train.prepare import main
from cramming_train.recipes import DEFAULT_RECIPE, get_recipe
from tests.data.helpers import Writer, write
from tests.training.helpers import run

SETTINGS = ("--set", "data.vocab_size=512", "data.row_length=32", "data.compression_threshold=none")


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "text" / "a.jsonl.gz", Writer(181).documents(150))
    write(tmp_path / "text" / "more" / "b.parquet", Writer(182).documents(60))
    write(tmp_path / "text" / "validation.txt", Writer(183).documents(40))
    return tmp_path / "text"


def test_as_typed(folder, tmp_path):
    done = run("prepare", "--data", "text", "--out", "prepared", *SETTINGS, tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr
    prepared = open_prepared(tmp_path / "prepared")
    assert f"prepared: {tmp_path / 'prepared'}" in done.stdout
    recipe = json.loads(done.stdout[: done.stdout.index("\n}") + 2])["data"]
    assert recipe == prepared.metadata["recipe"] and recipe["vocab_size"] == 512
    shown = dict(line.split(None, 1) for line in done.stdout[done.stdout.index("\n}") + 3 :].splitlines())
    for key in ("documents", "rows", "validation_rows", "tokens", "characters_read", "repeats_cut"):
        assert int(shown[key].replace(",", "")) == prepared.metadata[key] >= 0
    assert prepared.metadata["rows"] == len(prepared.train) > 100
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [
        "  read and clean", "  deduplicate", "  tokenizer", "  tokenise and pack", "  order and write",
    ]  # fmt: skip
    again = run("prepare", "--data", "text", "--out", "prepared", *SETTINGS, tmp_path=tmp_path)
    assert again.returncode == 0 and again.stderr == "", "nothing was done again"
    assert again.stdout == done.stdout


def test_the_default_is_what_pretrain_takes(folder, tmp_path):
    """Rows in random order, which the recipe sized by a budget has whatever its size."""
    assert run("prepare", "--data", "text", "--out", "prepared", *SETTINGS, tmp_path=tmp_path).returncode == 0
    order = open_prepared(tmp_path / "prepared").metadata["recipe"]["order"]
    assert order == get_recipe(DEFAULT_RECIPE).data.order == "random"


def test_into_the_cache(folder, tmp_path):
    done = run("prepare", "--data", "text", *SETTINGS, tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr
    (made,) = (tmp_path / "cache").iterdir()
    assert done.stdout.endswith(f"prepared: {made}\n")


def test_bad_input_as_typed(folder, tmp_path):
    """What the tests of bad input show in this process holds for the command."""
    for data, status in (("nothing.txt", 2), ("user/name", 1)):
        done = run("prepare", "--data", data, "--out", "prepared", *SETTINGS, tmp_path=tmp_path)
        assert done.returncode == status
        assert done.stderr.startswith(f"error: {'--data ' if status == 1 else ''}{data}: ")
        assert done.stderr.count("\n") == 1 and not (tmp_path / "prepared").exists()


def test_another_place_for_a_prepared_folder(folder, tmp_path, capsys):
    """--out is a promise: a folder is there afterwards, or the command says why not."""
    assert main(["--data", str(folder), "--out", str(tmp_path / "one"), "--processes", "1", *SETTINGS]) == 0
    status = main(["--data", str(tmp_path / "one"), "--out", str(tmp_path / "two"), *SETTINGS])
    if status == 0:
        assert (tmp_path / "two" / "metadata.json").is_file()
    else:
        assert status == 2 and "--out" in capsys.readouterr().err


def test_unknown_option(capsys):
    with pytest.raises(SystemExit) as error:
        main(["--date", "x"])
    assert error.value.code == 2
