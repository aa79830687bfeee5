"""The probe of a run's vectors: its regression is the minimum, and the command goes from a run to a line each."""

import json

import numpy as np
import pytest

from benchmarks import linear_probe
from tests.exchange.helpers import make_run, small_tokenizer
from tests.model.cases import small

GENERATOR = np.random.default_rng(3)


def test_the_weights_are_the_minimum():
    """The gradient of the loss, by finite differences of a formula written otherwise, vanishes."""
    x_RN, y_R = GENERATOR.normal(size=(60, 4)), GENERATOR.integers(0, 2, 60)
    w = linear_probe.fit(x_RN, y_R, 0.03)

    def loss(w):
        chance_R = 1 / (1 + np.exp(-(x_RN @ w[:4] + w[4])))
        return -np.log(np.where(y_R == 1, chance_R, 1 - chance_R)).mean() + 0.015 * (w[:4] ** 2).sum()

    for step in 1e-5 * np.eye(5):
        assert abs(loss(w + step) - loss(w - step)) / 2e-5 < 1e-4
    assert np.abs(w).max() > 0.05


def test_what_is_in_the_vectors_is_found():
    """One of many features decides; the folds ask for a penalty. Labels at random stay at chance."""
    x_RN = GENERATOR.normal(size=(1000, 100))
    y_R = (x_RN[:, 7] + 0.5 * GENERATOR.normal(size=1000) > 0).astype(int)
    train, validation = (x_RN[:150] * 5 + 1, y_R[:150]), (x_RN[150:] * 5 + 1, y_R[150:])
    found, penalty = linear_probe.probe(train, validation)
    assert penalty > linear_probe.PENALTIES[0] and found > 65
    chance, _ = linear_probe.probe(train, (validation[0], GENERATOR.permutation(validation[1])))
    assert 40 < chance < 60


def test_the_command(tmp_path, capsys):
    run = make_run(tmp_path / "runs" / "small", small("cram"), small_tokenizer())
    folder = tmp_path / "glue" / "sst2"
    folder.mkdir(parents=True)
    rows = "".join(f"{text}\t{label}\n" for text, label in (("the quick fox", 1), ("a lazy dog", 0)) * 10)
    (folder / "train.tsv").write_text("sentence\tlabel\n" + rows)
    options = ["--runs", str(run.path), "--task-dir", str(folder.parent), "--out", str(tmp_path / "probe.jsonl")]
    assert linear_probe.main(options) == 2
    assert "no sst2/train or sst2/validation" in capsys.readouterr().err
    (folder / "validation.tsv").write_text("sentence\tlabel\n" + rows)
    assert linear_probe.main([*options, "--max-train-rows", "15"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "probe.jsonl").read_text().splitlines()]
    assert [(line["weights"], line["vectors"], line["rows"]) for line in lines] == [
        (weights, kind, 15) for weights in ("pretrained", "fresh") for kind in ("embedding", "last states")
    ]
    assert all(line["accuracy"] == pytest.approx(100.0) for line in lines)  # two sentences, told apart by any vectors
