"""``cram`` is sized by its budget: the law, what it makes of a machine, and who may overrule it."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from benchmarks import scaling_law
from cramming_train import scaling
from cramming_train.errors import UsageError
from cramming_train.pretrain import build_parser
from cramming_train.rates import Machine
from cramming_train.scaling import LADDER, LAW_FILE, Law, Size, batch_rows, choose, is_sized, laws, sized
from cramming_train.starting import new_settings
from tests.training.helpers import run


def machine(flops: float = 1e11, memory: int | None = None) -> Machine:
    return Machine("a machine", "cpu", lambda dtype: flops, flops / 2, memory, "made up")


def test_the_law_is_that_of_the_committed_runs():
    cells = scaling_law.of_runs(scaling_law.runs())
    content = json.loads(LAW_FILE.read_text())
    law, others = laws()
    assert content["law"] == list(law) == pytest.approx(list(scaling_law.fit(*cells)), rel=1e-3)
    again = scaling_law.ensemble(*cells)
    assert len(again) == len(others) == scaling_law.MEMBERS
    assert np.array(content["ensemble"]) == pytest.approx(np.array(again), rel=1e-2)


def test_the_command_stores_what_is_committed_and_a_picture(tmp_path, monkeypatch, capsys):
    cells = (scaling_law.FOLDER / "cells.jsonl").read_text()
    monkeypatch.setattr(scaling_law, "runs", lambda: [json.loads(line) for line in cells.splitlines()])
    monkeypatch.setattr(scaling_law, "FOLDER", tmp_path)
    monkeypatch.setattr(scaling_law, "LAW_FILE", tmp_path / "law.json")
    assert scaling_law.main([]) == 0 and not (tmp_path / "law.json").exists()
    assert scaling_law.main(["--write"]) == 0
    made, committed = (json.loads(path.read_text()) for path in (tmp_path / "law.json", LAW_FILE))
    assert made["law"] == pytest.approx(committed["law"], rel=1e-3)
    assert (tmp_path / "law.png").stat().st_size > 10_000
    assert "8 layers of  384,   250,880 tokens: 5.688" in capsys.readouterr().out


def test_a_law_is_found_again_from_runs_that_follow_it():
    law = Law(1.5, 30.0, 0.3, 90.0, 0.25)
    sizes, tokens = np.meshgrid([size.parameters for size in LADDER], np.geomspace(1e5, 1e10, 12))
    losses = law.loss(sizes, tokens)
    found = scaling_law.fit(sizes.ravel(), tokens.ravel(), losses.ravel())
    assert found.loss(sizes, tokens) == pytest.approx(losses, abs=0.01)


def test_parameters_are_those_of_the_blocks_matrices():
    from cramming_train.model import MaskedLM

    for size in LADDER:
        with torch.device("meta"):
            model = MaskedLM(sized(size, 1e6).architecture, 1000)
        assert sum(p.numel() for p in model.encoder.blocks.parameters() if p.dim() == 2) == size.parameters


def test_balanced_is_where_an_operation_helps_either_way_alike():
    law, tokens = laws()[0], 1e6
    n, eps = law.balanced(tokens), 1e-4
    larger = law.loss(n * (1 + eps), tokens) - law.loss(n, tokens)
    longer = law.loss(n, tokens * (1 + eps)) - law.loss(n, tokens)
    assert larger == pytest.approx(longer, rel=1e-2) and larger < 0


def test_more_time_never_gets_a_smaller_model_or_batch():
    found = [choose(machine(), hours) for hours in (0.01, 0.1, 24, 500)]
    order = [LADDER.index(choice.size) for choice in found]
    assert order == sorted(order) and order[0] < order[-1]
    batches = [choice.recipe.training.batch_size for choice in found]
    assert batches == sorted(batches)
    for choice in found:
        architecture = choice.recipe.architecture
        assert (architecture.layers, architecture.hidden) == choice.size
        assert architecture.hidden == 64 * architecture.heads and architecture.ffn_hidden == 4 * architecture.hidden
        assert choice.losses[0] < choice.loss < choice.losses[1]
        low, high = map(LADDER.index, choice.allowed)
        assert low <= LADDER.index(choice.size) <= high
        assert str(choice.size) in str(choice) and "extrapolation" in choice.expectation


def test_no_other_size_is_expected_to_end_lower():
    choice, (_, others) = choose(machine(), 1.0), laws()
    tokens = scaling._tokens_within(machine(), 1.0)
    means = {size: np.mean([one.loss(size.parameters, count) for one in others]) for size, count in tokens.items()}
    assert list(tokens) == list(LADDER) and choice.size == min(means, key=means.get)
    assert choice.tokens == tokens[choice.size]


def test_memory_bounds_the_size(monkeypatch):
    monkeypatch.setattr(scaling, "LADDER", LADDER[:3])
    large, small = choose(machine(1e15), 24.0), choose(machine(1e15, memory=3 * 10**8), 24.0)
    assert LADDER.index(small.size) < LADDER.index(large.size) == 2
    monkeypatch.setattr(scaling, "LADDER", LADDER[:1])
    with pytest.raises(UsageError, match="does not hold"):
        choose(machine(memory=10**6), 24.0)


def test_a_budget_of_tokens_gets_what_suits_them_whatever_the_time():
    found = [choose(machine(1e15), 24.0, tokens) for tokens in (10_000, 10**6, 10**9)]
    order = [LADDER.index(choice.size) for choice in found]
    assert order == sorted(order) and order[0] == 0 and order[-1] > order[0]
    assert [choice.tokens for choice in found][:3] == [10_000, 10**6, 10**9]


def test_batches():
    assert batch_rows(scaling.BATCH_BUDGET, 128) * 128 == scaling.BATCH_TOKENS
    rows = [batch_rows(tokens, 128) for tokens in np.geomspace(1e3, 1e12, 50)]
    assert rows == sorted(rows) and all(n & (n - 1) == 0 for n in rows) and rows[0] == 4
    assert sized(Size(4, 256), 1e5).training.matrix_interval == 2
    large = sized(Size(4, 256), 1e11).training
    assert large.matrix_interval == 1 and large.micro_batch_size < large.batch_size


@pytest.mark.parametrize(
    ("name", "settings", "sizes"),
    [
        ("cram", [], True),
        ("cram", ["training.peak_lr=1e-3", "architecture.window=8"], True),
        ("cram", ["architecture.layers=3"], False),
        ("cram", ["training.batch_size=32"], False),
        ("cram", ["architecture=cram-mini"], False),
        ("cram", ["training=cram-mini"], False),
        ("cram-mini", [], False),
    ],
)
def test_what_is_sized(name, settings, sizes):
    assert is_sized(name, settings) == sizes


def test_settings_are_of_the_chosen_size(monkeypatch):
    monkeypatch.setattr("cramming_train.starting.this_machine", lambda device: machine())
    arguments = build_parser().parse_args(["--hours", "0.1", "--set", "training.peak_lr=1e-3"])
    settings = new_settings(arguments, torch.device("cpu"))
    choice = choose(machine(), 0.1)
    assert settings.sizing == str(choice)
    training = dataclasses.replace(choice.recipe.training, peak_lr=1e-3)
    assert settings.recipe == dataclasses.replace(choice.recipe, training=training)


def test_a_run_by_default_is_sized_and_resumed(documentation_text, tmp_path, monkeypatch):
    """With nothing said of size; a resumed run is told nothing else than it is, and weights keep their size."""
    first = ["--tokens", 3000, "--data", documentation_text, "--name", "first"]
    few = ["--set", "data.vocab_size=1024", "data.row_length=32", "data.max_rows=2000"]
    assert run("pretrain", *first, *few, tmp_path=tmp_path, report=False).returncode == 0
    folder = tmp_path / "runs" / "first"
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    notices = [event["message"] for event in events if event["event"] == "notice"]
    architecture = json.loads((folder / "recipe.json").read_text())["recipe"]["architecture"]
    size = Size(architecture["layers"], architecture["hidden"])
    assert size in LADDER and any(f"cram: {size}, batches of" in notice for notice in notices)
    (folder / "summary.json").unlink()
    resume = ["--resume", "--name", "first", "--recipe", "cram"]
    assert run("pretrain", *resume, *few, tmp_path=tmp_path, report=False).returncode == 0
    refused = run("pretrain", *resume, "--set", "training.peak_lr=5e-3", tmp_path=tmp_path, report=False)
    assert refused.returncode == 2
    monkeypatch.setattr("cramming_train.starting.this_machine", lambda device: machine(1e15))
    long = ["--tokens", "1000000000", "--out", str(tmp_path / "runs")]
    given, anew = (
        new_settings(build_parser().parse_args([*long, *words]), torch.device("cpu")).recipe
        for words in (["--init-from", "first"], [])
    )
    assert Size(given.architecture.layers, given.architecture.hidden) == size and given.training == anew.training
    assert (anew.architecture.layers, anew.architecture.hidden) > size
