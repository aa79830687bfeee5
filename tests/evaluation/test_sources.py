"""Readers: what the files say, and one clear line for what they should not say."""

import gzip
import json

import numpy as np
import pytest

from cramming_train.errors import UsageError
from cramming_train.evaluation.results import shortfalls
from cramming_train.evaluation.rows import read_rows
from cramming_train.evaluation.sources import Folder, load_split, load_train
from cramming_train.evaluation.suites import GLUE

TASKS = GLUE.tasks
COLA, STSB, MRPC, MNLI = TASKS["cola"], TASKS["stsb"], TASKS["mrpc"], TASKS["mnli"]


def write(folder, task, split, text, packed=False, kind=".tsv"):
    path = folder / task / (split + kind + (".gz" if packed else ""))
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if packed else data)
    return path


def load(folder, task):
    return load_train(Folder(folder, GLUE), task, None)[0]


def test_headline_has_nine_rows():
    assert len(GLUE.headline) == 9 and {"mnli", "mnli_mm"} <= set(GLUE.headline) and "wnli" not in GLUE.headline
    assert set(GLUE.headline) == {row for name in GLUE.default_tasks for row in TASKS[name].rows}


@pytest.mark.parametrize("packed", [False, True])
def test_columns_by_name_without_quoting(tmp_path, packed):
    text = 'idx\tlabel\tsentence2\textra\tsentence1\n7\t1\tis "open\tx\ta "quote\n8\t0\t\tx\tonly one\n'
    write(tmp_path, "mrpc", "train", text, packed)
    examples = load(tmp_path, MRPC)
    assert examples.sequences == [('a "quote', 'is "open'), ("only one", "")]
    assert examples.labels.tolist() == [1, 0] and examples.labels.dtype == np.int64


def test_line_ends_and_separators_inside_a_line(tmp_path):
    """Only a newline ends an example; other separators of Unicode are text."""
    write(tmp_path, "cola", "train", "\ufeffsentence\tlabel\r\none\u2028still \x85 one\t1\r\ntwo\t0\r\n\r\n")
    assert load(tmp_path, COLA).sequences == [("one\u2028still \x85 one",), ("two",)]


def test_regression_targets(tmp_path):
    write(tmp_path, "stsb", "train", "sentence1\tsentence2\tlabel\na\tb\t3.25\nc\td\t0\n")
    labels = load(tmp_path, STSB).labels
    assert labels.tolist() == [3.25, 0.0] and labels.dtype == np.float32


@pytest.mark.parametrize("packed", [False, True])
def test_csv_is_quoted(tmp_path, packed):
    text = 'label,sentence\r\n1,"a ""quoted"", text\nof two lines"\r\n0,plain\r\n'
    write(tmp_path, "cola", "train", text, packed, ".csv")
    assert load(tmp_path, COLA).sequences == [('a "quoted", text\nof two lines',), ("plain",)]


@pytest.mark.parametrize("packed", [False, True])
def test_json_lines_have_numbers_or_names_as_labels(tmp_path, packed):
    rows = [{"premise": "a", "hypothesis": "b", "label": label} for label in (2, "2", "contradiction", "neutral")]
    write(tmp_path, "mnli", "train", "\n".join(map(json.dumps, rows)), packed, ".jsonl")
    assert load(tmp_path, MNLI).labels.tolist() == [2, 2, 2, 1]


@pytest.mark.parametrize(
    ("task", "text", "complaint"),
    [
        ("cola", "", "no rows in it"),
        ("cola", "sentence\tidx\na\t0\n", "line 2: no column 'label' (there: sentence, idx)"),
        ("cola", "sentence\tlabel\n", "no rows in it"),
        ("cola", "sentence\tlabel\na\t1\nb\n", "line 3: 1 columns, the header has 2"),
        ("cola", "sentence\tlabel\na\t2\n", "line 2: label '2', want a whole number from 0 to 1"),
        ("cola", "sentence\tlabel\n\na\t-1\n", "line 3: label '-1'"),
        ("cola", "sentence\tlabel\na\tyes\n", "line 2: label 'yes'"),
        (
            "stsb",
            "sentence1\tsentence2\tlabel\na\tb\t5.5\n",
            "line 2: label '5.5', want a number from 0 to 5",
        ),
        ("stsb", "sentence1\tsentence2\tlabel\na\tb\tnan\n", "line 2: label 'nan'"),
        ("cola", b"sentence\tlabel\n\xff\xfe\t1\n", "not UTF-8"),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path, task, text, complaint):
    path = write(tmp_path, task, "train", text)
    with pytest.raises(UsageError) as caught:
        load(tmp_path, TASKS[task])
    assert complaint in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.csv", 'x,y\n1,2\n"open,3\n', "line 3: not valid CSV"),
        ("a.csv", "x,y\n1\n", "line 2: 1 columns, the header has 2"),
        ("a.jsonl", '{"x": 1}\n\n{"x": \n', "line 3: not valid JSON"),
        ("a.jsonl", '["x"]\n', "line 1: want a JSON object, got list"),
        ("a.jsonl.gz", "not packed", "damaged or cut short"),
        ("a.txt", "x", "unknown format; want .tsv, .csv, .jsonl (plain or .gz)"),
        ("gone.tsv", None, "no such file"),
    ],
)
def test_bad_rows_are_named_with_the_line(tmp_path, name, text, complaint):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError) as caught:
        list(read_rows(tmp_path / name))
    assert complaint in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_gzip(tmp_path):
    path = write(tmp_path, "cola", "train", "sentence\tlabel\n" + "a b c\t1\n" * 500, packed=True)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"no gzip at all", whole[:20] + b"\x00\x01\x02" + whole[23:]):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match="damaged or cut short"):
            load(tmp_path, COLA)


def test_folders_that_are_not_glue(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        Folder(tmp_path / "nowhere", GLUE)
    with pytest.raises(UsageError, match="no task folder of GLUE in it"):
        Folder(tmp_path, GLUE)


def test_what_is_absent_is_none(tmp_path):
    write(tmp_path, "mnli", "validation_matched", "premise\thypothesis\tlabel\na\tb\t2\n")
    matched, mismatched = (load_split(Folder(tmp_path, GLUE), MNLI, split, labelled=True) for split in MNLI.splits)
    assert mismatched is None and matched.labels.tolist() == [2]
    assert load(tmp_path, COLA) is None


def test_a_capped_training_set_is_the_same_random_choice_each_time(tmp_path):
    write(tmp_path, "cola", "train", "sentence\tlabel\n" + "".join(f"s{n}\t{n % 2}\n" for n in range(100)))
    source = Folder(tmp_path, GLUE)
    (few, whole), (again, _), (everything, _) = (load_train(source, COLA, rows) for rows in (30, 30, 100))
    numbers = [int(text[1:]) for (text,) in few.sequences]
    assert len(few) == 30 and whole == 100 and few.sequences == again.sequences
    assert len(set(numbers)) == 30 and numbers != list(range(30)) and max(numbers) > 60
    assert few.labels.tolist() == [number % 2 for number in numbers]
    assert len(everything) == 100


def test_real_files(glue_dir):
    """Row and label counts of the data's own description."""
    cola = load(glue_dir, COLA)
    assert len(cola) == 8551 and np.bincount(cola.labels).tolist() == [2528, 6023]
    assert cola.sequences[0][0] == "Our friends won't buy this analysis, let alone the next one we propose."
    folder = Folder(glue_dir, GLUE)
    stsb = load_split(folder, STSB, STSB.splits[0], labelled=True)
    assert len(stsb) == 1500 and stsb.labels.min() == 0.0 and stsb.labels.max() == 5.0
    matched, mismatched = (load_split(folder, MNLI, split, labelled=True) for split in MNLI.splits)
    assert np.bincount(matched.labels).tolist() == [2681, 2353, 2435] and mismatched is None


def test_real_files_against_the_official_sizes(glue_dir):
    folder = Folder(glue_dir, GLUE)
    complete = {}
    for name in ("cola", "mrpc", "stsb", "rte", "wnli", "qnli"):
        task = TASKS[name]
        rows = {split.key: len(load_split(folder, task, split, labelled=True)) for split in task.splits}
        complete[name] = shortfalls(task, {"train": len(load(glue_dir, task)), **rows})
    assert complete.pop("qnli") == ["qnli train: 2000 of 104743 rows"]
    assert not any(complete.values())
