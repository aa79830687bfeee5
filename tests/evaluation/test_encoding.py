"""Template, truncation, batches, and the renumbering of the vocabulary."""

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cramming_train.data.special_tokens import CLS_ID, SEP_ID, SPECIAL_TOKENS, UNK_ID
from cramming_train.evaluation.encoding import (
    Encoded,
    batches_per_epoch,
    compact_vocabulary,
    encode,
    pack,
    training_batches,
    truncated_lengths,
    validation_batches,
)
from cramming_train.evaluation.sources import Examples

WORDS = ("the", "cat", "sat", "on", "a", "mat")


@pytest.fixture
def tokenizer():
    vocabulary = {token: number for number, token in enumerate((*SPECIAL_TOKENS, *WORDS))}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return made


def ids(text):
    return [len(SPECIAL_TOKENS) + WORDS.index(word) for word in text.split()]


def random_split(rng, rows, vocabulary=50, longest=9):
    lengths = rng.integers(1, longest, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = rng.integers(7, vocabulary, offsets[-1]).astype(np.int32)
    return Encoded(tokens, offsets, rng.integers(0, 3, rows))


def example(split, i):
    return split.ids[split.offsets[i] : split.offsets[i + 1]].tolist()


def test_template(tokenizer):
    pair = Examples([("the cat", "sat on"), ("", "a mat"), ("zebra sat", "")], np.array([0, 1, 1]))
    encoded = encode(tokenizer, str.lower, pair, 128)
    assert example(encoded, 0) == [CLS_ID, *ids("the cat"), SEP_ID, *ids("sat on"), SEP_ID]
    assert example(encoded, 1) == [CLS_ID, SEP_ID, *ids("a mat"), SEP_ID]
    assert example(encoded, 2) == [CLS_ID, UNK_ID, *ids("sat"), SEP_ID, SEP_ID]
    single = encode(tokenizer, str.lower, Examples([("The CAT",), ("",)], np.array([0, 1])), 128)
    assert example(single, 0) == [CLS_ID, *ids("the cat"), SEP_ID]
    assert example(single, 1) == [CLS_ID, SEP_ID]


def test_special_token_names_in_the_text_are_cleaned_like_any_text(tokenizer):
    """The cleaning is the caller's: it is applied before the tokenizer sees the text."""
    encoded = encode(tokenizer, lambda text: text.replace("!", " mat"), Examples([("cat!",)], np.array([0])), 128)
    assert example(encoded, 0) == [CLS_ID, *ids("cat mat"), SEP_ID]


@given(st.integers(0, 40), st.integers(0, 40), st.integers(2, 40))
@settings(max_examples=300, deadline=None)
def test_truncation_is_the_tokenizers_own_longest_first(first, second, budget):
    vocabulary = {"x": 0, "y": 1, "u": 2}
    reference = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="u"))
    reference.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    reference.enable_truncation(budget, strategy="longest_first")
    cut = reference.encode("x " * first, "y " * second).ids
    assert truncated_lengths([first, second], budget) == [cut.count(0), cut.count(1)]


def test_truncation_of_one_text():
    assert truncated_lengths([9], 5) == [5]
    assert truncated_lengths([4], 5) == [4]


def test_long_examples_fill_the_maximum(tokenizer):
    texts = [("cat " * 200, "mat"), ("cat " * 200, "mat " * 150)]
    encoded = encode(tokenizer, str.lower, Examples(texts, np.array([0, 1])), 32)
    assert np.diff(encoded.offsets).tolist() == [32, 32]
    assert example(encoded, 0)[-3:] == [SEP_ID, *ids("mat"), SEP_ID]
    assert example(encoded, 1).index(SEP_ID) in (15, 16)  # 29 text tokens, half to each


def test_pack(tokenizer):
    split = random_split(np.random.default_rng(0), 9)
    rows = np.array([4, 0, 7])
    batch = pack(split, rows)
    bounds = batch.cu_seqlens.tolist()
    for place, row in enumerate(rows):
        assert batch.ids_T[bounds[place] : bounds[place + 1]].tolist() == example(split, row)
    assert batch.cu_seqlens.dtype == torch.int32 and batch.ids_T.dtype == torch.int64
    assert batch.positions_S.tolist() == bounds[:-1] and batch.choices is None
    assert batch.max_seqlen == max(len(example(split, row)) for row in rows)
    assert batch.labels_B.tolist() == split.labels[rows].tolist()


def test_an_epoch_is_a_seeded_shuffle_without_the_incomplete_batch():
    split = random_split(np.random.default_rng(1), 37)
    split = Encoded(split.ids, split.offsets, np.arange(37))  # labels tell the rows apart
    first = [batch.labels_B.tolist() for batch in training_batches(split, 8, seed=5)]
    assert [len(batch) for batch in first] == [8] * 4 == [8] * batches_per_epoch(37, 8)
    seen = sum(first, [])
    assert len(set(seen)) == 32 and seen != sorted(seen)
    assert first == [batch.labels_B.tolist() for batch in training_batches(split, 8, seed=5)]
    assert first != [batch.labels_B.tolist() for batch in training_batches(split, 8, seed=6)]


def test_fewer_examples_than_a_batch_make_one_batch():
    split = random_split(np.random.default_rng(2), 5)
    assert [len(batch.labels_B) for batch in training_batches(split, 8, seed=0)] == [5]


def test_validation_batches_cover_every_row_once():
    split = random_split(np.random.default_rng(3), 101)
    rows, sizes = [], []
    for batch_rows, batch in validation_batches(split, tokens=64):
        rows += batch_rows.tolist()
        sizes.append(len(batch.ids_T))
        assert batch.labels_B.tolist() == split.labels[batch_rows].tolist()
    assert sorted(rows) == list(range(101))
    assert len(sizes) > 3 and max(sizes) <= 64 + 9


def test_compact_vocabulary_only_renumbers():
    rng = np.random.default_rng(4)
    splits = [random_split(rng, 20, vocabulary=5000), random_split(rng, 10, vocabulary=5000)]
    used, renumbered = compact_vocabulary(splits)
    for before, after in zip(splits, renumbered, strict=True):
        assert np.array_equal(used[after.ids], before.ids)
        assert np.array_equal(before.offsets, after.offsets)
    assert len(used) == len(set(np.concatenate([s.ids for s in splits]).tolist())) < 5000
