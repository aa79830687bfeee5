"""The same corpus and recipe give the same bytes: twice, with any number of processes and any hash seed."""

import json
import subprocess

import pytest

from cramming_train.data import open_prepared
from tests.data.helpers import Writer, all_rows, prepare, small, write
from tests.training.helpers import command, environment


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproducible") / "text"
    documents = Writer(121, words=3000).documents(700)
    write(folder / "a.jsonl", documents + documents[:90])
    write(folder / "b.txt.gz", Writer(122, words=3000).documents(200))
    return folder


RECIPE = dict(vocab_size=1500, deduplicate="paragraph", compression_threshold=0.5, order="sentence-length-curriculum")


def identity(prepared) -> tuple:
    """Everything that training depends on."""
    return (
        prepared.metadata["sha256"], (prepared.path / "tokenizer.json").read_bytes(),
        {k: v for k, v in prepared.metadata.items() if k not in ("sources", "key", "fingerprint", "source")},
    )  # fmt: skip


@pytest.mark.parametrize("clean", ["ascii", "unicode"])
def test_twice(clean, source, tmp_path):
    recipe = small(**RECIPE, clean=clean)
    first, second = (prepare(source, recipe, tmp_path / name) for name in ("one", "two"))
    assert first.path != second.path
    assert identity(first) == identity(second)


def test_one_and_two_and_three_processes(source, tmp_path, monkeypatch):
    from cramming_train.data import pipeline

    monkeypatch.setattr(pipeline, "BATCH_CHARACTERS", 20_000)  # enough pieces for all processes
    spool = pipeline.DocumentSpool
    monkeypatch.setattr(pipeline, "DocumentSpool", lambda path: spool(path, segment_bytes=50_000))
    results = [prepare(source, small(**RECIPE), tmp_path / str(n), processes=n) for n in (1, 2, 3)]
    assert identity(results[0]) == identity(results[1]) == identity(results[2])


def test_hash_seeds_and_processes_of_the_command(source, tmp_path):
    results = []
    for seed, processes in (("0", 1), ("1", 2), ("4294967295", 2)):
        out = tmp_path / f"out-{seed}"
        done = subprocess.run(
            command("prepare", "--data", source, "--out", out, "--processes", processes, "--set", *(
                f"data.{key}={value}" for key, value in RECIPE.items()), "data.row_length=24"),
            env={**environment(tmp_path), "PYTHONHASHSEED": seed}, cwd=tmp_path, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        results.append(open_prepared(out))
    assert identity(results[0]) == identity(results[1]) == identity(results[2])
    special = json.loads((tmp_path / "out-1" / "tokenizer.json").read_text())["added_tokens"]
    assert [(token["id"], token["content"]) for token in special] == list(
        enumerate(("<pad>", "<s>", "</s>", "<unk>", "<cls>", "<sep>", "<mask>"))
    )


def test_the_format_of_the_source_is_no_part_of_the_result(tmp_path):
    documents = Writer(123).documents(150)
    results = []
    for name in ("a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz", "a.csv.zst"):
        prepared = prepare(write(tmp_path / name, documents), small(), tmp_path)
        results.append((prepared.metadata["sha256"], all_rows(prepared.train).shape))
    assert all(result == results[0] for result in results)
