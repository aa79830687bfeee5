"""The pretrain command as a user types it: runs, resumes, refuses."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.training.helpers import TINY, environment, final_tensors, run, run_apart, summary


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def finished(place, documentation_text):
    """One finished run, by the command."""
    result = run(
        "pretrain", "--tokens", 40_000, "--data", documentation_text, "--name", "first", "--set", *TINY, tmp_path=place
    )
    assert result.returncode == 0, result.stderr
    return place / "runs" / "first", result


def test_a_run_is_a_folder_with_everything_in_it(finished):
    folder, result = finished
    for name in ("recipe.json", "tokenizer.json", "log.jsonl", "summary.json", "certificate.json", "checkpoints",
                 "report/report.html", "report/README.md"):  # fmt: skip
        assert (folder / name).exists(), name
    content = summary(folder)
    for key in ("name", "recipe", "device", "seed", "budget_seconds", "train_seconds", "tokens", "optimizer_steps",
                "tokens_per_second", "model_flops_utilization", "parameters", "train_loss", "validation_loss",
                "validation_accuracy", "data", "kernels", "rules", "hardware", "versions"):  # fmt: skip
        assert content[key] is not None, key
    assert {"source", "fingerprint", "rows"} <= content["data"].keys()
    assert content["kernels"]["mlm_loss"] == "reference" and content["seed"] == 0
    assert len(content["rules"]) == 5 and all(rule["why"] for rule in content["rules"])
    certificate = json.loads((folder / "certificate.json").read_text())
    assert [rule["state"] for rule in certificate["rules"]] == ["kept", "kept", "open", "kept", "open"]
    assert certificate["data"]["sha256"]["train"] and certificate["recipe"]["training"]["batch_size"] == 8
    assert 40_000 <= content["tokens"] < 40_000 + 8 * 32
    assert "validation loss" in result.stdout and "Traceback" not in result.stderr
    assert json.loads((folder / "recipe.json").read_text())["recipe"]["architecture"]["layers"] == 2


def test_a_log_file_has_no_control_characters(finished):
    """And one line a message, however long; steps are as short there as on a terminal."""
    _, result = finished
    for text in (result.stdout, result.stderr):
        assert text and not re.search(r"[^\n\x20-\uffff]", text)
    steps = [line for line in result.stderr.splitlines() if "tok/s" in line]
    assert steps and all(len(line) < 80 for line in steps)
    assert len([line for line in result.stdout.splitlines() if line.startswith("  rule ")]) == 5


def test_the_same_seed_twice_gives_the_same_bits(finished, place, documentation_text):
    folder, _ = finished
    arguments = ["--tokens", 40_000, "--data", documentation_text, "--set", *TINY]
    assert run_apart("pretrain", *arguments, "--name", "again", tmp_path=place).returncode == 0
    assert run("pretrain", *arguments, "--name", "other", "--seed", 1, tmp_path=place, report=False).returncode == 0
    assert final_tensors(folder) == final_tensors(place / "runs" / "again")
    assert final_tensors(folder) != final_tensors(place / "runs" / "other")


def test_a_wall_clock_budget_is_kept(place, documentation_text):
    result = run(
        "pretrain", "--hours", 0.004, "--data", documentation_text, "--name", "timed", "--set", *TINY, tmp_path=place,
        report=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    content = summary(place / "runs" / "timed")
    assert 0.5 * 14.4 < content["train_seconds"] <= 14.4
    assert content["rules"][3]["kept"]


def test_without_network_or_data_it_runs_on_the_embedded_text_and_says_so(place):
    """Of one package, for speed; tests/data/test_embedded.py reads what every machine has."""
    script = (
        "import pathlib, sys, torch; from cramming_train import pretrain; from cramming_train.data import embedded;"
        "embedded._roots = lambda: [pathlib.Path(torch.__file__).parent / 'nn'];"
        "sys.exit(pretrain.main(sys.argv[1:]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "--tokens", "5000", "--name", "embedded", "--set", *TINY, "data.seed=1"],
        env=environment(place), cwd=place, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "DEMONSTRATION DATA" in result.stderr and "HF_HUB_OFFLINE" in result.stderr
    content = summary(place / "runs" / "embedded")
    assert any("DEMONSTRATION" in notice for notice in content["data"]["notices"])
    assert content["data"]["source_kind"] == "embedded"


def test_two_processes_train_one_model(finished, place, documentation_text):
    arguments = ["--tokens", 40_000, "--data", documentation_text, "--name", "pair", "--set", *TINY]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29531", "-m"]
    result = subprocess.run(
        [*launcher, "cramming_train.pretrain", *map(str, [*arguments, "training.micro_batch_size=4"])],
        env=environment(place), cwd=place, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    pair, single = summary(place / "runs" / "pair"), summary(finished[0])
    assert pair["processes"] == 2 and not pair["rules"][3]["kept"] and "2 processes" in pair["rules"][3]["why"]
    # the same rows and the same batch; only the masks are drawn in other groups
    assert pair["tokens"] == single["tokens"] and pair["optimizer_steps"] == single["optimizer_steps"]
    assert abs(pair["validation_loss"] - single["validation_loss"]) < 0.15


def test_dry_run_shows_the_recipe_and_writes_nothing(tmp_path):
    result = run("pretrain", "--dry-run", "--recipe", "crammed-bert", "--hours", 2, tmp_path=tmp_path)
    assert result.returncode == 0 and not list(tmp_path.iterdir())
    assert "119,589,889" in result.stdout and "622.9 M a token" in result.stdout
    assert re.search(r"predicted +\d[\d,.]* tokens/s .*128 rows a micro-batch", result.stdout)
    assert json.loads(result.stdout[: result.stdout.index("\ndevice")])["training"]["name"] == "bert-o4"


BAD = [
    (["--hours", "-1"], 2, "--hours -1"),
    (["--hours", "nan"], 2, "--hours nan"),
    (["--tokens", "0"], 2, "--tokens 0"),
    (["--recipe", "crammed-brt"], 2, "did you mean 'crammed-bert'"),
    (["--set", "training.bach_size=3"], 2, "did you mean"),
    (["--set", "batch_size=3"], 2, "say which"),
    (["--set", "training.batch_size=many"], 2, "want int"),
    (["--set", "training.batch_size"], 2, "key=value"),
    (["--set", "architecture.heads=7"], 2, "multiple of heads"),
    (["--set", "data.row_length=4096"], 2, "max_length"),
    (["--device", "tpu"], 2, "--device tpu"),
    (["--device", "cuda:9"], 2, "CUDA devices"),
    (["--data", "nowhere.txt"], 2, "no such file"),
    (["--data", "empty.txt"], 2, "empty"),
    (["--data", "binary.txt"], 2, "binary"),
    (["--data", "good.jsonl", "--text-column", "body"], 2, "no column 'body'"),
    (["--data", "good.jsonl"], 2, "too small for a vocabulary"),
    (["--out", "good.jsonl", "--data", "good.jsonl"], 2, "cannot be written"),
    (["--name", "a/b"], 2, "--name a/b"),
    (["--resume"], 2, "no run in"),
    (["--resume", "--name", "nobody"], 2, "no run named 'nobody'"),
    (["--nonsense"], 2, "unrecognized arguments"),
]


@pytest.mark.parametrize(("arguments", "status", "words"), BAD, ids=[" ".join(case[0]) for case in BAD])
def test_bad_input_is_one_clear_line(arguments, status, words, tmp_path, capfd, monkeypatch):
    """In this process, for speed: the command's own entry point, which is all that ``-m`` calls."""
    from cramming_train.pretrain import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRAMMING_CACHE", str(tmp_path / "cache"))
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\x7fELF\0\0\0" * 100)
    (tmp_path / "good.jsonl").write_text(
        "".join(json.dumps({"text": f"word{i} and some more"}) + "\n" for i in range(50))
    )
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse
        code = stop.code
    captured = capfd.readouterr()
    assert code == status
    error = [line for line in captured.err.splitlines() if "error: " in line]
    assert len(error) == 1 and words in error[0] and "Traceback" not in captured.err
    assert not list(tmp_path.glob("runs/*/*")) and not list((tmp_path / "cache").glob("prepared-*"))


def test_resume_keeps_the_runs_settings(finished, place):
    folder, _ = finished
    result = run("pretrain", "--resume", "--name", "first", tmp_path=place)
    assert result.returncode == 2 and "used up its budget" in result.stderr
    (folder / "summary.json").rename(folder / "summary.kept")
    try:
        for extra, words in (
            (["--tokens", 5], "--tokens"),
            (["--seed", 8], "--seed"),
            (["--recipe", "bert-tiny"], "--recipe"),
        ):
            result = run("pretrain", "--resume", "--name", "first", *extra, tmp_path=place)
            assert result.returncode == 2 and words in result.stderr, result.stderr
    finally:
        (folder / "summary.kept").rename(folder / "summary.json")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX file limits")
def test_a_full_disk_while_preparing_is_one_line(documentation_text, tmp_path):
    """A limit on file size stands in for a full disk: both fail in write()."""
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        "from cramming_train.prepare import main; sys.exit(main(sys.argv[1:]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "--data", str(documentation_text), "--out", str(tmp_path / "out"), "--set",
         "data.vocab_size=1024"],
        env=environment(tmp_path), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []
