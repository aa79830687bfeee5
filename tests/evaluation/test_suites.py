"""SuperGLUE, SWAG and RACE: rows as on the hub become the right sequences, and whole suites run."""

import csv
import dataclasses
import json
import shutil

import datasets
import pytest

from cramming_train import evaluate
from cramming_train.errors import UsageError
from cramming_train.evaluation.framing import FRAMINGS, Use, frame_row
from cramming_train.evaluation.hub import Hub
from cramming_train.evaluation.metrics import METRICS
from cramming_train.evaluation.sources import Folder, load_split, load_train
from cramming_train.evaluation.suites import GLUE, RACE, SUITES, SUPERGLUE, SWAG
from cramming_train.recipes import EVALUATIONS
from tests.evaluation.hub_rows import PASSAGE, ROWS

SMALL = ["evaluation.classifier_hidden=32", "evaluation.max_length=32", "evaluation.learning_rate=2e-3"]


def framed(suite, name, number=0, **use):
    task = suite.tasks[name]
    return frame_row(task, ROWS[name][number], "here", Use(task.columns, **use))


@pytest.fixture
def folders(tmp_path):
    """All of the rows as local files; SuperGLUE's in .jsonl, one of its tasks packed."""
    for name, rows in ROWS.items():
        (tmp_path / name).mkdir()
        for split in ("test",) if name.startswith("ax") else ("train", "validation"):
            (tmp_path / name / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@pytest.mark.parametrize("suite", SUITES.values(), ids=list(SUITES))
def test_the_tables_hold_together(suite):
    assert set(suite.headline) <= set(suite.rows) and set(suite.optional) <= set(suite.tasks)
    assert suite.recipe is None or suite.recipe in EVALUATIONS
    for task in suite.tasks.values():
        assert task.framing in FRAMINGS and task.splits and all(split.rows > 0 for split in task.splits)
        assert set(task.metrics) | {m for s in task.splits for m in s.metrics or ()} <= set(METRICS)
        assert task.regression or task.labels or task.framing == "record"


def test_texts_are_joined_in_the_tables_order():
    assert framed(SUPERGLUE, "boolq").sequences == [("is the sky blue", "Sky -- The sky looks blue by day.")]
    wsc = framed(SUPERGLUE, "wsc.fixed")
    assert (
        wsc.sequences == [("Mark told Pete many lies about himself.", "0", "6", "Mark", "himself")] and wsc.label == 1
    )
    assert framed(SUPERGLUE, "wic").sequences[0][0] == "place"
    assert [framed(SUPERGLUE, "cb", number).label for number in range(3)] == [0, 2, 1]


def test_each_choice_is_a_sequence():
    copa = framed(SUPERGLUE, "copa", 1)
    context = ("effect", "The man lost his balance on the ladder.")
    assert copa.sequences == [(*context, "He climbed up."), (*context, "He fell off.")] and copa.label == 1
    swag = framed(SWAG, "swag", 1)
    assert [sequence[-1] for sequence in swag.sequences][:2] == ["sings.", "examines the engine."] and swag.label == 1
    race = framed(RACE, "race")
    question, article = "Whom did he speak with?", "Last week I spoke with some students."
    assert race.sequences[2] == (question, article, "Students") and race.label == 2 and len(race.sequences) == 4


def test_multirc_knows_which_question_an_answer_belongs_to():
    assert [framed(SUPERGLUE, "multirc", n).reference for n in range(3)] == [(0, 0)] * 3
    assert framed(SUPERGLUE, "multirc", 1).sequences == [("Who met Bob?", "Ann met Bob.", "Eve")]


def test_record_puts_each_entity_into_the_query():
    """Repeated entities once; in training the second right one is left out."""
    judged, trained = framed(SUPERGLUE, "record"), framed(SUPERGLUE, "record", training=True)
    assert judged.sequences[1] == ("Real Madrid won the cup, said Ruud", PASSAGE)
    assert judged.reference == (("Ajax", "Real Madrid", "Ruud", "Dutch"), ("Ajax", "Dutch")) and judged.label == 0
    assert [query.split(" won")[0] for query, _ in trained.sequences] == ["Ajax", "Real Madrid", "Ruud"]


@pytest.mark.parametrize(
    ("suite", "name", "change", "complaint"),
    [
        (SUPERGLUE, "copa", {"label": 2}, "label 2, want a whole number from 0 to 1, or one of: choice1, choice2"),
        (SUPERGLUE, "multirc", {"idx": {"paragraph": 1}}, "column 'idx' has no numbers 'paragraph' and 'question'"),
        (SUPERGLUE, "multirc", {"idx": "{"}, "column 'idx' is not JSON: '{'"),
        (SUPERGLUE, "record", {"query": "no place"}, "column 'query' has no @placeholder"),
        (SUPERGLUE, "record", {"answers": ["Feyenoord"]}, "no entity that is an answer"),
        (SUPERGLUE, "record", {"entities": "Ajax"}, "column 'entities' is not JSON"),
        (RACE, "race", {"options": ["a", "b"]}, "2 choices, want 4"),
        (RACE, "race", {"options": 3}, "column 'options' holds int, want a list"),
        (RACE, "race", {"answer": "E"}, "label 'E'"),
        (SWAG, "swag", {"ending3": None}, "column 'ending3' holds NoneType, want text"),
    ],
)
def test_bad_rows_are_named(suite, name, change, complaint):
    task = suite.tasks[name]
    with pytest.raises(UsageError) as caught:
        frame_row(task, {**ROWS[name][0], **change}, "a.jsonl, line 7", Use(task.columns, training=True))
    assert complaint in str(caught.value) and "a.jsonl, line 7" in str(caught.value)


@pytest.mark.parametrize("kind", [".tsv", ".csv"])
def test_lists_are_json_text_in_tables(tmp_path, kind):
    """The same examples as from JSON lines."""
    task, path = RACE.tasks["race"], tmp_path / "race" / f"train{kind}"
    path.parent.mkdir()
    rows = [{**row, "options": json.dumps(row["options"])} for row in ROWS["race"]]
    with open(path, "w", newline="") as file:
        if kind == ".tsv":
            file.write("\n".join("\t".join(map(str, values)) for values in (rows[0], *(r.values() for r in rows))))
        else:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    examples, _ = load_train(Folder(tmp_path, RACE), task, None)
    direct = [frame_row(task, row, "", Use(task.columns)) for row in ROWS["race"]]
    assert examples.sequences == [sequence for row in direct for sequence in row.sequences]
    assert examples.labels.tolist() == [2, 0] and examples.counts.tolist() == [4, 4]


@pytest.mark.parametrize("suite", [SUPERGLUE, SWAG, RACE], ids=lambda suite: suite.name)
def test_the_hub_gives_the_same_examples_as_files(suite, folders, monkeypatch):
    """Its own types: class labels, nested columns, sequences; data sets with a script from their converted branch."""
    asked = []

    def load_dataset(repository, config, revision):
        asked.append((repository, config, revision))
        rows = ROWS[{"regular": "swag", "all": "race"}.get(config, config)]
        splits = ("test",) if config.startswith("ax") else ("train", "validation")
        return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split in splits})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(Hub, "_reachable", True)
    hub, local = Hub(suite), Folder(folders, suite)
    for task in suite.tasks.values():
        assert_same(load_train(hub, task, None)[0], load_train(local, task, None)[0])
        for split in task.splits:
            assert_same(*(load_split(source, task, split, labelled=True) for source in (hub, local)))
    revision = None if suite is RACE else "refs/convert/parquet"
    assert {(repository, branch) for repository, _, branch in asked} == {(suite.repository, revision)}
    assert len(asked) == len({config for _, config, _ in asked}), "each opened once"


def assert_same(a, b):
    assert a.sequences == b.sequences and a.labels.tolist() == b.labels.tolist() and a.references == b.references
    assert (a.counts is None and b.counts is None) or a.counts.tolist() == b.counts.tolist()


def test_superglue_runs_whole(toy_runs, folders, tmp_path, capsys):
    """All ten rows, by the suite's own recipe; the diagnostic sets come from RTE's fine-tuning."""
    runs = shutil.copytree(toy_runs, tmp_path / "runs")
    command = ["--out", str(runs), "--suite", "superglue", "--task-dir", str(folders), "--seeds", "2", "--epochs", "1"]
    assert evaluate.main([*command, "--set", *SMALL]) == 0
    scores = json.loads((runs / "toy" / "evaluation" / "superglue.json").read_text())
    lines = (runs / "toy" / "evaluation" / "superglue.jsonl").read_text().splitlines()
    assert set(scores["tasks"]) == {*SUPERGLUE.headline, "axb", "axg"} and len(lines) == 2 * 8
    assert scores["recipe"]["name"] == "superglue" and scores["mean"] is None and not scores["missing"]
    assert set(scores["tasks"]["record"]["metrics"]) == {"record_f1", "record_exact"}
    assert set(scores["tasks"]["multirc"]["metrics"]) == {"f1", "exact_questions"}
    assert scores["tasks"]["axb"]["metric"] == "matthews_correlation"
    printed = capsys.readouterr().out
    assert "SuperGLUE for toy" in printed and "incomplete: cb train: 3 of 250 rows" in printed
    assert "SuperGLUE mean: none; it takes all 8 rows" in printed and "over the choices of a row" in printed
    assert not (runs / "toy" / "evaluation" / "glue.json").exists()


@pytest.mark.parametrize("suite", [SWAG, RACE], ids=lambda suite: suite.name)
def test_multiple_choice_suites_run(suite, toy_runs, folders, tmp_path, monkeypatch):
    """Of official size (here: of the toy files'), the row is complete and is the suite's score."""
    (task,) = suite.tasks.values()
    sized = dataclasses.replace(task, train_rows=2, splits=(dataclasses.replace(task.splits[0], rows=2),))
    monkeypatch.setitem(evaluate.SUITES, suite.name, dataclasses.replace(suite, tasks={task.name: sized}))
    runs = shutil.copytree(toy_runs, tmp_path / "runs")
    command = ["--out", str(runs), "--suite", suite.name, "--task-dir", str(folders), "--seeds", "1", "--epochs", "1"]
    assert evaluate.main([*command, "--set", *SMALL]) == 0
    scores = json.loads((runs / "toy" / "evaluation" / f"{suite.name}.json").read_text())
    assert scores["mean"] == scores["tasks"][task.name]["median"] in (0.0, 0.5, 1.0)
    assert scores["recipe"]["weight_decay"] == 0.1 and scores["recipe"]["name"] == suite.recipe


def test_glue_is_what_it_was():
    assert [task.outputs for task in GLUE.tasks.values()] == [2, 2, 2, 2, 1, 3, 2, 2, 2]
    assert [task.outputs for task in SUPERGLUE.tasks.values()] == [2, 3, 1, 2, 1, 2, 2, 2]
