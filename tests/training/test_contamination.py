"""The search for GLUE in a corpus as a command: what it records, what a run makes of it, and rows without it."""

import json

import numpy as np
import pytest

from cramming_train import contamination
from cramming_train.certificate import contamination as known
from cramming_train.certificate import rules
from cramming_train.data import open_prepared, prepare_data
from cramming_train.evaluation.sources import Folder, load_split
from cramming_train.evaluation.suites import GLUE
from cramming_train.runs import Run
from tests.data.helpers import Writer, small
from tests.evaluation.conftest import write_tsv
from tests.training.run_folder import SUMMARY, make_run

PLANTED = 7  # sentences of RTE that are in the corpus


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    folder, writer = tmp_path_factory.mktemp("glue"), Writer(31)
    for split, rows in (("train", 40), ("validation", 15)):
        texts = [[f"{writer.sentence()} {writer.sentence()}" for _ in range(rows)] for _ in range(2)]
        write_tsv(
            folder / "rte" / f"{split}.tsv.gz", {"sentence1": texts[0], "sentence2": texts[1], "label": [1] * rows}
        )
    return folder


@pytest.fixture(scope="module")
def prepared(glue, tmp_path_factory):
    """Text with some of them in it."""
    (split,) = GLUE.tasks["rte"].splits
    examples = load_split(Folder(glue, GLUE), GLUE.tasks["rte"], split, labelled=True)
    long = [text for _, text in examples.sequences if len(text.split()) >= 16][:PLANTED]
    assert len(long) == PLANTED
    folder, writer = tmp_path_factory.mktemp("text"), Writer(32)
    documents = [writer.document() + (f" {long.pop()} {writer.sentence()}" if long else "") for _ in range(150)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return prepare_data(
        [str(folder / "text.jsonl")],
        small(row_length=120, validation_fraction=0.02),
        out=folder / "rows",
        progress=False,
    )


def search(prepared, glue, *options):
    return contamination.main(["--data", str(prepared.path), "--task-dir", str(glue), *map(str, options)])


def test_what_is_recorded(prepared, glue, capsys):
    assert search(prepared, glue) == 0
    found = json.loads((prepared.path / "contamination.json").read_text())
    assert found["words"] == 13 and found["fingerprint"] == prepared.metadata["fingerprint"]
    assert found["sets"]["rte train"] == {"sentences": 80, "checked": found["sets"]["rte train"]["checked"],
                                          "overlapping": 0}  # fmt: skip
    assert found["sets"]["rte validation"]["sentences"] == 30
    assert 0 < found["overlapping"] == found["sets"]["rte validation"]["overlapping"] <= PLANTED
    assert 0 < found["rows_affected"] <= 2 * PLANTED and found["rows"] == len(prepared.train)
    assert "rte train (40 of 2,490 rows)" in found["not_given"] and "cola validation" in found["not_given"]
    assert not any(name.startswith("wnli") for name in found["not_given"])
    shown = capsys.readouterr().out
    assert f"{found['overlapping']:,} of {found['checked']:,} sentences overlap" in shown
    assert open_prepared(prepared.path).metadata == prepared.metadata  # the folder is as whole as before


def test_rows_without_it(prepared, glue, tmp_path, capsys):
    """The rows that are left hold nothing of it, are the same otherwise, and say so; a run on them knows."""
    assert search(prepared, glue, "--clean", tmp_path / "clean") == 0
    found = json.loads((prepared.path / "contamination.json").read_text())
    clean = open_prepared(tmp_path / "clean")
    assert len(clean.train) == len(prepared.train) - found["rows_affected"] == clean.metadata["rows"]
    before, after = (p.train.read(0, len(p.train)) for p in (prepared, clean))
    _, affected = contamination.search(prepared, Folder(glue, GLUE), progress=False)
    assert np.array_equal(after, before[~affected])
    assert clean.metadata["fingerprint"] != prepared.metadata["fingerprint"]
    assert (
        f"{found['rows_affected']} of {len(prepared.train)} rows that overlap with GLUE"
        in clean.metadata["notices"][-1]
    )
    assert 0 < abs(clean.metadata["unigram_loss"] - prepared.metadata["unigram_loss"]) < 0.05
    again, _ = contamination.search(clean, Folder(glue, GLUE), progress=False)
    assert again == json.loads((clean.path / "contamination.json").read_text())
    assert again["overlapping"] == again["rows_affected"] == 0 < again["checked"]
    assert search(prepared, glue, "--clean", tmp_path / "clean") == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("ended", [True, False])
def test_a_run_on_such_rows_breaks_the_third_rule(ended, prepared, glue, tmp_path):
    run = make_run(tmp_path / "one", steps=0, validations=0, summary=ended)
    data = {"path": str(prepared.path), "fingerprint": prepared.metadata["fingerprint"]}
    (run.path / "recipe.json").write_text(json.dumps({**run.settings, "data": data}))
    run = Run(run.path)
    assert contamination.main(["--run", "one", "--out", str(tmp_path), "--task-dir", str(glue)]) == 0
    found = known(run, tmp_path / "gone")
    words = f"{found['overlapping']} of {found['checked']} sentences"
    third = rules({**SUMMARY, "data": {**SUMMARY["data"], "contamination": found}})[2]  # as pretrain states it
    assert third["kept"] is False and words in third["why"]
    if ended:
        assert run.summary["rules"][2] == third
        assert json.loads((run.path / "certificate.json").read_text())["rules"][2]["state"] == "broken"
        assert words in (run.path / "report" / "report.html").read_text()
    else:
        assert not (run.path / "certificate.json").exists() and not (run.path / "report").exists()
    (run.path / "contamination.json").write_text("{")
    assert known(run, tmp_path / "gone") is None  # damaged: not known, and no reason to lose a run's end
    (run.path / "contamination.json").write_text(json.dumps({**found, "fingerprint": "other"}))
    assert known(run, tmp_path / "gone") is None


@pytest.mark.parametrize(("arguments", "words"), [
    (["--data", "nowhere", "--task-dir", "glue"], "not a folder made by"),
    (["--run", "none-such", "--task-dir", "glue"], "no run"),
    (["--data", "nowhere", "--task-dir", "missing"], "no such folder"),
])  # fmt: skip
def test_bad_input(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glue" / "rte").mkdir(parents=True)
    assert contamination.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and "\n" not in error


def test_an_empty_folder_of_glue(prepared, tmp_path, capsys):
    (tmp_path / "rte").mkdir()
    assert search(prepared, tmp_path) == 2
    assert "holds nothing of GLUE" in capsys.readouterr().err
