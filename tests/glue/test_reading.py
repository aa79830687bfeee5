"""Readers: what the files say, and one clear line for what they should not say."""

import gzip

import numpy as np
import pytest

from cramming_train.errors import UsageError
from cramming_train.glue.reading import Folder, read_tsv
from cramming_train.glue.results import shortfalls
from cramming_train.glue.tasks import HEADLINE_ROWS, TASKS

COLA, STSB, MRPC = TASKS["cola"], TASKS["stsb"], TASKS["mrpc"]


def write(folder, task, split, text, packed=False):
    path = folder / task / (split + (".tsv.gz" if packed else ".tsv"))
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if packed else data)
    return path


def test_headline_has_nine_rows():
    assert len(HEADLINE_ROWS) == 9 and {"mnli", "mnli_mm"} <= set(HEADLINE_ROWS) and "wnli" not in HEADLINE_ROWS


@pytest.mark.parametrize("packed", [False, True])
def test_columns_by_name_without_quoting(tmp_path, packed):
    text = 'idx\tlabel\tsentence2\textra\tsentence1\n7\t1\tis "open\tx\ta "quote\n8\t0\t\tx\tonly one\n'
    write(tmp_path, "mrpc", "train", text, packed)
    examples = Folder(tmp_path).load(MRPC, "train")
    assert examples.texts == (['a "quote', "only one"], ['is "open', ""])
    assert examples.labels.tolist() == [1, 0] and examples.labels.dtype == np.int64


def test_line_ends_and_separators_inside_a_line(tmp_path):
    """Only a newline ends an example; other separators of Unicode are text."""
    path = write(tmp_path, "cola", "train", "\ufeffsentence\tlabel\r\none\u2028still \x85 one\t1\r\ntwo\t0\r\n\r\n")
    assert read_tsv(path, COLA).texts == (["one\u2028still \x85 one", "two"],)


def test_regression_targets(tmp_path):
    path = write(tmp_path, "stsb", "train", "sentence1\tsentence2\tlabel\na\tb\t3.25\nc\td\t0\n")
    labels = read_tsv(path, STSB).labels
    assert labels.tolist() == [3.25, 0.0] and labels.dtype == np.float32


@pytest.mark.parametrize(
    ("task", "text", "complaint"),
    [
        ("cola", "", "line 1: column 'sentence' is missing from the header (found: nothing)"),
        (
            "cola",
            "sentence\tidx\na\t0\n",
            "line 1: column 'label' is missing from the header (found: sentence, idx)",
        ),
        ("cola", "sentence\tlabel\n", "no examples"),
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
        read_tsv(path, TASKS[task])
    assert complaint in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_gzip(tmp_path):
    path = write(tmp_path, "cola", "train", "sentence\tlabel\n" + "a b c\t1\n" * 500, packed=True)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"no gzip at all", whole[:20] + b"\x00\x01\x02" + whole[23:]):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match="damaged or cut short"):
            read_tsv(path, COLA)


def test_folders_that_are_not_glue(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        Folder(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no task folder in it"):
        Folder(tmp_path)


def test_what_is_absent_is_none(tmp_path):
    write(tmp_path, "mnli", "validation_matched", "premise\thypothesis\tlabel\na\tb\t2\n")
    folder = Folder(tmp_path)
    assert folder.load(TASKS["mnli"], "validation_mismatched") is None
    assert folder.load(COLA, "train") is None
    assert folder.load(TASKS["mnli"], "validation_matched").labels.tolist() == [2]


def test_real_files(glue_dir):
    """Row and label counts of the data's own description."""
    folder = Folder(glue_dir)
    cola = folder.load(COLA, "train")
    assert len(cola) == 8551 and np.bincount(cola.labels).tolist() == [2528, 6023]
    assert cola.texts[0][0] == "Our friends won't buy this analysis, let alone the next one we propose."
    stsb = folder.load(STSB, "validation")
    assert len(stsb) == 1500 and stsb.labels.min() == 0.0 and stsb.labels.max() == 5.0
    mnli = folder.load(TASKS["mnli"], "validation_matched")
    assert np.bincount(mnli.labels).tolist() == [2681, 2353, 2435]
    assert folder.load(TASKS["mnli"], "validation_mismatched") is None


def test_real_files_against_the_official_sizes(glue_dir):
    folder = Folder(glue_dir)
    complete = {}
    for name in ("cola", "mrpc", "stsb", "rte", "wnli", "qnli"):
        rows = {split: len(folder.load(TASKS[name], split)) for split in TASKS[name].official}
        complete[name] = shortfalls(TASKS[name], rows)
    assert complete.pop("qnli") == ["qnli train: 2000 of 104743 rows"]
    assert not any(complete.values())
