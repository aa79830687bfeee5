"""Downstream text in rows: found where it is, and only there, as a plain search of the words finds it."""

import random
import re

import numpy as np
import pytest
import tokenizers

from cramming_train.data.cleaning import clean_text
from cramming_train.data.overlap import SHORTEST, WORDS, Index
from cramming_train.data.special_tokens import SEP_ID
from cramming_train.data.tokenizer import train_tokenizer
from cramming_train.errors import UsageError
from tests.data.helpers import Writer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([clean_text(text, "ascii") for text in Writer(5).documents(120)], 320, "ascii")


def words_of(text):
    """The straightforward way: lower case, punctuation gone."""
    return re.findall(r"[a-z0-9]+", clean_text(text, "ascii"))


def rows_of(tokenizer, texts, length):
    ids = []
    for text in texts:
        ids += [*tokenizer.encode(clean_text(text, "ascii"), add_special_tokens=False).ids, SEP_ID]
    return np.array(ids[: len(ids) // length * length], dtype=np.uint16).reshape(-1, length)


def words_of_row(tokenizer, row):
    """Runs of words that the row shows, cut at <sep>; pieces of a word cut by the row's edge are no words."""
    runs, word = [[]], None
    for token in [tokenizer.id_to_token(int(i)) for i in row] + ["<sep>"]:
        if token.startswith("##"):
            word = None if word is None else word + token[2:]
            continue
        if word is not None and word.isalnum():
            runs[-1].append(word)
        word = token
        if token == "<sep>":
            runs.append([])
            word = None
    return runs


def wanted(text):
    """What has to stand in a row."""
    words = words_of(text)
    n = min(len(words), WORDS)
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} if n >= SHORTEST else set()


def found_in(runs):
    return {tuple(run[i : i + n]) for run in runs for n in range(SHORTEST, WORDS + 1) for i in range(len(run) - n + 1)}


@pytest.mark.parametrize("length", [40, 71])
def test_as_a_plain_search_finds_it(tokenizer, length):
    """Among random sentences of 3 to 25 words, some of them, or parts of them, are planted in random text."""
    chosen, writer, other = random.Random(length), Writer(6), Writer(7)
    texts = [f"{writer.sentence()} {writer.sentence()}" if chosen.random() < 0.5 else writer.sentence()
             for _ in range(150)]  # fmt: skip
    corpus = []
    for text in texts:
        corpus.append(other.document())
        if chosen.random() < 0.5:
            part = text.split()
            start = chosen.randint(0, 3)
            corpus[-1] += " " + " ".join(part[start:]).upper() + "; " + other.sentence()
    rows = rows_of(tokenizer, corpus, length)
    index = Index(texts, tokenizer, "ascii")
    affected = np.concatenate([index.look_in(rows[i : i + 37]) for i in range(0, len(rows), 37)])
    shown = [found_in(words_of_row(tokenizer, row)) for row in rows]
    sought = [wanted(text) for text in texts]
    everything, anything = set().union(*shown), set().union(*sought)
    expected = [not ngrams.isdisjoint(everything) for ngrams in sought]
    assert index.overlapping().tolist() == expected and 10 < sum(expected) < 140
    assert affected.tolist() == [not ngrams.isdisjoint(anything) for ngrams in shown]
    assert index.checked.tolist() == [len(words_of(text)) >= SHORTEST for text in texts]


def test_case_punctuation_and_spaces_do_not_matter(tokenizer):
    words = Writer(8).lexicon[:WORDS]
    text = "{} {},{} {}? {} {} {}, {} {}! {} {} {},. {}".format(*words).upper()
    ids = tokenizer.encode(" . ".join(words), add_special_tokens=False).ids
    index = Index([text], tokenizer, "ascii")
    assert index.look_in(np.array([ids])).all() and index.overlapping().all()


@pytest.mark.parametrize("change", [0, 6, 12])
def test_another_word_is_another_text(tokenizer, change):
    words = Writer(8).random.sample(Writer(8).lexicon, WORDS + 1)
    text, changed = " ".join(words[:WORDS]), [*words[:WORDS]]
    changed[change] = words[WORDS]
    index = Index([text], tokenizer, "ascii")
    length = 200
    row = np.full((1, length), SEP_ID)
    ids = tokenizer.encode(" ".join(changed), add_special_tokens=False).ids
    row[0, : len(ids)] = ids
    assert not index.look_in(row).any() and not index.overlapping().any()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    row[0, : len(ids)] = ids
    row[0, len(ids) :] = SEP_ID
    assert index.look_in(row).all() and index.overlapping().all()


def test_not_across_documents_or_rows(tokenizer):
    words = Writer(9).random.sample(Writer(9).lexicon, WORDS)
    first, second = (tokenizer.encode(" ".join(part), add_special_tokens=False).ids for part in (words[:7], words[7:]))
    index = Index([" ".join(words)], tokenizer, "ascii")
    width = max(len(first), len(second)) * 2 + 1
    rows = np.full((2, width), SEP_ID)
    rows[0, : len(first) + len(second) + 1] = [*first, SEP_ID, *second]
    assert not index.look_in(rows).any()
    rows = np.full((2, width), SEP_ID)
    rows[0, width - len(first) :], rows[1, : len(second)] = first, second
    assert not index.look_in(rows).any()


def test_unknown_words_are_not_taken_for_each_other(tokenizer):
    text = " ".join(["z" * 150] * 20)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert set(ids) == {tokenizer.token_to_id("<unk>")}
    index = Index([text], tokenizer, "ascii")
    assert not index.look_in(np.array([ids])).any()


@pytest.mark.parametrize("texts", [[], ["too short"], [""]])
def test_nothing_to_look_for(tokenizer, texts):
    index = Index(texts, tokenizer, "ascii")
    assert not index.look_in(rows_of(tokenizer, Writer(3).documents(9), 24)).any()
    assert index.overlapping().tolist() == [False] * len(texts) == index.checked.tolist()


def test_other_kinds_of_tokenizers_are_refused():
    with pytest.raises(UsageError, match="WordPiece tokenizers; the rows' is a BPE"):
        Index(["a"], tokenizers.Tokenizer(tokenizers.models.BPE()), "ascii")
