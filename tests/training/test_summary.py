"""Which of the five rules a run kept, and what it says about the machine."""

import pytest
import torch

from cramkernels.dispatch import OPERATIONS
from cramming_train.runs import Run
from cramming_train.summary import device_name, kernels_used, rules, write_summary

TEXT = {"source": "books/*.txt", "source_kind": "local"}


def verdict(metadata=TEXT, evaluated=False, **changes):
    summary = {"epochs": 0.5, "processes": 1, "train_seconds": 3600.0, "device": "a GPU", **changes}
    return rules(summary, metadata, evaluated)


def test_an_ordinary_run():
    result = verdict()
    assert [rule["kept"] for rule in result] == [True, True, True, True, False]
    assert [rule["rule"].split()[:4] for rule in result] == [
        ["a", "transformer", "trained", "with"], ["no", "pretrained", "model", "in"],
        ["any", "raw", "text", "except"], ["one", "GPU,", "24", "hours"], ["judged", "on", "GLUE,", "one"],
    ]  # fmt: skip
    assert all(rule["why"] and set(rule) == {"rule", "kept", "why"} for rule in result)
    assert "random initialisation" in result[0]["why"]


def test_weights_that_come_from_elsewhere():
    started = verdict(init_from="runs/first/checkpoints/step-00000003")
    assert [rule["kept"] for rule in started] == [False, False, True, True, False]
    assert "outside the rules" in started[0]["why"] and "runs/first" in started[1]["why"]
    imported = rules({"imported": "their/model"}, {}, evaluated=False)
    assert [rule["kept"] for rule in imported] == [False] * 5
    assert all("their/model" in rule["why"] for rule in imported[:4])
    assert [rule["rule"] for rule in imported] == [rule["rule"] for rule in started]


def test_it_is_judged_once_evaluated():
    before, after = verdict()[4], verdict(evaluated=True)[4]
    assert not before["kept"] and "cramming_train.evaluate --suite glue" in before["why"]
    assert after["kept"] and "evaluated" in after["why"]
    assert verdict()[:4] == verdict(evaluated=True)[:4]


@pytest.mark.parametrize("processes, seconds, kept", [
    (1, 10.0, True), (1, 86400.0, True), (1, 86400.5, False), (2, 10.0, False), (8, 1e6, False),
])  # fmt: skip
def test_one_gpu_and_a_day(processes, seconds, kept):
    rule = verdict(processes=processes, train_seconds=seconds)[3]
    assert rule["kept"] is kept
    assert f"{processes} process(es) on a GPU, {seconds:,.0f} seconds" == rule["why"]


@pytest.mark.parametrize("metadata, words", [
    (TEXT, "raw text from books/*.txt; not compared with the GLUE sets"),
    ({"source": "embedded", "source_kind": "embedded"}, "demonstration data"),
    ({"source": "someone/rows", "source_kind": "rows"}, "rows prepared by others (someone/rows), taken at their word"),
])  # fmt: skip
def test_what_is_said_of_the_text(metadata, words):
    why = verdict(metadata)[2]["why"]
    assert words in why and "times" not in why
    assert "the rows were used 2.5 times" in verdict(metadata, epochs=2.5)[2]["why"]
    assert "times" not in verdict(metadata, epochs=1.0)[2]["why"]


def test_the_machine_in_words():
    name = device_name(torch.device("cpu"))
    assert name.endswith(f"({torch.get_num_threads()} threads)") and len(name) > 12


def test_kernels_of_every_operation():
    assert kernels_used(torch.device("cpu"), torch.float32) == dict.fromkeys(OPERATIONS, "reference")


def test_written_and_read_again(tmp_path):
    run = Run(tmp_path)
    assert run.summary is None
    content = {"name": "x", "train_loss": 3.25, "rules": verdict()}
    write_summary(run, content)
    assert run.summary == content
    write_summary(run, {**content, "train_loss": 3.0})
    assert run.summary["train_loss"] == 3.0 and [path.name for path in tmp_path.iterdir()] == ["summary.json"]
