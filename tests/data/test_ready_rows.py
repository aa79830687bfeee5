"""Ready-made local rows: taken as they are, renumbered where their special tokens lie elsewhere, or refused clearly."""

import random

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from cramming_train.data import ready_rows
from cramming_train.data.special_tokens import SPECIAL_TOKENS
from cramming_train.errors import RunError, UsageError
from tests.data.helpers import Writer, all_rows, prepare, small, write
from tests.data.stand_in import random_rows, rows_tokenizer


def parquet(folder, values, name="rows.parquet", tokenizer=None, **columns):
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"input_ids": list(values), **columns})
    pyarrow.parquet.write_table(table, folder / name, row_group_size=64)
    (tokenizer or rows_tokenizer(320)).save(str(folder / "tokenizer.json"))
    return folder


def split(values):
    held_out = np.arange(len(values)) % 200 == 0
    return values[~held_out], values[held_out]


@pytest.mark.parametrize("as_file", [True, False])
def test_parquet(as_file, tmp_path):
    values = random_rows(433, 24, 320)
    folder = parquet(tmp_path / "rows", values)
    prepared = prepare(folder / "rows.parquet" if as_file else folder, small(), tmp_path)
    train, held_out = split(values)
    assert np.array_equal(all_rows(prepared.train), train)
    assert np.array_equal(all_rows(prepared.validation), held_out)
    assert prepared.metadata["rows"] == 430 and prepared.metadata["tokens"] == 430 * 24


def test_several_files_in_sorted_order(tmp_path):
    values = random_rows(601, 24, 320)
    parquet(tmp_path / "rows", values[300:], "b.parquet")
    parquet(tmp_path / "rows", values[:300], "a.parquet")
    prepared = prepare(tmp_path / "rows", small(), tmp_path)
    assert np.array_equal(all_rows(prepared.train), split(values)[0])


def test_saved_data_set(tmp_path):
    values = random_rows(401, 24, 320)
    datasets.Dataset.from_dict({"input_ids": values.tolist()}).save_to_disk(str(tmp_path / "rows"))
    with pytest.raises(UsageError, match="rows: no tokenizer.json beside the rows"):
        prepare(tmp_path / "rows", small(), tmp_path)
    rows_tokenizer(320).save(str(tmp_path / "rows" / "tokenizer.json"))
    prepared = prepare(tmp_path / "rows", small(), tmp_path)
    assert np.array_equal(all_rows(prepared.train), split(values)[0])


def test_a_split_of_our_own(tmp_path):
    """What we store is such a data set."""
    ours = prepare(write(tmp_path / "a.jsonl", Writer(161).documents(150)), small(), tmp_path)
    again = prepare(ours.path / "train", small(), tmp_path)
    assert np.array_equal(all_rows(again.train), split(all_rows(ours.train))[0])
    assert again.tokenizer.get_vocab() == ours.tokenizer.get_vocab()


def test_saved_data_set_of_text(tmp_path):
    """Not rows at all: said in one line, or read as text."""
    datasets.Dataset.from_dict({"text": Writer(162).documents(90)}).save_to_disk(str(tmp_path / "text"))
    rows_tokenizer(320).save(str(tmp_path / "text" / "tokenizer.json"))
    try:
        assert prepare(tmp_path / "text", small(), tmp_path).metadata["documents"] == 90
    except UsageError as error:
        assert "input_ids" in str(error)


@pytest.mark.parametrize("batch", [1, 7, 50, 4096])
def test_batches_are_no_part_of_the_result(batch, tmp_path, monkeypatch):
    """Also where a batch holds nothing but held-out rows."""
    values = random_rows(451, 24, 320)
    folder = parquet(tmp_path / "rows", values)
    monkeypatch.setattr(ready_rows, "BATCH_ROWS", batch)
    prepared = prepare(folder, small(), tmp_path)
    assert np.array_equal(all_rows(prepared.train), split(values)[0])
    assert np.array_equal(all_rows(prepared.validation), split(values)[1])


# --- renumbering


@pytest.mark.parametrize(
    "special_ids",
    [
        [0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0], [1, 2, 3, 4, 5, 6, 0], [313, 314, 315, 316, 317, 318, 319],
        [3, 100, 0, 6, 319, 8, 1], [0, 1, 2, 3, 4, 6, 5],
    ],
)  # fmt: skip
def test_special_tokens_elsewhere(special_ids, tmp_path):
    """The original numbers them by the process's hash seed. Every token must keep its meaning."""
    theirs = rows_tokenizer(320, special_ids)
    names = {index: token for token, index in theirs.get_vocab().items()}
    assert [names[index] for index in special_ids] == list(SPECIAL_TOKENS)
    values = random_rows(401, 24, 320)
    prepared = prepare(parquet(tmp_path / "rows", values, tokenizer=theirs), small(), tmp_path)
    ours = prepared.tokenizer
    assert [ours.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(7))
    assert sorted(ours.get_vocab().values()) == list(range(320))
    expected = [[ours.token_to_id(names[token]) for token in row] for row in split(values)[0].tolist()]
    assert np.array_equal(all_rows(prepared.train), expected)
    text = Writer(163).document()
    assert ours.encode(text).tokens == theirs.encode(text).tokens
    assert [ours.id_to_token(index) for index in ours.encode(text).ids] == theirs.encode(text).tokens


def test_renumbering_of_any_arrangement():
    chosen = random.Random(1)
    for _ in range(25):
        special_ids = chosen.sample(range(320), 7)
        theirs = rows_tokenizer(320, special_ids)
        ours, renumbering = ready_rows.with_special_ids(theirs, "here")
        assert sorted(renumbering.tolist()) == list(range(320))
        assert renumbering[special_ids].tolist() == list(range(7))
        assert all(ours.token_to_id(token) == renumbering[index] for token, index in theirs.get_vocab().items())


def test_post_processor_does_not_keep_old_numbers(tmp_path):
    """Tokenizers made for fine-tuning place <cls> and <sep> themselves, by number."""
    from tokenizers.processors import TemplateProcessing

    theirs = rows_tokenizer(320, [9, 10, 11, 12, 13, 14, 15])
    theirs.post_processor = TemplateProcessing("<cls> $A <sep>", special_tokens=[("<cls>", 13), ("<sep>", 14)])
    theirs.enable_truncation(5)
    theirs.enable_padding(length=5, pad_id=9, pad_token="<pad>")
    ours, _ = ready_rows.with_special_ids(theirs, "here")
    encoding = ours.encode("ba be bi bo bu " * 5, add_special_tokens=True)
    assert all(ours.id_to_token(index) == token for index, token in zip(encoding.ids, encoding.tokens, strict=True))
    assert len(ours.encode("ba be bi bo bu " * 5, add_special_tokens=False).ids) > 5, "nothing is cut in silence"
    assert len(ours.encode("a", add_special_tokens=False).ids) == 1, "or padded"


def test_tokenizer_without_one_of_them(tmp_path):
    theirs = rows_tokenizer(320).to_str().replace("<mask>", "<MASKED>")
    import tokenizers

    folder = parquet(tmp_path / "rows", random_rows(401, 24, 320), tokenizer=tokenizers.Tokenizer.from_str(theirs))
    with pytest.raises(UsageError, match="its tokenizer has no <mask>; want <pad> <s>"):
        prepare(folder, small(), tmp_path)


# --- what does not fit


def refuse(tmp_path, values, match, status=UsageError, recipe=None, **options):
    folder = parquet(tmp_path / "rows", values, **options)
    with pytest.raises(status, match=match):
        prepare(folder, recipe or small(), tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_row_length_mismatch(tmp_path):
    values = random_rows(401, 32, 320)
    refuse(tmp_path, values, "a row has 32 tokens, the recipe asks for 24; give --set data.row_length=32")
    assert prepare(tmp_path / "rows", small(row_length=32), tmp_path).metadata["rows"] == 398, "the advice works"


def test_one_short_row(tmp_path):
    values = random_rows(401, 24, 320).tolist()
    values[333] = values[333][:-1]
    refuse(tmp_path, values, "a row has 23 tokens, the recipe asks for 24")


def test_another_vocabulary(tmp_path):
    refuse(
        tmp_path, random_rows(401, 24, 300), "its tokenizer has 300 tokens, the recipe asks for 320; give --set "
        "data.vocab_size=300", tokenizer=rows_tokenizer(300),
    )  # fmt: skip


@pytest.mark.parametrize("wrong", [320, -1, 10**6])
def test_ids_outside_the_vocabulary(wrong, tmp_path):
    values = random_rows(401, 24, 320)
    values[250, 7] = wrong
    refuse(tmp_path, values, f"token id {wrong} is outside the vocabulary of 320")


def test_missing_row(tmp_path):
    values = [*random_rows(300, 24, 320).tolist(), None, *random_rows(5, 24, 320).tolist()]
    refuse(tmp_path, values, "row")


def test_rows_that_are_text(tmp_path):
    refuse(tmp_path, Writer(164).documents(300), "row|ids|tokens")


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_rows(count, tmp_path):
    table = pa.table({"input_ids": pa.array(random_rows(count, 24, 320).tolist(), pa.list_(pa.int32()))})
    (tmp_path / "rows").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "rows" / "a.parquet")
    rows_tokenizer(320).save(str(tmp_path / "rows" / "tokenizer.json"))
    with pytest.raises(UsageError, match="too few rows"):
        prepare(tmp_path / "rows", small(), tmp_path)


def test_damaged_tokenizer(tmp_path):
    folder = parquet(tmp_path / "rows", random_rows(401, 24, 320))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(RunError, match="tokenizer.json: not a readable tokenizer"):
        prepare(folder, small(), tmp_path)
