"""Deduplication against straightforward searches: what repeats is cut, the first stays, nothing else goes."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cramming_train.data import dedup
from cramming_train.data.dedup import MIN_PARAGRAPH, cut_spans, records_of
from tests.data.helpers import Writer, all_rows, packed, prepare, small, tokens_of, write


def with_repeats(seed: int, count: int) -> list[str]:
    """Documents whose paragraphs come from one pool, so that many repeat, short ones and long ones."""
    writer = Writer(seed)
    pool = [writer.paragraph() for _ in range(count)]
    return ["\n\n".join(writer.random.choices(pool, k=writer.random.randint(1, 6))) for _ in range(count)]


def without_repeats(training: list[str], held_out: list[str]) -> tuple[list[str], int]:
    """The definition: held-out text counts as seen first; paragraphs of 100 characters and more are kept once."""
    clean = {part: " ".join(part.lower().split()) for text in (*training, *held_out) for part in text.split("\n\n")}
    seen = {clean[part] for text in held_out for part in text.split("\n\n")}
    result, cuts = [], 0
    for text in training:
        kept = []
        for part in text.split("\n\n"):
            if len(clean[part]) >= MIN_PARAGRAPH and clean[part] in seen:
                cuts += 1
                continue
            seen.add(clean[part])
            kept.append(part)
        result.append("\n\n".join(kept))
    return [text for text in result if text], cuts


@pytest.mark.parametrize("seed", [81, 82, 83])
def test_paragraphs(seed, tmp_path):
    training, held_out = with_repeats(seed, 200), with_repeats(seed + 1000, 20)
    held_out += training[5:8] + [training[190]]  # text that the training files repeat, from both of their ends
    write(tmp_path / "text" / "a.jsonl", training)
    write(tmp_path / "text" / "validation.jsonl", held_out)
    prepared = prepare(tmp_path / "text", small(deduplicate="paragraph"), tmp_path)
    expected, cuts = without_repeats(training, held_out)
    assert 100 < cuts == prepared.metadata["repeats_cut"]
    assert np.array_equal(all_rows(prepared.train), packed([tokens_of(prepared, t) for t in expected], 24))
    assert np.array_equal(all_rows(prepared.validation), packed([tokens_of(prepared, t) for t in held_out], 24))


def test_none_keeps_everything(tmp_path):
    documents = with_repeats(84, 100)
    write(tmp_path / "text" / "a.jsonl", documents)
    write(tmp_path / "text" / "validation.jsonl", Writer(1084).documents(9))
    prepared = prepare(tmp_path / "text", small(), tmp_path)
    assert np.array_equal(all_rows(prepared.train), packed([tokens_of(prepared, t) for t in documents], 24))
    assert "repeats_cut" not in prepared.metadata and prepared.metadata["characters_cut"] == 0


def test_paragraphs_of_files_with_other_line_ends(tmp_path):
    """Columns of .jsonl, .csv and .parquet keep \\r\\n as it is in the text."""
    texts = with_repeats(85, 120)
    write(tmp_path / "unix" / "a.jsonl", texts)
    write(tmp_path / "dos" / "a.jsonl", [text.replace("\n", "\r\n") for text in texts])
    unix, dos = (prepare(tmp_path / name, small(deduplicate="paragraph"), tmp_path) for name in ("unix", "dos"))
    assert unix.metadata["repeats_cut"] > 50
    assert dos.metadata["repeats_cut"] == unix.metadata["repeats_cut"]
    assert dos.metadata["sha256"] == unix.metadata["sha256"]


# --- substrings


def planted(seed: int, count: int, passage_length: int) -> tuple[list[str], list[str]]:
    """Random letters, and passages of them that stand in several documents at random places."""
    chosen = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz    "
    passages = ["".join(chosen.choices(letters, k=passage_length)).strip().ljust(passage_length, "x")
                for _ in range(8)]  # fmt: skip
    documents = []
    for _ in range(count):
        text = "".join(chosen.choices(letters, k=chosen.randint(200, 900)))
        for _ in range(chosen.randint(0, 2)):
            at = chosen.randint(0, len(text))
            text = text[:at] + chosen.choice(passages) + text[at:]
        documents.append(" ".join(text.split()))
    return documents, passages


def cut_all(documents: list[str], length: int, folder) -> list[str]:
    """Substring deduplication by its parts, without the rest of the pipeline."""
    records, spans = dedup.make_buckets(folder, 1)
    for number, text in enumerate(documents):
        found = records_of(text, "substring", length)
        found["document"] = number
        records.add((found["hash"] >> np.uint64(58)).astype(np.int64), found)
    records.close()
    dedup.find_repeats(records, spans, np.array([0]))
    spans.close()
    cuts: dict[int, list[tuple[int, int]]] = {}
    for number, start, stop in spans.read(0).tolist():
        cuts.setdefault(number, []).append((start, stop))
    return [cut_spans(text, cuts.get(number, []), length) for number, text in enumerate(documents)]


@pytest.mark.parametrize("length", [20, 51, 100])
def test_no_repeat_of_the_length_is_left(length, tmp_path):
    documents, _ = planted(length, 60, length + 15)
    left = cut_all(documents, length, tmp_path)
    seen: set[str] = set()
    for before, after in zip(documents, left, strict=True):
        grams = {before[i : i + length] for i in range(len(before) - length + 1)}
        assert not any(gram in after for gram in grams & seen), "a repeated passage is still whole"
        seen |= grams
    assert sum(map(len, left)) < sum(map(len, documents))


@pytest.mark.parametrize("length", [20, 51, 100])
def test_repeats_are_cut_nearly_whole(length, tmp_path):
    """Of a passage stays at most what a window of the winnowing leaves at either end, and all that is around it."""
    chosen = random.Random(length)
    letters = "abcdefghijklmnopqrstuvwxyz"
    passage = "".join(chosen.choices(letters, k=length + 70))
    digits = ["".join(chosen.choices("0123456789", k=150)) for _ in range(18)]
    own = [chr(0x3B1 + number) for number in range(9)]  # at the edges, so that no repeat reaches beyond the passage
    around = [(before + edge, edge + after) for before, after, edge in zip(digits[:9], digits[9:], own, strict=True)]
    left = cut_all([before + passage + after for before, after in around], length, tmp_path)
    assert left[0] == around[0][0] + passage + around[0][1]
    margin = length - length // 2
    for text, (before, after) in zip(left[1:], around[1:], strict=True):
        assert text.startswith(before) and text.endswith(after)
        assert len(text) - len(before) - len(after) <= 2 * margin


def test_text_that_repeats_nowhere_is_not_touched(tmp_path):
    documents, _ = planted(5, 60, 40)
    chosen = random.Random(6)
    unique = ["".join(chosen.choices("abcdefghij klmnopqrst", k=500)).strip() for _ in range(50)]
    assert cut_all(unique, 30, tmp_path / "a") == unique
    first = cut_all(documents, 40, tmp_path / "b")
    assert first[0] == documents[0], "the first occurrence stays"


def test_substrings_through_the_pipeline(tmp_path):
    documents, passages = planted(9, 150, 180)
    write(tmp_path / "text" / "a.jsonl", documents)
    write(tmp_path / "text" / "validation.jsonl", [f"{passage} {passage}" for passage in passages[:3]])
    prepared = prepare(tmp_path / "text", small(deduplicate="substring", substring_characters=60), tmp_path)
    words = prepared.tokenizer.decode(all_rows(prepared.train).reshape(-1).tolist()).replace(" ", "")
    for number, passage in enumerate(passages):
        middle = passage[60:120].replace(" ", "")
        assert words.count(middle) == (0 if number < 3 else 1), "held-out text goes altogether, other text stays once"
    held_out = prepared.tokenizer.decode(all_rows(prepared.validation).reshape(-1).tolist()).replace(" ", "")
    assert held_out.count(passages[0][60:120].replace(" ", "")) == 2


@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    text=st.text("abcdef ", min_size=0, max_size=60),
    spans=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=6), gap=st.integers(0, 9),
)  # fmt: skip
def test_cut_spans(text, spans, gap):
    spans = [(min(a, b), max(a, b)) for a, b in spans if a != b and max(a, b) <= len(text)]
    gone = np.zeros(len(text) + 1, dtype=bool)
    for start, stop in spans:
        gone[start:stop] = True
    edges = [position for position in range(len(text)) if gone[position]]
    for left, right in zip(edges, edges[1:], strict=False):
        if right - left - 1 < gap:
            gone[left:right] = True
    assert cut_spans(text, spans, gap) == "".join(c for c, cut in zip(text, gone, strict=False) if not cut).strip()


def test_content_hash_is_spread_evenly_and_stable():
    """What is held back hangs on it, so it may not change from one version to the next."""
    values = [dedup.content_hash(f"text {i}") for i in range(4000)]
    assert abs(sum(value < 2**60 for value in values) - 250) < 80
    assert dedup.content_hash("naïve\n東京") == 15_142_233_753_170_010_752
