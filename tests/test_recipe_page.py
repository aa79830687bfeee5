"""docs/recipe.md: every table and figure is that of the committed runs, and what is said of them holds."""

from __future__ import annotations

import json
import re
from statistics import mean, median

import pytest

from cramming_train.rates import tabulated
from cramming_train.scaling import Size, batch_rows, choose, laws
from cramming_train.study.table import crossing
from tests.test_docs import PAGES, RESULTS, tables


def cells_of(study: str) -> list[dict]:
    """Finished runs, as committed."""
    lines = (RESULTS / "recipes" / study / "cells.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def section(title: str) -> str:
    """Of the page on the recipe."""
    (found,) = (text for text in PAGES["recipe"].split("\n## ") if text.splitlines()[0].endswith(title))
    return found


def test_the_study_is_the_committed_one():
    cells, (shown,) = cells_of("screening"), tables(section("is made of, and why"))
    assert [list(row.values()) for row in shown] == [
        [cell["label"], f"{cell['loss']:.3f}", f"{100 * cell['accuracy']:.1f} %", str(cell["optimizer_steps"])]
        for cell in cells
    ]
    assert {(cell["budget_tokens"], cell["held_out"], cell["seed"]) for cell in cells} == {(327680, "e4f3bcd230f2", 0)}


def test_the_race_is_the_committed_one():
    """Every seed of ours ends below the best of the original recipe, within a sixth of its time."""
    code = json.loads((RESULTS / "recipes" / "original" / "code.json").read_text(encoding="utf-8"))
    cells, (shown, _) = cells_of("original"), tables(section("Against the original recipe"))
    assert {cell["held_out"] for cell in (code, *cells, *cells_of("screening"))} == {"e4f3bcd230f2"}
    assert [list(row.values()) for row in shown] == [
        [
            run["label"] + (f", seed {run['seed']}" if run["label"] == "cram-mini" else ""), f"{run['tokens']:,}",
            f"{run['loss']:.3f}", f"{100 * run['accuracy']:.1f} %", f"{run['processor_seconds']:,.0f}",
        ]
        for run in (code, *cells)
    ]  # fmt: skip
    ours = [cell for cell in cells if cell["label"] == "cram-mini"]
    best = min((code, *(cell for cell in cells if cell not in ours)), key=lambda run: run["loss"])
    assert len({cell["seed"] for cell in ours}) == 3 and max(cell["loss"] for cell in ours) < best["loss"]
    taken = median(cell["processor_seconds"] for cell in ours)
    assert taken < best["processor_seconds"] / 6
    prose = re.sub(r"\s+", " ", PAGES["recipe"])
    assert f"medians {taken:.0f} and {best['processor_seconds']:,.0f} s" in prose
    assert f"without the {code['compilation']['processor']:.0f} s" in prose
    passed = crossing(cells_of("screening")[-2]["curve"], 0, cells[0]["loss"])
    assert "but in blocks 0 and 3" in cells_of("screening")[-2]["label"] and f"after {passed:,.0f} tokens" in prose


def row_of(run: dict) -> list[str]:
    """Of a table of runs; seeds are told apart where there are several."""
    seed = f", seed {run['seed']}" if run["label"] == "cram-mini" and run["budget_tokens"] == 163840 else ""
    shown = f"{run['loss']:.3f}", f"{100 * run['accuracy']:.1f} %", f"{run['processor_seconds']:,.0f}"
    return [run["label"] + seed, f"{run['tokens']:,}", *shown]


def test_the_race_on_the_second_machine_is_the_committed_one():
    """At every shape ours ends below the best of the original recipe that was run there, in less of its time."""
    cells, (_, shown) = cells_of("race"), tables(section("Against the original recipe"))
    assert [list(row.values()) for row in shown] == [row_of(cell) for cell in cells]
    assert {cell["held_out"] for cell in cells} == {"e4f3bcd230f2"}
    ours = [cell for cell in cells if cell["label"] == "cram-mini"]
    theirs = [cell for cell in cells if cell["label"].startswith("crammed-bert-mini, batch")]
    best = min(theirs, key=lambda cell: cell["loss"])
    assert len(ours) == 3 and max(cell["loss"] for cell in ours) < best["loss"]
    taken = median(cell["processor_seconds"] for cell in ours)
    assert taken < best["processor_seconds"] / 6
    prose = re.sub(r"\s+", " ", section("Against the original recipe"))
    assert f"in {taken:.0f} s what takes the original recipe's best {best['processor_seconds']:,.0f} s" in prose
    for layers, hidden in ((2, 128), (8, 384)):
        theirs = min((c for c in cells if f"{layers}/{hidden}" in c["label"]), key=lambda cell: cell["loss"])
        (own,) = (c for c in cells_of("scaling") if c["label"] == f"{layers}/{hidden}, 250000")
        assert own["loss"] < theirs["loss"] and own["processor_seconds"] < theirs["processor_seconds"]
        for cell in (own, theirs):
            assert f"{cell['loss']:.3f} after {cell['processor_seconds']:.0f} s" in prose


GLUE_ROWS = {"cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "rte": "RTE", "stsb": "STS-B"}


def fine_tunings(name: str, study: str = "glue") -> list[dict]:
    """As committed, one of a task and a seed each."""
    lines = (RESULTS / "recipes" / study / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_forty_minutes_are_the_committed_ones():
    cells, (shown, _) = cells_of("glue"), tables(section("Forty minutes, and GLUE"))
    assert [cell["recipe"] for cell in cells] == ["crammed-bert-mini", "cram-mini"]
    assert cells[0]["processor_seconds"] == pytest.approx(cells[1]["processor_seconds"], rel=0.02)
    assert {cell["held_out"] for cell in cells} == {"e4f3bcd230f2"}
    prose = re.sub(r"\s+", " ", section("Forty minutes, and GLUE"))
    for cell, row in zip(cells, shown, strict=True):
        scores = {(x["task"], x["seed"]): 100 * x["values"][x["task"]] for x in fine_tunings(cell["recipe"])}
        assert set(scores) == {(task, seed) for task in GLUE_ROWS for seed in range(3)}
        for task, name in GLUE_ROWS.items():
            assert row[name] == spread([scores[task, seed] for seed in range(3)])
        assert row["mean"] == spread([mean(scores[task, seed] for task in GLUE_ROWS) for seed in range(3)])
        assert row["mean"] in prose
        assert [row[""], *list(row.values())[1:5]] == row_of(cell)
    passed = [cell for cell in cells_of("race") if cell["label"] == "cram-mini"]
    assert max(cell["loss"] for cell in passed) < cells[0]["loss"]
    ends = [median(x["train_loss"] for x in fine_tunings(cell["recipe"]) if x["task"] == "stsb") for cell in cells]
    assert f"stays at {ends[1]:.2f} ({ends[0]:.2f} for the original)" in prose
    (quick,), (original,) = fine_tunings("cram-mini-1e-3"), fine_tunings("crammed-bert-mini-3e-4")
    for tuned in (quick, original):
        assert f"{tuned['train_loss']:.2f}" in prose and f"{100 * tuned['values']['stsb']:.1f}" in prose


def test_fine_tuning_at_a_higher_rate_is_the_committed_one():
    prose = re.sub(r"\s+", " ", section("Forty minutes, and GLUE"))
    theirs, ours = (
        [100 * line["values"]["sst2"] for line in fine_tunings(f"{recipe}-5e-4-mean")]
        for recipe in ("crammed-bert-mini", "cram-mini")
    )
    assert len(ours) == len(theirs) == 3
    assert f"is at {spread(theirs)} for the original and at {spread(ours)} for `cram-mini`" in prose
    own, original = cells_of("million")[0], cells_of("million")[-1]
    assert f"of {original['loss']:.3f} and {own['loss']:.3f} nats" in prose


def test_the_rates_of_fine_tuning_are_the_committed_ones():
    cells, (_, shown) = {cell["recipe"]: cell for cell in cells_of("rates")}, tables(section("Forty minutes, and GLUE"))
    tried = [("crammed-bert-mini", "5e-4"), ("crammed-bert-mini", "1e-3")]
    tried += [("cram-mini", "5e-4"), ("cram-mini", "2e-3"), ("cram-mini", "4e-3"), ("none", "5e-4")]
    best: dict[str, float] = {}
    for row, (recipe, rate) in zip(shown, tried, strict=True):
        lines = fine_tunings(f"{recipe}-{rate}", "rates")
        sst2 = [line for line in lines if line["task"] == "sst2"]
        rte = [100 * line["values"]["rte"] for line in lines if line["task"] == "rte"]
        scores = [100 * line["values"]["sst2"] for line in sst2]
        ended = f"{median(line['train_loss'] for line in sst2):.2f}"
        assert list(row.values()) == [
            *(row_of(cells[recipe]) if recipe in cells else ("no pretraining", "", "", "", "")), rate, spread(scores),
            ended, spread(rte) if rte else "",
        ]  # fmt: skip
        assert {line["seed"] for line in sst2} == {0, 1, 2}
        best[recipe] = max(best.get(recipe, 0.0), median(scores))
    assert best["cram-mini"] < best["none"] < best["crammed-bert-mini"] < best["none"] + 1.5
    prose = re.sub(r"\s+", " ", section("Forty minutes, and GLUE"))
    assert f"{cells['crammed-bert-mini']['loss'] - cells['cram-mini']['loss']:.2f} nats better" in prose
    assert f"without any pretraining is at {spread(scores)}" in prose


def test_the_law_is_held_against_a_later_run():
    later, (law, others) = cells_of("glue")[1], laws()
    said = sorted(other.loss(Size(4, 256).parameters, later["tokens"]) for other in others)
    low, high = said[2], said[-3]  # nine of ten
    prose = re.sub(r"\s+", " ", section("How large, for a budget"))
    figures = f"{law.loss(Size(4, 256).parameters, later['tokens']):.2f} ({low:.2f} to {high:.2f})"
    assert f"{figures}, the run ended at {later['loss']:.3f}" in prose and later["overrides"] == []
    assert f"where the rule would give {batch_rows(later['tokens'], 128)}" in prose


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def test_the_levers_are_the_committed_ones():
    cells, (shown,) = cells_of("levers"), tables(section("What did not"))
    assert [list(row.values()) for row in shown] == [[*row_of(cell)[:1], *row_of(cell)[2:]] for cell in cells]
    assert {(cell["budget_tokens"], cell["held_out"], cell["seed"]) for cell in cells} == {(327680, "e4f3bcd230f2", 0)}


def test_the_runs_of_a_million_tokens_are_the_committed_ones():
    cells, (shown,) = cells_of("million"), tables(section("At a million tokens"))
    assert [list(row.values()) for row in shown] == [row_of(cell) for cell in cells]
    assert {(cell["held_out"], cell["seed"]) for cell in cells} == {("e4f3bcd230f2", 0)}
    assert {cell["budget_tokens"] for cell in cells if cell["recipe"] == "cram-mini"} == {1000000}


def test_the_scaling_runs_and_the_law_are_the_committed_ones():
    cells, (shown, _) = cells_of("scaling"), tables(section("How large, for a budget"))
    law, _ = laws()
    assert [list(row.values()) for row in shown] == [
        [
            str(cell["layers"]), str(cell["hidden"]), f"{cell['tokens']:,}", f"{cell['loss']:.3f}",
            f"{law.loss(Size(cell['layers'], cell['hidden']).parameters, cell['tokens']):.3f}",
            f"{cell['processor_seconds']:,.0f}",
        ]
        for cell in cells
    ]  # fmt: skip
    formula = f"L = {law.floor:.2f} + {law.a:.1f} / N^{law.alpha:.3f} + {law.b:.1f} / T^{law.beta:.3f}"
    assert formula in section("How large, for a budget")


def test_what_the_law_says_of_a_day_is_what_the_planner_says():
    (_, shown) = tables(section("How large, for a budget"))
    assert [row[""] for row in shown] == ["rtx3090", "rtx4090", "a6000", "h100"]
    for row in shown:
        choice = choose(tabulated(row[""]), 24.0)
        assert row["size"] == str(choice.size) and row["batch"] == str(choice.recipe.training.batch_size)
        assert row["also allowed"] == f"{choice.allowed[0]} to {choice.allowed[1]}"
        assert float(row["tokens"].removesuffix(" G")) == pytest.approx(choice.tokens / 1e9, rel=0.02)
        low, high = choice.losses
        assert row["loss"] == f"{choice.loss:.2f} ({low:.2f} to {high:.2f})"
