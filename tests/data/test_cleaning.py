"""Cleaning: the fast functions against the tokenizer's own normaliser, which defines the rules."""

import gzip
import json
import random
import sys
import unicodedata

import pytest
import tokenizers
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from cramming_train.data.cleaning import RULES, clean_counted, clean_text, cleaner, normalizer
from cramming_train.data.embedded import read_embedded

NORMALIZERS = {rule: normalizer(rule) for rule in RULES}
_assigned = st.characters(exclude_categories=("Cs", "Cn"))
_tricky = st.sampled_from(
    "‘’‚‛′`´“”„‟″«»‐‑‒–—―−… \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x00\x01\x7f\x80\x85\x9f\xa0\u1680\u2003\u2028\u2029\u202f"
    "\u205f\u3000\u200b\u200d\ufeff\u0301\u0308\u0328éÉÅÅKßẞİıſﬁǅΣσςΟΔΆ가각한ａ１½²①㎏\u1fef\u1ffd\u037e\u2126ab AZ09.,"
)
TEXTS = st.text(st.one_of(_assigned, _tricky, _tricky), max_size=40)


def same_tables(text: str) -> bool:
    """The two libraries bring tables of different versions of Unicode; a few dozen rare characters differ by that."""
    return all(
        library.normalize_str(text) == unicodedata.normalize(form, text)
        for form, library in (("NFKC", tokenizers.normalizers.NFKC()), ("NFD", tokenizers.normalizers.NFD()))
    )


def test_tables_differ_in_few_characters():
    points = (chr(code) for code in range(sys.maxunicode + 1))
    different = [c for c in points if unicodedata.category(c) not in ("Cn", "Cs", "Co") and not same_tables(c)]
    assert len(different) < 200 and all(ord(c) > 0x2E80 for c in different)


@pytest.mark.parametrize("rule", RULES)
def test_every_character_on_its_own_and_inside_a_word(rule):
    """All of Unicode that this Python knows."""
    different = []
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.category(character) in ("Cn", "Cs", "Co") or not same_tables(character):
            continue
        text = f"{character} a{character}b"
        if clean_text(text, rule) != NORMALIZERS[rule].normalize_str(text):
            different.append(f"U+{code:04X}")
    assert different == []


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=400, derandomize=True, deadline=None)
@given(text=TEXTS)
@example(text="ΟΔΟΣ ΣΑΣ")
@example(text="e\u0301\u0328 x\u0328\u0301")
@example(text="\u1fef`´ quoted")
def test_fast_cleaning_is_the_normaliser(rule, text):
    assume(same_tables(text))
    assert clean_text(text, rule) == NORMALIZERS[rule].normalize_str(text)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=300, derandomize=True, deadline=None)
@given(text=TEXTS)
def test_cleaned_text(rule, text):
    """One line, single spaces, nothing to drop, and cleaning it again changes nothing."""
    cleaned, dropped = clean_counted(text, rule)
    assert cleaned == " ".join(cleaned.split())
    assert not any(unicodedata.category(c) == "Cc" for c in cleaned)
    assert dropped >= 0 and (rule == "ascii" or dropped == 0)
    if rule == "ascii":
        assert cleaned.isascii() and cleaned == cleaned.lower() and "`" not in cleaned
    assert clean_counted(cleaned, rule) == (cleaned, 0)


@pytest.mark.parametrize("rule", RULES)
def test_real_documentation(rule):
    checked = 0
    for text in read_embedded():
        assert clean_text(text, rule) == NORMALIZERS[rule].normalize_str(text), text[:80]
        checked += len(text)
        if checked > 1_500_000:
            break
    assert checked > 100_000


@pytest.mark.parametrize("rule", RULES)
def test_real_books(rule, corpus_dir):
    with gzip.open(corpus_dir / "validation.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    for text in random.Random(5).sample(texts, 40):
        assert clean_text(text, rule) == NORMALIZERS[rule].normalize_str(text)


@pytest.mark.parametrize(
    ("text", "cleaned", "dropped"),
    [
        ("“Don’t” — he said…", '"don\'t" - he said...', 0),
        ("Crème BRÛLÉE à la mode", "creme brulee a la mode", 0),
        ("one\u2003two\u00a0three\x85four", "one two three four", 0),
        ("a\x00b\x1bc\x7f", "abc", 0),
        ("東京 is Tokyo", "is tokyo", 2),
        ("smile🙂", "smile", 1),
        ("\u00c5ngstr\u00f6m and \u212bngstrom", "angstrom and angstrom", 0),
        (" \n\t ", "", 0),
        ("", "", 0),
    ],
)
def test_ascii_by_example(text, cleaned, dropped):
    assert clean_counted(text, "ascii") == (cleaned, dropped)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Привет, МИР", "привет, мир"),
        ("東京 タワー", "東京 タワー"),
        ("Crème", "crème"),
        ("ﬁne ½ ａｂｃ", "fine 1⁄2 abc"),
        ("a\x00b\x80c", "abc"),
        ("one\u2003two\u3000three", "one two three"),
        ("“quoted”", "“quoted”"),
    ],
)
def test_unicode_keeps_every_script(text, cleaned):
    assert clean_counted(text, "unicode") == (cleaned, 0)


def test_no_cleaning():
    """For foreign weights; halves of pairs, which no tokenizer takes, go all the same."""
    assert clean_counted(" Crème\n\x00“b”\ud83d ", "none") == (" Crème\n\x00“b” ", 0)


def test_cleaner_is_one_rule():
    assert cleaner("ascii")("Ä b") == "a b"
    assert cleaner("unicode")("Ä b") == "ä b"
