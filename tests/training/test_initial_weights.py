"""pretrain --init-from: another run's weights, of the same architecture and vocabulary, and said to be so."""

import json
import shutil

import pytest
import torch

from cramming_train.pretrain import main
from cramming_train.report import main as report
from cramming_train.runs import Run
from tests.data.helpers import Writer, prepare, small, write
from tests.training.helpers import TINY


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Prepared rows of random words."""
    folder = tmp_path_factory.mktemp("data")
    return prepare(write(folder / "text.jsonl", Writer(31).documents(200)), small(), folder)


@pytest.fixture
def quick(monkeypatch):
    """``main`` without what takes seconds and is not looked at here: calibration and pictures."""

    def call(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr("cramming_train.pretrain.gemm_flops_per_second", lambda *_: 1e9)
            patch.setattr("cramming_train.report.write_report", lambda _: None)
            return main([*map(str, arguments)])

    return call


@pytest.fixture
def pretrain(place, rows, quick):
    sizes = [f"data.vocab_size={rows.vocab_size}", f"data.row_length={rows.train.row_length}"]

    def call(name, *arguments, settings=()):
        data = ["--recipe", "crammed-bert-mini", "--data", rows.path, "--out", place, "--tokens", 1024, "--name", name]
        return quick(*data, *arguments, "--set", *TINY, *sizes, *settings)

    return call


@pytest.fixture
def first(place, pretrain):
    if not (place / "first").exists():
        assert pretrain("first") == 0
    return Run(place / "first")


def test_training_goes_on_from_the_weights(first, place, pretrain, capsys):
    """With a learning rate of nearly nothing they are what they were."""
    assert pretrain("second", "--init-from", "first", "--seed", "5", settings=["training.peak_lr=1e-12"]) == 0
    second = Run(place / "second")
    before, after = first.load_model().state_dict(), second.load_model().state_dict()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-6, rtol=0)
    fresh = first.load_model().state_dict()
    assert all(fresh[name].equal(before[name]) for name in before)  # the first run is left as it was
    checkpoint = str(sorted(first.checkpoints.glob("step-*"))[-1])
    assert second.summary["init_from"] == second.settings["init_from"] == checkpoint
    assert first.summary["init_from"] is None
    rules = second.summary["rules"]
    assert [rule["kept"] for rule in rules] == [False, False, None, True, None]
    assert rules[0]["why"] == f"weights imported from {checkpoint}"
    assert "rule 1 broken" in capsys.readouterr().out
    pytest.importorskip("matplotlib")
    assert report(["--run", "second", "--out", str(place)]) == 0
    assert f"eights imported from {checkpoint}" in (second.path / "report" / "report.html").read_text()


def test_the_unigram_bias_does_not_come_over_the_weights(first, place, pretrain):
    settings = ["architecture.decoder_bias=true", "training.peak_lr=1e-12"]
    assert pretrain("biased", settings=[*settings, "training.unigram_bias=true"]) == 0
    bias = Run(place / "biased").load_model().decoder_bias.detach()
    assert bias.std() > 0.1
    assert pretrain("plain", settings=settings) == 0
    assert Run(place / "plain").load_model().decoder_bias.abs().max() < 1e-6
    assert pretrain("started", "--init-from", "plain", settings=[*settings, "training.unigram_bias=true"]) == 0
    assert Run(place / "started").load_model().decoder_bias.abs().max() < 1e-6


def test_a_resumed_run_begins_from_the_same_weights(first, place, pretrain, quick, capsys):
    """Interrupted before its first checkpoint; it names its beginning itself, and keeps to it."""
    settings = ["training.peak_lr=1e-12"]
    assert pretrain("whole", "--init-from", "first", settings=settings) == 0
    shutil.copytree(place / "whole", place / "halted")
    shutil.rmtree(place / "halted" / "checkpoints")
    for file in ("summary.json", "log.jsonl"):
        (place / "halted" / file).unlink()
    resume = ["--resume", "--name", "halted", "--out", place]
    assert quick(*resume, "--init-from", "whole") == 2
    assert "--init-from" in capsys.readouterr().err
    assert quick(*resume, "--init-from", "first") == 0
    whole, halted = Run(place / "whole").load_model().state_dict(), Run(place / "halted").load_model().state_dict()
    assert all(whole[name].equal(halted[name]) for name in whole)
    # once it has a checkpoint of its own, it needs the other run no more
    late = shutil.copytree(place / "halted", place / "late")
    (late / "summary.json").unlink()
    stored = json.loads((late / "recipe.json").read_text())
    (late / "recipe.json").write_text(json.dumps({**stored, "init_from": "/gone/checkpoints/step-00000001"}))
    assert quick("--resume", "--name", "late", "--out", place) == 0


def test_other_architectures_and_vocabularies_are_refused(first, place, pretrain, capsys):
    def refused(words, *arguments, settings=()):
        assert pretrain("never", *arguments, settings=settings) == 2
        error = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
        assert len(error) == 1 and words in error[0], error
        assert not (place / "never").exists()

    refused("no run named 'nobody'", "--init-from", "nobody")
    refused(
        "its architecture.ffn_hidden is 64, this run's 96",
        "--init-from",
        "first",
        settings=["architecture.ffn_hidden=96"],
    )
    refused("its architecture.window is None", "--init-from", "first", settings=["architecture.window=4"])
    other = shutil.copytree(first.path, place / "other")
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    a, b = list(vocabulary)[20:22]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (other / "tokenizer.json").write_text(json.dumps(content))
    refused("its vocabulary is not that of this run's data", "--init-from", "other")
    shutil.rmtree(other / "checkpoints")
    (other / "checkpoints").mkdir()
    assert pretrain("never", "--init-from", "other") == 1 and "no checkpoint" in capsys.readouterr().err
