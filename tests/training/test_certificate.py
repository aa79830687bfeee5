"""The five rules, each kept, broken and open, and the certificate that states them."""

import hashlib
import json

import pytest
import torch

from cramming_train.certificate import certificate, revise, rules, verdict, write_certificate
from cramming_train.checkpoint import save_checkpoint
from cramming_train.data.hub import PILE_ROWS
from cramming_train.errors import RunError
from cramming_train.machine import device_name, hardware, software
from cramming_train.runs import Run

TEXT = {"source": "books/*.txt", "source_kind": "files", "fingerprint": "abc"}
ROWS = {**TEXT, "source": "someone/rows", "source_kind": "rows"}
CLEAN = {"sets": {"rte validation": {"sentences": 9, "checked": 8, "overlapping": 0}}, "checked": 8, "overlapping": 0,
         "rows": 1000, "rows_affected": 0, "words": 13, "not_given": []}  # fmt: skip
FOUND = {**CLEAN, "sets": {"rte validation": {"sentences": 9, "checked": 8, "overlapping": 3}}, "overlapping": 3,
         "rows_affected": 2}  # fmt: skip


def stated(data=TEXT, **changes):
    summary = {"epochs": 0.5, "processes": 1, "train_seconds": 3600.0, "device": "a GPU", "seed": 7, **changes}
    return rules({**summary, "data": data})


def test_an_ordinary_run():
    result = stated()
    assert [rule["kept"] for rule in result] == [True, True, None, True, None]
    assert [rule["rule"].split()[:4] for rule in result] == [
        ["a", "transformer", "trained", "with"], ["no", "pretrained", "model", "in"],
        ["any", "raw", "text", "except"], ["one", "GPU,", "24", "hours"], ["judged", "on", "GLUE,", "one"],
    ]  # fmt: skip
    assert all(rule["why"] and set(rule) == {"rule", "kept", "why"} for rule in result)
    assert "random initialisation, seed 7" == result[0]["why"] and verdict(result) == "open"


def test_every_rule_kept():
    data = {**TEXT, "contamination": CLEAN}
    result = stated(data, judged={"kept": True, "why": "GLUE mean 78.6"})
    assert all(rule["kept"] for rule in result) and verdict(result) == "kept"


@pytest.mark.parametrize("field", ["init_from", "imported"])
def test_imported_weights_break_the_first_and_the_second(field):
    result = stated(**{field: "bert-base-uncased"})
    assert [rule["kept"] for rule in result[:2]] == [False, False] and verdict(result) == "broken"
    assert "imported from bert-base-uncased" in result[0]["why"] and "bert-base-uncased" in result[1]["why"]
    assert stated(**{field: None}) == stated()


def test_of_weights_taken_over_little_is_known():
    """They bring no time, no machine and no text."""
    data = {"source": "not known", "source_kind": "imported", "fingerprint": None}
    result = rules({"data": data, "imported": "/models/bert"})
    assert [rule["kept"] for rule in result] == [False, False, None, None, None]
    assert "text is not known" in result[2]["why"] and "not known" in result[3]["why"]


def test_a_tokenizer_from_elsewhere_breaks_the_second():
    assert stated(TEXT)[1]["kept"] and "trained on the same text" in stated(TEXT)[1]["why"]
    second = stated(ROWS)[1]
    assert second["kept"] is False and "tokenizer that came with the ready-made rows (someone/rows)" in second["why"]
    original = stated({**ROWS, "source": PILE_ROWS})[1]
    assert original["kept"] and "by its word" in original["why"]
    assert " and " in stated(ROWS, init_from="x")[1]["why"]


@pytest.mark.parametrize("data, words", [
    (TEXT, "raw text from books/*.txt; not compared with GLUE: run python -m cramming_train.contamination"),
    ({**TEXT, "source": "embedded", "source_kind": "embedded"}, "a demonstration; not compared"),
    (ROWS, "rows prepared by others (someone/rows); not compared"),
])  # fmt: skip
def test_text_that_was_not_compared_leaves_the_third_open(data, words):
    third = stated(data)[2]
    assert third["kept"] is None and words in third["why"] and "times" not in third["why"]
    assert "used 2.5 times" in stated(data, epochs=2.5)[2]["why"]
    assert "times" not in stated(data, epochs=1.0)[2]["why"]


def test_downstream_text_breaks_the_third():
    broken = stated({**TEXT, "contamination": FOUND})[2]
    assert broken["kept"] is False
    assert "3 of 8 sentences of GLUE (rte validation) overlap with 2 of 1,000 rows (13 words in a row)" in broken["why"]
    kept = stated({**TEXT, "contamination": CLEAN})[2]
    assert kept["kept"] is True and "none of 8 sentences of GLUE overlaps" in kept["why"]
    part = stated({**TEXT, "contamination": {**CLEAN, "not_given": ["mnli validation_mismatched"]}})[2]
    assert part["kept"] is None and "not compared: mnli validation_mismatched" in part["why"]
    assert stated({**TEXT, "contamination": {**FOUND, "not_given": ["mnli train"]}})[2]["kept"] is False


@pytest.mark.parametrize("processes, seconds, kept", [
    (1, 10.0, True), (1, 86400.0, True), (1, 86400.5, False), (2, 10.0, False), (8, 1e6, False),
])  # fmt: skip
def test_one_gpu_and_a_day(processes, seconds, kept):
    rule = stated(processes=processes, train_seconds=seconds)[3]
    assert rule["kept"] is kept
    many = "es" if processes > 1 else ""
    assert f"{processes} process{many} on a GPU, {seconds:,.0f} of 86,400 seconds" == rule["why"]


@pytest.mark.parametrize("kept", [True, False, None])
def test_judged_on_glue(kept):
    assert "cramming_train.evaluate" in stated()[4]["why"]
    assert stated(judged={"kept": kept, "why": "because"})[4] == {**stated()[4], "kept": kept, "why": "because"}
    assert stated(judged={"kept": kept, "why": "because"})[:4] == stated()[:4]


@pytest.fixture
def run(tmp_path):
    """A run's folder with everything that a certificate is made of."""
    content = {
        "name": "x", "train_loss": 3.25, "validation_loss": 3.5, "validation_accuracy": 0.4, "tokens": 10,
        "epochs": 0.1, "optimizer_steps": 2, "train_seconds": 9.0, "parameters": 11, "device": "a CPU", "processes": 1,
        "seed": 0, "hardware": hardware(torch.device("cpu")), "versions": software(),
        "kernels": {"attention": "reference"}, "data": {**TEXT, "rows": 5}, "finished": "2030-01-01T00:00:00+0000",
    }  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps({**content, "rules": rules(content)}))
    (tmp_path / "recipe.json").write_text(json.dumps(
        {"recipe": {"name": "mini", "training": {"peak_lr": 1e-3}}, "seed": 0, "hours": 24.0, "tokens": None,
         "text_column": "text", "data": {}}
    ))  # fmt: skip
    (tmp_path / "tokenizer.json").write_text("{}")
    model = torch.nn.Linear(3, 2)
    save_checkpoint(tmp_path / "checkpoints", 2, model, torch.optim.AdamW(model.parameters()), {})
    return Run(tmp_path)


def test_the_certificate_holds_what_it_takes_to_check_a_run(run):
    assert write_certificate(run) == run.path / "certificate.json"
    content = json.loads((run.path / "certificate.json").read_text())
    assert [rule["state"] for rule in content["rules"]] == ["kept", "kept", "open", "kept", "open"]
    assert content["verdict"] == "open" and content["data"]["fingerprint"] == "abc"
    assert content["recipe"]["training"]["peak_lr"] == 1e-3 and content["settings"]["hours"] == 24.0
    assert content["hardware"]["device"] == "a CPU" and content["hardware"]["processor"]
    assert content["software"]["torch"] == torch.__version__ and content["software"]["python"]
    weights = next((run.path / "checkpoints").glob("step-*/model.safetensors"))
    assert content["sha256"] == {
        "tokenizer.json": hashlib.sha256(b"{}").hexdigest(),
        "model.safetensors": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    assert not list(run.path.glob(".writing*"))


def test_facts_that_come_later(run):
    revise(run, judged={"kept": True, "why": "GLUE mean 78.6"})
    revise(run, contamination=CLEAN)
    content = json.loads((run.path / "certificate.json").read_text())
    assert content["verdict"] == "kept" and content["data"]["contamination"]["checked"] == 8
    assert run.summary["rules"] == [{k: v for k, v in rule.items() if k != "state"} for rule in content["rules"]]
    (run.path / "evaluation").mkdir()
    (run.path / "evaluation" / "glue.json").write_text(json.dumps({"mean": 0.786, "tasks": {}}))
    assert certificate(run, run.summary)["results"]["glue_mean"] == 0.786


def test_a_run_that_has_not_ended_has_none(tmp_path):
    revise(Run(tmp_path), judged={"kept": True, "why": "-"})
    assert write_certificate(Run(tmp_path)) is None and not list(tmp_path.iterdir())


def test_a_summary_of_another_version_is_one_line(run):
    (run.path / "summary.json").write_text(json.dumps({"rules": []}))
    with pytest.raises(RunError, match="summary.json: of another version") as error:
        write_certificate(run)
    assert "\n" not in str(error.value)


def test_the_machine_in_words():
    name = device_name(torch.device("cpu"))
    assert name.endswith(f"({torch.get_num_threads()} threads)") and len(name) > 12
    found = hardware(torch.device("cpu"))
    assert found["cores"] >= 1 and found["memory_bytes"] > 1 << 28 and "gpu" not in found
    versions = software()
    assert versions["numpy"].count(".") == 2 and versions["datasets"]
