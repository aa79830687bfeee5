"""Finding a run again, by name, by path or as the latest, and opening what lies in it."""

import json
import os

import pytest
import torch

from cramming_train.checkpoint import save_checkpoint
from cramming_train.data.special_tokens import SPECIAL_TOKENS
from cramming_train.errors import RunError, UsageError
from cramming_train.model import build_model
from cramming_train.recipes import apply_overrides, get_recipe
from cramming_train.runs import Run, find_run, latest_run, list_runs

RECIPE = apply_overrides(
    get_recipe("bert-tiny"), ["architecture.layers=1", "architecture.hidden=16", "architecture.ffn_hidden=24"]
)


def make_run(folder, age=0, **files):
    """A run's folder of which everything was last written ``age`` seconds before a fixed time."""
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps({"recipe": RECIPE.to_dict(), "seed": 3, "data": {"path": "gone"}}))
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    for path in folder.iterdir():
        os.utime(path, (1e9 - age, 1e9 - age))
    return folder


@pytest.fixture
def runs(tmp_path):
    for age, name in ((30, "beta"), (10, "alpha"), (20, "gamma")):
        make_run(tmp_path / "runs" / name, age)
    (tmp_path / "runs" / "notes").mkdir()  # not a run
    (tmp_path / "runs" / "file.txt").write_text("nor this")
    return tmp_path / "runs"


def test_by_name_and_by_path(runs, tmp_path, monkeypatch):
    assert find_run("beta", runs) == Run(runs / "beta") and find_run("beta", runs).name == "beta"
    elsewhere = make_run(tmp_path / "elsewhere" / "delta")
    assert find_run(str(elsewhere), runs) == Run(elsewhere)
    monkeypatch.chdir(tmp_path)
    assert find_run("elsewhere/delta", runs).path == elsewhere  # absolute, whatever was given
    assert find_run("beta").path == runs / "beta"  # ./runs is the default


def test_a_name_comes_before_a_path(runs, tmp_path, monkeypatch):
    make_run(tmp_path / "beta")
    monkeypatch.chdir(tmp_path)
    assert find_run("beta", runs).path == runs / "beta"


def test_the_latest_is_the_last_written(runs):
    assert [run.name for run in list_runs(runs)] == ["alpha", "gamma", "beta"]
    assert find_run("latest", runs).name == latest_run(runs).name == "alpha"
    (runs / "beta" / "log.jsonl").write_text("{}\n")  # it goes on
    assert latest_run(runs).name == "beta"
    os.utime(runs / "beta" / "log.jsonl", (1e9 - 15, 1e9 - 15))
    assert [run.name for run in list_runs(runs)] == ["alpha", "beta", "gamma"]
    (runs / "gamma" / "checkpoints" / "step-00000001").mkdir(parents=True)
    assert latest_run(runs).name == "gamma"


def one_line(error):
    message = str(error.value)
    assert message and "\n" not in message
    return message


@pytest.mark.parametrize("spec", ["betta", "notes", "file.txt", "nowhere/at/all", "two\nlines"])
def test_no_such_run(runs, spec):
    with pytest.raises(UsageError) as error:
        find_run(spec, runs)
    message = one_line(error)
    assert repr(spec) in message and "alpha, gamma, beta" in message and str(runs) in message


def test_no_run_at_all(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        assert list_runs(folder) == []
        with pytest.raises(UsageError) as error:
            find_run("latest", folder)
        assert str(folder) in one_line(error) and "cramming_train.pretrain" in one_line(error)
        with pytest.raises(UsageError) as error:
            find_run("beta", folder)
        assert "(there: none)" in one_line(error)


def test_only_some_of_many_runs_are_listed(tmp_path):
    for number in range(12):
        make_run(tmp_path / f"run-{number:02}", age=number)
    with pytest.raises(UsageError) as error:
        find_run("other", tmp_path)
    assert "run-07" in one_line(error) and "run-08" not in one_line(error)


def test_what_lies_in_a_run(runs):
    run = find_run("beta", runs)
    assert run.recipe == RECIPE and run.settings["seed"] == 3
    assert run.log == runs / "beta" / "log.jsonl" and run.checkpoints == runs / "beta" / "checkpoints"
    assert run.summary is None
    (runs / "beta" / "summary.json").write_text('{"tokens": 7}')
    assert run.summary == {"tokens": 7}


@pytest.mark.parametrize("content", [
    "", "{", '{"recipe": ', '{"seed": 1}', '{"recipe": null}', '{"recipe": {"name": "x"}}', "[]", "3",
])  # fmt: skip
def test_a_damaged_recipe_is_one_line(runs, content):
    (runs / "beta" / "recipe.json").write_text(content)
    with pytest.raises(RunError) as error:
        find_run("beta", runs).recipe  # noqa: B018
    assert str(runs / "beta" / "recipe.json") in one_line(error)


def test_other_damage_is_one_line_too(runs):
    run = find_run("beta", runs)
    (run.path / "summary.json").write_text('{"tokens": ')
    for action, words in (
        (lambda: run.summary, "summary.json: not valid JSON"),
        (run.tokenizer, "tokenizer.json: the run's tokenizer is missing"),
        (run.load_model, "no checkpoint in"),
        (lambda: Run(runs / "notes").settings, "recipe.json: the file is missing"),
    ):
        with pytest.raises(RunError) as error:
            action()
        assert words in one_line(error)
    with pytest.raises(UsageError) as error:
        run.prepared()
    assert "gone: not a folder made by python -m cramming_train.prepare" in one_line(error)


def test_the_model_of_the_newest_checkpoint(runs):
    run = find_run("beta", runs)
    models = [build_model(RECIPE.architecture, 67, seed=seed) for seed in (1, 2)]
    for step, model in zip((9, 10), models, strict=True):
        save_checkpoint(run.checkpoints, step, model, torch.optim.AdamW(model.parameters()), {"vocab_size": 67})
    loaded = run.load_model()
    assert not loaded.training and loaded.vocab_size == 67
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), models[1].parameters(), strict=True))
    ids_T, cu_seqlens = torch.arange(7, 20), torch.tensor([0, 13], dtype=torch.int32)
    with torch.no_grad():
        assert torch.equal(loaded.encoder(ids_T, cu_seqlens, 13), models[1].encoder(ids_T, cu_seqlens, 13))


def test_weights_of_another_architecture_are_refused(runs):
    run = find_run("beta", runs)
    other = build_model(get_recipe("bert-tiny").architecture, 67, seed=0)
    save_checkpoint(run.checkpoints, 1, other, torch.optim.AdamW(other.parameters()), {"vocab_size": 67})
    with pytest.raises(RunError) as error:
        run.load_model()
    assert "do not fit the recipe's architecture" in one_line(error)


def test_the_tokenizer_is_read_as_it_was_written(runs):
    import tokenizers

    vocabulary = {token: number for number, token in enumerate((*SPECIAL_TOKENS, "ab", "##c"))}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="<unk>"))
    made.save(str(runs / "beta" / "tokenizer.json"))
    assert find_run("beta", runs).tokenizer().encode("abc").ids == [7, 8]
