"""The plan command as a user types it, and the rates it stands on."""

import json
import re

import pytest
import torch

import cramming_train.rates as rates
from cramming_train.calibration import copy_bytes_per_second, gemm_flops_per_second
from cramming_train.parts import PARTS
from cramming_train.plan import amount, main
from cramming_train.rates import tabulated
from cramming_train.recipes import BUNDLES
from cramming_train.scaling import choose
from tests.training.helpers import run_apart

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick_measurements(monkeypatch):
    """Rates of this machine need not be measured anew for each call of the command within this process."""
    monkeypatch.setattr(rates, "gemm_flops_per_second", lambda device, dtype: 1e11)
    monkeypatch.setattr(rates, "copy_bytes_per_second", lambda device: 2e10)


def test_every_recipe_on_a_named_part(capsys, tmp_path):
    path = tmp_path / "plan.jsonl"
    assert main(["--hours", "24", "--gpu", "rtx3090", "--json", str(path)]) == 0
    shown = capsys.readouterr().out
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["recipe"] for record in records] == list(BUNDLES)
    for record in records:
        (line,) = (line for line in shown.splitlines() if line.split()[0] == record["recipe"])
        assert f"{record['tokens_per_second']:,.0f}" in line and f"{record['optimizer_steps']:,}" in line
        assert f"{record['memory_bytes'] / 1e9:.1f} GB" in line and f"{record['micro_batch_rows']} rows" in line
        assert record["machine"] == "rtx3090" and "not measured" in record["rates"] and record["precision"] == "float16"
        assert record["memory_bytes"] == sum(record["memory"].values()) <= record["memory_available"]
        assert record["tokens"] == pytest.approx(record["tokens_per_second"] * 24 * 3600, abs=1)
        assert record["gemm_flops_per_second"] == pytest.approx(0.8 * 71e12)
    assert "Predicted, not measured: 24 hours on rtx3090" in shown
    assert "data sheet of rtx3090, not measured: 80% of 71 TFLOP/s" in shown and "80% of 936 GB/s" in shown
    assert "have not been compared with a measured run" in shown
    choice = choose(tabulated("rtx3090"), 24.0)  # of cram, the line above is of this size
    assert f"{choice}\n  {choice.expectation}\n" in shown
    assert records[list(BUNDLES).index("cram")]["tokens"] == pytest.approx(choice.tokens, rel=0.05)


def test_a_small_card_gets_a_smaller_micro_batch(capsys, tmp_path):
    path = tmp_path / "plan.jsonl"
    assert main(["--gpu", "rtx3080", "--recipe", "bert-large-izsak", "crammed-bert", "--json", str(path)]) == 0
    large, crammed = (json.loads(line) for line in path.read_text().splitlines())
    assert 1 <= large["micro_batch_rows"] < crammed["micro_batch_rows"] <= 128 and large["fits"]
    huge = ["--set", *(f"architecture.{x}" for x in ("layers=2", "hidden=16384", "heads=128", "ffn_hidden=65536"))]
    assert main(["--gpu", "t4", "--recipe", "bert-large-izsak", *huge]) == 0
    assert "none fits" in capsys.readouterr().out


def test_without_a_part_it_is_this_machine(capsys):
    assert main(["--hours", "0.5", "--recipe", "bert-tiny"]) == 0
    shown = capsys.readouterr().out
    assert "rates: measured on" in shown and "0.1 TFLOP/s of matrix products, 20 GB/s of copies" in shown
    assert re.search(r"bert-tiny .* 32 rows", shown) and "float32" in shown and "GPU have not" not in shown


def test_rates_are_measured(tmp_path):
    """The whole command, in its own process, with real measurements."""
    arguments = ["--hours", 1, "--recipe", "bert-tiny", "--json", tmp_path / "plan.jsonl"]
    result = run_apart("plan", *arguments, tmp_path=tmp_path)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "plan.jsonl").read_text())
    assert record["gemm_flops_per_second"] > 1e8 and record["copy_bytes_per_second"] > 1e8
    assert record["tokens"] > 0 and record["memory_available"] is None


@pytest.mark.parametrize(("arguments", "words"), [
    (["--gpu", "rtx309"], "did you mean 'rtx3090'"),
    (["--gpu", "abacus"], "h100"),
    (["--hours", "0"], "--hours 0.0: want a positive number"),
    (["--hours", "nan"], "--hours nan"),
    (["--hours", "soon"], "invalid float"),
    (["--recipe", "crammed-brt"], "did you mean 'crammed-bert'"),
    (["--set", "training.bach_size=3"], "did you mean"),
    (["--gpu", "t4", "--json", "nowhere/plan.jsonl", "--recipe", "bert-tiny"], "nowhere"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")  # fmt: skip
def test_bad_input_is_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(arguments)
    except SystemExit as stop:  # argparse
        status = stop.code
    (error,) = (line for line in capsys.readouterr().err.splitlines() if "error: " in line)
    assert words in error and status == (1 if "--json" in arguments else 2)


def test_the_table_of_parts_is_plausible():
    """Within what the makers of such cards sell, and no figure in a wrong column or unit."""
    for name, part in PARTS.items():
        assert 1.9 <= part.tensor_tflops / part.fp32_tflops <= 16, name
        # products of matrices are bound by multiplication: tens to hundreds of FLOP for each byte
        assert 50 < part.tensor_tflops * 1e12 / (part.memory_gbs * 1e9) < 450, name
        assert 8 <= part.memory_gb <= 192


def test_a_copy_is_slower_than_caches_and_faster_than_disks():
    assert 1e8 < copy_bytes_per_second(CPU, repeats=3) < 1e12
    assert 1e8 < gemm_flops_per_second(CPU, torch.float32, repeats=3) < 1e14


def test_amounts():
    assert [amount(n) for n in (999, 1_250_000, 9_100_000_000)] == ["999", "1.25 M", "9.10 G"]
