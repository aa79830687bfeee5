"""Peak memory does not grow with the corpus: measured at two sizes, with the pieces of the work made small."""

import json
import subprocess
import sys

import pytest

from tests.data.helpers import Writer, encode
from tests.training.helpers import environment

# Batches, segments and buckets are small, so that the fixed part of the memory is reached by the smaller corpus already
_MEASURE = """
import json, resource, sys
from pathlib import Path
from cramming_train.data import ordering, pipeline
from cramming_train.data.prepare import prepare_data
from cramming_train.recipes import Data

pipeline.BATCH_CHARACTERS = 1 << 16
ordering.BUCKET_BYTES, ordering.BLOCK_ROWS = 1 << 19, 1 << 10
spool = pipeline.DocumentSpool
pipeline.DocumentSpool = lambda path: spool(path, segment_bytes=1 << 17)
source, out, processes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
recipe = Data("m", vocab_size=1024, row_length=64, tokenizer_characters=500_000, compression_threshold=0.9,
              order="unigram", deduplicate="paragraph", validation_fraction=0.01)
prepared = prepare_data([source], recipe, out=out, processes=processes, progress=False)
# not getrusage's: that of a fresh process begins with the peak of the one that started it
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps({"parent": peak * 1024, "worker": workers * 1024, "tokens": prepared.metadata["tokens"]}))
"""
SMALL, LARGE = 5_500_000, 16_500_000


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Two corpora of one kind; numbered, so that deduplication has as many different paragraphs to remember."""
    folder = tmp_path_factory.mktemp("memory")
    base = [text.replace("\n\n", " ") for text in Writer(171).documents(300)]
    paths = {}
    for size in (SMALL, LARGE):
        paths[size] = folder / f"{size}.jsonl"
        with open(paths[size], "wb") as file:
            number = 0
            while file.tell() < size:
                file.write(encode([f"{number} {text}\n\n{text} {number}" for text in base], ".jsonl"))
                number += 1
    return paths


def measure(source, tmp_path, processes: int) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(source), str(tmp_path / "out"), str(processes)],
        env={**environment(tmp_path), "MALLOC_ARENA_MAX": "1"}, cwd=tmp_path, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("processes", [2, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_peak_does_not_grow_with_the_corpus(processes, sources, tmp_path):
    """Any pass that held the text would grow by all of it; a third of that is the noise of allocators."""
    peaks = {}
    for size, source in sources.items():
        folder = tmp_path / str(size)
        folder.mkdir()
        peaks[size] = measure(source, folder, processes)
    assert peaks[LARGE]["tokens"] > 2.5 * peaks[SMALL]["tokens"]
    for who in ("parent", "worker")[:processes]:
        grown = peaks[LARGE][who] - peaks[SMALL][who]
        assert grown < (LARGE - SMALL) / 3, f"{who}: {grown / 1e6:.1f} MB more for {(LARGE - SMALL) / 1e6:.0f} MB"
