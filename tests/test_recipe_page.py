"""docs/recipe.md: every table and figure is that of the committed runs, and what is said of them holds."""

from __future__ import annotations

import json
import re
from statistics import mean, median

import pytest

from cramming_train.rates import tabulated
from cramming_train.recipes import get_recipe
from cramming_train.scaling import Size, choose, laws
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
    assert [list(row.values()) for row in shown] == rows_of([code, *cells])
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


def rows_of(runs: list[dict]) -> list[list[str]]:
    """A table of runs; seeds are told apart where a label has several."""
    labels = [run["label"] for run in runs]
    return [
        [
            run["label"] + (f", seed {run['seed']}" if labels.count(run["label"]) > 1 else ""), f"{run['tokens']:,}",
            f"{run['loss']:.3f}", f"{100 * run['accuracy']:.1f} %", f"{run['processor_seconds']:,.0f}",
        ]
        for run in runs
    ]  # fmt: skip


def test_short_runs_with_decay_are_the_committed_ones():
    """Higher than without, and still below the original's best after twelve times the tokens."""
    cells, others = cells_of("short"), cells_of("original")
    without = {cell["seed"]: cell["loss"] for cell in others if cell["label"] == "cram-mini"}
    more = [cell["loss"] - without[cell["seed"]] for cell in cells]
    best = min(cell["loss"] for cell in others if cell["label"] != "cram-mini")
    assert [cell["tokens"] for cell in cells] == [163840] * 3 and max(cell["loss"] for cell in cells) < best
    prose = re.sub(r"\s+", " ", section("Against the original recipe"))
    assert "at {:.3f}, {:.3f} and {:.3f}".format(*(cell["loss"] for cell in cells)) in prose
    assert f"{min(more):.2f} to {max(more):.2f} higher" in prose
    seconds = [cell["processor_seconds"] for cell in cells]
    assert f"after {min(seconds):.0f} to {max(seconds):.0f} s" in prose


def test_the_race_on_the_second_machine_is_the_committed_one():
    """At every shape ours ends below the best of the original recipe that was run there, in less of its time."""
    cells, (_, shown) = cells_of("race"), tables(section("Against the original recipe"))
    assert [list(row.values()) for row in shown] == rows_of(cells)
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
    cells, (shown, *_) = cells_of("glue"), tables(section("Forty minutes, and GLUE"))
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
        assert [row[""], *list(row.values())[1:5]] == rows_of([cell])[0]
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


ORIGINAL, OURS, DECAYED = "crammed-bert-mini, batch 32, 2e-3", "cram-mini", "weight decay 0.5"
BATCH = "weight decay 0.5, batch 32"
FINE_TUNED = (  # label, file, rates
    (ORIGINAL, "crammed-bert-mini", ("5e-4", "1e-3")),
    (OURS, "cram-mini", ("5e-4", "2e-3", "4e-3")),
    (DECAYED, "cram-mini-decay", ("5e-4", "2e-3")),
    (BATCH, "cram-mini-batch", ("5e-4",)),
    ("crammed-bert-mini, no pretraining", "none-crammed-bert-mini", ("5e-4",)),
    ("cram-mini, no pretraining", "none-cram-mini", ("5e-4", "2e-3")),
)


def test_the_rates_of_fine_tuning_are_the_committed_ones():
    cells, (_, shown, *_) = {c["label"]: c for c in cells_of("rates")}, tables(section("Forty minutes, and GLUE"))
    tried = [(label, file, rate) for label, file, rates in FINE_TUNED for rate in rates]
    medians: dict[str, list[float]] = {}
    for row, (label, file, rate) in zip(shown, tried, strict=True):
        sst2 = [line for line in fine_tunings(f"{file}-{rate}", "rates") if line["task"] == "sst2"]
        scores = [100 * line["values"]["sst2"] for line in sst2]
        run = rows_of([cells[label]])[0] if label in cells else [label, "", "", "", ""]
        ended = f"{median(line['train_loss'] for line in sst2):.2f}"
        assert list(row.values()) == [*run, rate, spread(scores), ended]
        assert [line["seed"] for line in sst2] == [0, 1, 2]
        medians.setdefault(label, []).append(median(scores))
    fresh, learned = medians["cram-mini, no pretraining"][0], medians[DECAYED][0]
    assert max(medians[OURS]) < fresh < learned
    prose = re.sub(r"\s+", " ", section("Forty minutes, and GLUE"))
    assert f"is at {learned:.1f}: {learned - medians[OURS][0]:.1f} points more" in prose
    assert f"and {learned - fresh:.1f} above no pretraining" in prose
    fewer, more = cells[DECAYED], cells[BATCH]
    assert f"32 rows end {fewer['loss'] - more['loss']:.2f} below 8" in re.sub(r"\s+", " ", section("What helped"))


def test_five_tasks_at_the_better_rate_are_the_committed_ones():
    """After equal times: of 40 minutes, to a sixth."""
    cells, (_, _, shown, _) = {c["label"]: c for c in cells_of("rates")}, tables(section("Forty minutes, and GLUE"))
    prose, means = re.sub(r"\s+", " ", section("Forty minutes, and GLUE")), []
    for row, (label, file) in zip(shown, ((ORIGINAL, "crammed-bert-mini"), (BATCH, "cram-mini-batch")), strict=True):
        lines = fine_tunings(f"{file}-5e-4", "rates")
        scores = {(line["task"], line["seed"]): 100 * line["values"][line["task"]] for line in lines}
        means.append([mean(scores[task, seed] for task in GLUE_ROWS) for seed in range(3)])
        tasks = [spread([scores[task, seed] for seed in range(3)]) for task in GLUE_ROWS]
        _, _, loss, _, seconds = rows_of([cells[label]])[0]
        assert list(row.values()) == [label, loss, seconds, *tasks, spread(means[-1])]
        assert spread(means[-1]) in prose
        capped = {(line["task"], line["rows"]["train"]) for line in lines if line["capped_from"] is not None}
        assert capped == {("cola", 2000), ("sst2", 2000)}
    assert cells[BATCH]["processor_seconds"] < cells[ORIGINAL]["processor_seconds"]
    original, ours = means
    assert median(ours) < median(original) and min(original) < max(ours), "it says: not better, and ranges meet"
    assert f"{spread(original)} for the original and {spread(ours)} for ours" in prose
    assert f"is {cells[ORIGINAL]['loss'] - cells[BATCH]['loss']:.2f} nats better" in prose


def test_the_probes_are_the_committed_ones():
    cells, (*_, shown) = cells_of("rates"), tables(section("Forty minutes, and GLUE"))
    labels = {f"{cell['recipe']}-{cell['mark']}-seed{cell['seed']}": cell for cell in cells}
    found: dict[str, dict[str, float]] = {}
    for line in fine_tunings("probe", "rates"):
        cell = labels[line["run"]]
        label = cell["label"] if line["weights"] == "pretrained" else f"{cell['recipe']}, no pretraining"
        found.setdefault(label, {})[line["vectors"]] = line["accuracy"]
        assert line["rows"] == 2000
    assert [list(row.values()) for row in shown] == [
        [label, *(f"{accuracy:.1f}" for accuracy in vectors.values())] for label, vectors in found.items()
    ]
    words = [vectors["embedding"] for label, vectors in found.items() if "no pretraining" not in label]
    fresh = found["cram-mini, no pretraining"]["embedding"]
    assert 1.5 < min(words) - fresh < max(words) - fresh < 3.5


def test_the_law_is_held_against_later_runs():
    law, others = laws()
    prose = re.sub(r"\s+", " ", section("How large, for a budget"))
    batch = next(cell for cell in cells_of("rates") if cell["label"] == BATCH)
    for later, words in ((cells_of("glue")[1], "of 8 rows ended at"), (batch, "of 32, with decay, ended at")):
        said = sorted(other.loss(Size(4, 256).parameters, later["tokens"]) for other in others)
        low, high = said[2], said[-3]  # nine of ten
        assert f"{law.loss(Size(4, 256).parameters, later['tokens']):.2f} ({low:.2f} to {high:.2f})" in prose
        assert f"{words} {later['loss']:.3f}" in prose
    assert batch["loss"] < low and "training.batch_size=32" in batch["overrides"]


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def test_the_levers_are_the_committed_ones():
    cells, (shown,) = cells_of("levers"), tables(section("What did not"))
    assert [list(row.values()) for row in shown] == [[row[0], *row[2:]] for row in rows_of(cells)]
    assert {(cell["budget_tokens"], cell["held_out"], cell["seed"]) for cell in cells} == {(327680, "e4f3bcd230f2", 0)}


def test_the_runs_of_a_million_tokens_are_the_committed_ones():
    """And each seed with decay ends below each without."""
    cells, (shown,) = cells_of("million"), tables(section("At a million tokens"))
    assert [list(row.values()) for row in shown] == rows_of(cells)
    assert {cell["held_out"] for cell in cells} == {"e4f3bcd230f2"}
    assert {cell["budget_tokens"] for cell in cells if cell["recipe"] == "cram-mini"} == {1000000}
    plain, decayed = ([c for c in cells if c["label"] == label] for label in ("cram-mini", "weight decay 0.5"))
    assert decayed[0]["overrides"] == [f"training.weight_decay={get_recipe('cram-mini').training.weight_decay}"]
    without, ended = ([cell["loss"] for cell in runs] for runs in (plain, decayed))
    assert len(ended) == len(without) == 3 and max(ended) < min(without)
    prose = re.sub(r"\s+", " ", section("At a million tokens"))
    assert f"medians of {median(ended):.3f} and {median(without):.3f}" in prose
    assert f"seeds {max(ended) - min(ended):.2f} and {max(without) - min(without):.2f} apart" in prose
    own, decayed_longer = (c for c in cells_of("rates") if c["label"] in ("cram-mini", "weight decay 0.5"))
    assert f"it is {decayed_longer['loss']:.3f} against {own['loss']:.3f}" in prose
    brief, strong = (c for c in cells_of("levers") if c["label"] in ("cram-mini", "weight decay 1.5"))
    costs = f"{strong['loss'] - brief['loss']:.2f} in {strong['optimizer_steps']} steps"
    assert f"{costs} ({strong['loss']:.3f} against {brief['loss']:.3f})" in prose


def test_decay_in_larger_batches_is_the_committed_one():
    (none, tenth), folder = cells_of("small"), RESULTS / "recipes" / "small"
    half = json.loads((folder / "six_minutes.json").read_text(encoding="utf-8"))
    assert half["recipe"]["training"]["weight_decay"] == 0.5 and half["recipe"]["training"]["batch_size"] == 32
    assert half["tokens"] == none["tokens"] == tenth["tokens"]
    prose = re.sub(r"\s+", " ", section("At a million tokens"))
    assert f"end at {half['validation_loss']:.3f} with 0.5, after {half['tokens']:,} tokens" in prose
    assert f"with 0.1 at {tenth['loss']:.3f}, with 0.01 at {none['loss']:.3f}" in prose


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
