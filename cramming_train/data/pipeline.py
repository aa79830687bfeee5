"""From documents to rows on disk, in four passes, each parallel, ordered and bounded in memory.

1. read and clean documents into a spool; hash what deduplication compares;
2. train the tokenizer on a sample of the spool;
3. cut repeats, tokenise, filter, and pack into rows (with <sep> after every document, so boundaries are kept);
4. order the rows and write them as Arrow.

Nothing depends on the number of processes: the same corpus and recipe give the same bytes.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from cramming_train.data import dedup
from cramming_train.data.cleaning import RULES, clean_counted
from cramming_train.data.ordering import make_key, ordered_blocks, read_blocks
from cramming_train.data.parallel import Workers
from cramming_train.data.progress import Progress
from cramming_train.data.special_tokens import SEP_ID
from cramming_train.data.spool import Buckets, Document, DocumentSpool, read_segment
from cramming_train.data.store import TOKENIZER_FILE, row_dtype, write_rows
from cramming_train.data.tokenizer import load_tokenizer, train_tokenizer
from cramming_train.errors import UsageError
from cramming_train.recipes import Data

BATCH_CHARACTERS = 1 << 20
DROP_NOTICE = 0.05


class RawDocument(NamedTuple):
    """A document as read, and whether its source says that it is held-out text."""

    text: str
    held_out: bool


class _Cleaned(NamedTuple):
    documents: list[Document]
    records: list[np.ndarray]
    characters: int
    dropped: int


class Spooled(NamedTuple):
    """What pass 1 leaves on disk."""

    spool: DocumentSpool
    spans: Buckets | None
    statistics: dict[str, Any]
    trainable: int  # documents that are not held out


def run_pipeline(
    documents: Iterable[RawDocument], recipe: Data, out: Path, scratch: Path, workers: Workers, progress: Progress,
    has_validation: bool,
) -> dict[str, Any]:  # fmt: skip
    """Fill ``out`` with train/, validation/ and tokenizer.json; returns statistics for the metadata."""
    if recipe.clean not in RULES:
        raise UsageError(f"data.clean={recipe.clean}: raw text has to be cleaned; want {' or '.join(RULES)}")
    spooled = spool_documents(documents, recipe, scratch, workers, progress, has_validation)
    if spooled.spool.documents == 0:
        notice = drop_notice(spooled.statistics, recipe.clean)
        raise UsageError("the sources hold no text" + (f": {notice}" if notice else ""))
    if spooled.trainable == 0:
        raise UsageError("the sources hold held-out text (validation.*) only, and nothing to train on")
    texts = _TokenizerSample(spooled.spool, recipe)
    with progress.stage("tokenizer", None):
        tokenizer = train_tokenizer(texts, recipe.vocab_size, recipe.clean)
    (out / TOKENIZER_FILE).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    packed = pack_rows(spooled, recipe, out / TOKENIZER_FILE, scratch, workers, progress)
    spooled.spool.path.unlink()
    return {
        **spooled.statistics,
        **packed.statistics,
        **write_splits(packed, recipe, tokenizer, out, scratch, progress),
    }


# --- pass 1


def spool_documents(documents, recipe: Data, scratch: Path, workers: Workers, progress: Progress, has_validation: bool):
    """Clean documents into a spool and find the repeats among them."""
    spool = DocumentSpool(scratch / "documents")
    bucket_records = dedup.Buckets(scratch / "records", dedup.BUCKETS, dedup.RECORD)
    characters = dropped = held_out = 0
    smallest = 1 << 64
    clean = functools.partial(_clean_batch, recipe=recipe, has_validation=has_validation)
    with progress.stage("read and clean", "characters") as stage:
        for batch in workers.map(clean, _batches(documents)):
            for document, records in zip(batch.documents, batch.records, strict=True):
                records["document"] = spool.documents
                bucket_records.add((records["hash"] >> np.uint64(58)).astype(np.int64), records)
                smallest = min(smallest, document.content_hash)
                held_out += document.held_out
                spool.append(document)
            characters += batch.characters
            dropped += batch.dropped
            stage.add(batch.characters)
    spool.close()
    bucket_records.close()
    statistics = {"documents": spool.documents, "characters_read": characters, "characters_dropped": dropped}
    if not held_out and spool.documents > 1:
        # a small corpus may have no document below the threshold: hold back the one with the smallest hash
        spool.held_out_hash = smallest
    spans = None
    if recipe.deduplicate != "none" and spool.documents:
        spans = Buckets(scratch / "spans", len(spool.segments), dedup.SPAN)
        starts = np.array([first for first, _, _ in spool.segments])
        with progress.stage("deduplicate", None):
            statistics["repeats_cut"] = dedup.find_repeats(bucket_records, spans, starts)
        spans.close()
    shutil.rmtree(scratch / "records")
    return Spooled(spool, spans, statistics, spool.documents - held_out)


def _batches(documents: Iterable[RawDocument]) -> Iterator[list[RawDocument]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _clean_batch(batch: list[RawDocument], recipe: Data, has_validation: bool) -> _Cleaned:
    documents, all_records, characters, dropped = [], [], 0, 0
    for raw in batch:
        paragraphs = []
        for paragraph in raw.text.replace("\r\n", "\n").split("\n\n"):
            text, lost = clean_counted(paragraph, recipe.clean)
            dropped += lost
            if text:
                paragraphs.append(text)
        characters += len(raw.text)
        if not paragraphs:
            continue
        text = "\n".join(paragraphs)
        content_hash = dedup.content_hash(text)
        held_out = raw.held_out if has_validation else content_hash < recipe.validation_fraction * 2**64
        records = dedup.records_of(text, recipe.deduplicate, recipe.substring_characters)
        records["held_out"] = held_out
        documents.append(Document(text, held_out, content_hash))
        all_records.append(records)
    return _Cleaned(documents, all_records, characters, dropped)


def drop_notice(statistics: dict[str, Any], clean: str) -> str | None:
    """A loud notice when cleaning dropped much of the text."""
    share = statistics["characters_dropped"] / max(statistics["characters_read"], 1)
    if share <= DROP_NOTICE:
        return None
    return (
        f"cleaning (data.clean={clean}) dropped {share:.0%} of the characters; "
        "for text in other scripts give --set data.clean=unicode"
    )


# --- pass 2


class _TokenizerSample:
    """Documents whose hash falls below the sampled share; held-out ones never. Can be gone through more than once."""

    def __init__(self, spool: DocumentSpool, recipe: Data):
        self._spool = spool
        self._share = min(recipe.tokenizer_characters / max(spool.characters, 1), 1.0)

    def __iter__(self) -> Iterator[str]:
        for _, offset, end in self._spool.segments:
            for document in read_segment(self._spool.path, offset, end):
                # a second hash: the first one already chose what is held out
                sampled = (document.content_hash * 0x9E3779B97F4A7C15) % 2**64 < self._share * 2**64
                if sampled and not self._spool.is_held_out(document):
                    yield document.text


# --- pass 3


class Packed(NamedTuple):
    """Rows as raw files, and what is known of them."""

    paths: dict[str, Path]
    counts: np.ndarray  # training tokens by id
    statistics: dict[str, Any]


class _Tokenised(NamedTuple):
    documents: list[tuple[bool, np.ndarray]]  # (held out, ids with <sep>)
    filtered: int
    characters: int
    characters_cut: int


def pack_rows(
    spooled: Spooled, recipe: Data, tokenizer_file: Path, scratch: Path, workers: Workers, progress: Progress
) -> Packed:
    """Tokenise and pack: documents one after another, the remainder of the last row dropped."""
    dtype = row_dtype(recipe.vocab_size)
    packers = {split: RowPacker(scratch / f"{split}.rows", recipe, dtype) for split in ("train", "validation")}
    spool, spans = spooled.spool, spooled.spans
    jobs = (
        (
            spool.path,
            first,
            offset,
            end,
            None if spans is None else spans.paths[index],
            spool.held_out_hash,
        )
        for index, (first, offset, end) in enumerate(spool.segments)
    )
    tokenise = functools.partial(_tokenise_segment, tokenizer_file=tokenizer_file, recipe=recipe)
    filtered = cut = 0
    with progress.stage("tokenise and pack", "characters", total=spool.characters) as stage:
        for result in workers.map(tokenise, jobs):
            for held_out, ids in result.documents:
                packers["validation" if held_out else "train"].add(ids)
            filtered += result.filtered
            cut += result.characters_cut
            stage.add(result.characters)
    for packer in packers.values():
        packer.close()
    statistics = {
        "documents_filtered": filtered,
        "characters_cut": cut,
        "tokens": packers["train"].tokens,
        "tokens_per_document": packers["train"].tokens / max(packers["train"].documents, 1),
    }
    return Packed({split: p.path for split, p in packers.items()}, packers["train"].counts, statistics)


def _tokenise_segment(job, tokenizer_file: Path, recipe: Data) -> _Tokenised:
    path, first, offset, end, spans_path, held_out_hash = job
    tokenizer = _worker_tokenizer(tokenizer_file)
    spans: dict[int, list[tuple[int, int]]] = {}
    if spans_path is not None:
        for document, start, stop in np.fromfile(spans_path, dtype=dedup.SPAN).tolist():
            spans.setdefault(document, []).append((start, stop))
    join_gaps = recipe.substring_characters if recipe.deduplicate == "substring" else 0
    documents, filtered, characters, cut = [], 0, 0, 0
    for number, document in enumerate(read_segment(path, offset, end), start=first):
        characters += len(document.text)
        text = document.text
        if number in spans:
            text = dedup.cut_spans(text, spans[number], join_gaps)
            cut += len(document.text) - len(text)
        held_out = document.held_out or document.content_hash == held_out_hash
        ids = tokenizer.encode(text, add_special_tokens=False).ids if text else []
        if not ids:
            continue
        limit = recipe.compression_threshold
        if limit is not None and not held_out and len(ids) >= limit * len(text):
            filtered += 1
            continue
        documents.append((held_out, np.array([*ids, SEP_ID], dtype=row_dtype(recipe.vocab_size))))
    return _Tokenised(documents, filtered, characters, cut)


@functools.lru_cache(maxsize=1)
def _worker_tokenizer(path: Path) -> tokenizers.Tokenizer:
    tokenizer = load_tokenizer(path)
    tokenizer.normalizer = tokenizers.normalizers.Sequence([])  # the spool is clean already
    return tokenizer


class RowPacker:
    """Cuts a stream of tokens into rows in a raw file."""

    def __init__(self, path: Path, recipe: Data, dtype: np.dtype):
        self.path = path
        self.counts = np.zeros(recipe.vocab_size, dtype=np.int64)
        self.tokens = self.documents = 0
        self._row_length = recipe.row_length
        self._vocab_size = recipe.vocab_size
        self._rest = np.empty(0, dtype=dtype)
        self._pending: list[np.ndarray] = []
        self._pending_size = 0
        self._file = open(path, "wb")

    def add(self, ids: np.ndarray) -> None:
        """Append one document."""
        self.documents += 1
        self._pending.append(ids)
        self._pending_size += len(ids)
        if self._pending_size >= 1 << 20:
            self._flush()

    def _flush(self) -> None:
        stream = np.concatenate([self._rest, *self._pending])
        whole = len(stream) // self._row_length * self._row_length
        stream[:whole].tofile(self._file)
        self.counts += np.bincount(stream[:whole], minlength=self._vocab_size)
        self.tokens += whole
        self._rest, self._pending, self._pending_size = stream[whole:].copy(), [], 0

    def close(self) -> None:
        """Write what is left, but for the last incomplete row."""
        self._flush()
        self._file.close()


# --- pass 4


def write_splits(
    packed: Packed,
    recipe: Data,
    tokenizer: tokenizers.Tokenizer,
    out: Path,
    scratch: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Order the training rows and write both splits as Arrow; returns rows and checksums."""
    dtype = row_dtype(recipe.vocab_size)
    key = make_key(recipe.order, tokenizer, packed.counts, recipe.seed)
    with progress.stage("order and write", "rows") as stage:
        train = ordered_blocks(packed.paths["train"], recipe.row_length, dtype, key, scratch)
        counts = np.zeros(recipe.vocab_size, dtype=np.int64)  # of the rows that max_rows leaves
        kept = counted(first_rows(train, recipe.max_rows), counts)
        rows, digest = write_rows(out / "train", kept, recipe.row_length, dtype, None, "train", stage.add)
        validation = read_blocks(packed.paths["validation"], recipe.row_length, dtype)
        validation_rows, validation_digest = write_rows(
            out / "validation", validation, recipe.row_length, dtype, None, "validation"
        )
    for name, count in (("training", rows), ("held-out", validation_rows)):
        if count == 0:
            raise UsageError(
                f"the sources are too small: not one {name} row of {recipe.row_length} tokens; add text"
                + (", or a larger validation file" if name == "held-out" else "")
            )
    return {
        "rows": rows,
        "tokens": rows * recipe.row_length,
        "validation_rows": validation_rows,
        "unigram_loss": unigram_loss(packed._replace(counts=counts), recipe, dtype),
        "sha256": {"train": digest, "validation": validation_digest},
    }


def first_rows(blocks: Iterable[np.ndarray], limit: int | None) -> Iterator[np.ndarray]:
    """The first rows of blocks."""
    for block in blocks:
        if limit is not None:
            block = block[:limit]
            limit -= len(block)
        yield block
        if limit == 0:
            return


def counted(blocks: Iterable[np.ndarray], counts: np.ndarray) -> Iterator[np.ndarray]:
    """The same blocks; their tokens are added to ``counts``."""
    for block in blocks:
        counts += np.bincount(block.reshape(-1), minlength=len(counts))
        yield block


def unigram_loss(packed: Packed, recipe: Data, dtype: np.dtype) -> float:
    """Cross-entropy (nats a token) of the held-out rows under the training rows' smoothed token frequencies.

    What a model gets that looks at no context: the floor that training has to beat.
    """
    smoothed = packed.counts + 1.0
    surprise = -np.log(smoothed / smoothed.sum())
    total = count = 0
    for block in read_blocks(packed.paths["validation"], recipe.row_length, dtype):
        total += float(surprise[block].sum())
        count += block.size
    return total / max(count, 1)
