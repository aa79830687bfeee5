"""Exact deduplication on disk: hashes go to buckets, each bucket is sorted in memory, repeats become spans to cut.

``paragraph``: a paragraph of at least 100 characters that was seen before is cut.

``substring``: repeats of at least n characters are found wherever they stand. Hashes of k-grams (k = n / 2) are
thinned by winnowing (Schleimer et al. 2003): of every window of n - k + 1 consecutive k-grams the smallest hash is
kept, so any two equal substrings of n characters share at least one kept k-gram. Later occurrences of a kept k-gram
are cut, together with what lies between those that are less than n apart.

The first occurrence stays, in the order of the corpus; held-out documents count as earlier than all others, so that
training text never repeats a held-out passage.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cramming_train.data.spool import Buckets

MIN_PARAGRAPH = 100  # characters; shorter ones ("Chapter I", lines of dialogue) repeat for good reasons
RECORD = np.dtype([("hash", "<u8"), ("document", "<u8"), ("start", "<u4"), ("stop", "<u4"), ("held_out", "u1")])
SPAN = np.dtype([("document", "<u8"), ("start", "<u4"), ("stop", "<u4")])
BUCKETS = 64
_BASE = 0x9E3779B97F4A7C15  # odd, so that its powers are invertible modulo 2^64


def content_hash(text: str) -> int:
    """64-bit hash of a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def records_of(text: str, mode: str, substring_characters: int) -> np.ndarray:
    """(hash, start, stop) of what is compared between documents; document and held_out are still to be filled in."""
    if mode == "paragraph":
        found = _paragraphs(text)
    elif mode == "substring":
        found = _winnowed(text, substring_characters)
    else:
        found = ([], [], [])
    records = np.zeros(len(found[0]), dtype=RECORD)
    records["hash"], records["start"], records["stop"] = found
    return records


def find_repeats(records: Buckets, spans: Buckets, segment_starts: np.ndarray) -> int:
    """Read the records bucket by bucket, write the spans to cut into one bucket a segment; return how many."""
    total = 0
    for index in range(len(records.paths)):
        bucket = records.read(index)
        if not len(bucket):
            continue
        order = np.lexsort((bucket["start"], bucket["document"], 1 - bucket["held_out"], bucket["hash"]))
        bucket = bucket[order]
        repeated = np.zeros(len(bucket), dtype=bool)
        repeated[1:] = bucket["hash"][1:] == bucket["hash"][:-1]
        repeated &= bucket["held_out"] == 0
        cuts = np.empty(int(repeated.sum()), dtype=SPAN)
        for field in SPAN.names:
            cuts[field] = bucket[field][repeated]
        total += len(cuts)
        segment = np.searchsorted(segment_starts, cuts["document"], side="right") - 1
        spans.add(segment, cuts)
    return total


def cut_spans(text: str, spans: Iterable[tuple[int, int]], join_gaps: int) -> str:
    """The text without the given character spans; gaps shorter than ``join_gaps`` between spans are cut as well."""
    merged: list[list[int]] = []
    for start, stop in sorted(spans):
        if merged and start < merged[-1][1] + max(join_gaps, 1):
            merged[-1][1] = max(merged[-1][1], stop)
        else:
            merged.append([start, stop])
    pieces, position = [], 0
    for start, stop in merged:
        pieces.append(text[position:start])
        position = stop
    return "".join([*pieces, text[position:]]).strip()


def make_buckets(folder: Path, segments: int) -> tuple[Buckets, Buckets]:
    """Empty buckets for records and for spans."""
    return Buckets(folder / "records", BUCKETS, RECORD), Buckets(folder / "spans", segments, SPAN)


def _paragraphs(text: str) -> tuple[list[int], list[int], list[int]]:
    hashes, starts, stops = [], [], []
    position = 0
    for paragraph in text.split("\n"):
        if len(paragraph) >= MIN_PARAGRAPH:
            hashes.append(content_hash(paragraph))
            starts.append(position)
            stops.append(position + len(paragraph))
        position += len(paragraph) + 1
    return hashes, starts, stops


def _winnowed(text: str, length: int):
    gram = length // 2
    window = length - gram + 1
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    if len(codes) < length:
        return [], [], []
    with np.errstate(over="ignore"):
        hashes = _gram_hashes(codes, gram)
    lowest = np.lib.stride_tricks.sliding_window_view(hashes, window).argmin(axis=1) + np.arange(
        len(hashes) - window + 1
    )
    starts = np.unique(lowest)
    return hashes[starts], starts, starts + gram


def _gram_hashes(codes: np.ndarray, gram: int) -> np.ndarray:
    """Polynomial hash of every k-gram modulo 2^64, mixed so that its order is unrelated to the text."""
    hashes = np.zeros(len(codes) - gram + 1, dtype=np.uint64)
    for offset in range(gram):
        hashes = hashes * np.uint64(_BASE) + (codes[offset : offset + len(hashes)] + np.uint64(1))
    hashes ^= hashes >> np.uint64(33)
    hashes *= np.uint64(0xFF51AFD7ED558CCD)
    return hashes ^ (hashes >> np.uint64(29))
