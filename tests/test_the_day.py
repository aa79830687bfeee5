"""The whole path as a user walks it, on real text: prepare, pretrain, evaluate, report. A minute or two."""

import json
import shutil
from pathlib import Path
from statistics import median

import pytest

from tests.conftest import SHARED
from tests.evaluation.conftest import write_tsv
from tests.training.helpers import run, summary

TOKENS = 28_000
MARGIN = 0.05  # nats below the unigram model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("day")


@pytest.fixture(scope="module")
def day(place) -> Path:
    """`cram-mini` trained on a fixed number of tokens, of textbooks and speeches; the run's folder."""
    corpus = SHARED / "data" / "corpus"
    sources = [corpus.resolve() / f"{name}-000.jsonl.gz" for name in ("openstax", "speeches")]
    sources = sources if corpus.is_dir() else ["embedded"]
    prepared = run("prepare", "--data", *sources, "--out", "rows", tmp_path=place)
    assert prepared.returncode == 0, prepared.stderr
    trained = run(
        "pretrain", "--recipe", "cram-mini", "--data", "rows", "--tokens", TOKENS, "--name", "day", tmp_path=place
    )
    assert trained.returncode == 0, trained.stderr
    return place / "runs" / "day"


def test_it_learns_more_than_word_frequencies(day):
    content = summary(day)
    assert content["tokens"] >= TOKENS and content["parameters"] == 11_113_472
    assert content["validation_loss"] < content["data"]["unigram_loss"] - MARGIN
    steps = [json.loads(line) for line in (day / "log.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in steps if event["event"] == "step"]
    assert losses[0] == pytest.approx(content["data"]["unigram_loss"], abs=0.5), "it begins as the unigram model"


def test_the_machine_is_used(day):
    """Half of the machine's own matrix rate would do on a quiet machine; a busy one gets some room.

    Of steps alone: in so short a run half of the time goes into the nine validations.
    """
    events = [json.loads(line) for line in (day / "log.jsonl").read_text().splitlines()]
    assert median(event["model_flops_utilization"] for event in events if event["event"] == "step") > 0.25


def test_evaluate_and_report_follow(day, place):
    """The held-out loss is that of the end of training; RTE's first rows stand for a task of GLUE."""
    judged = run("evaluate", "--run", "day", "--suite", "mlm", tmp_path=place)
    assert judged.returncode == 0, judged.stderr
    content = json.loads((day / "evaluation" / "mlm.json").read_text())
    assert content["loss"] == pytest.approx(summary(day)["validation_loss"], abs=0.1)

    pairs = [(f"sentence {n} says that word {n % 7}", f"word {n % 7} is said by {n}", n % 2) for n in range(64)]
    columns = {name: [pair[i] for pair in pairs] for i, name in enumerate(("sentence1", "sentence2", "label"))}
    for split in ("train", "validation"):
        write_tsv(place / "glue" / "rte" / f"{split}.tsv.gz", columns)
    tuned = run("evaluate", "--tasks", "rte", "--task-dir", "glue", "--seeds", 1, "--epochs", 1, tmp_path=place)
    assert tuned.returncode == 0, tuned.stderr
    assert "INCOMPLETE" in tuned.stdout and "GLUE mean: none" in tuned.stdout
    assert "judged on rte" in summary(day)["rules"][4]["why"]

    shutil.rmtree(day / "report")
    assert run("report", tmp_path=place).returncode == 0
    page = (day / "report" / "report.html").read_text()
    assert all(f"<h2>{title}</h2>" in page for title in ("GLUE", "Loss", "Schedule", "Throughput", "Gradient norm"))
