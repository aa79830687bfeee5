"""docs/: its commands and its Python are run, its links lead somewhere, its figures and tables are the committed ones.

A page's ``sh`` and ``python`` blocks run in order, in a folder of their own. ``console`` blocks need a GPU, a compiler,
real data or minutes: of these the program has to exist and to take the arguments.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import mean, median

import pytest

from cramming_train.rates import tabulated
from cramming_train.recipes import ARCHITECTURES, BUNDLES, TRAININGS, apply_overrides, get_recipe
from cramming_train.scaling import Size, batch_rows, choose, laws
from cramming_train.study.contender import parse_contenders
from cramming_train.study.table import crossing
from tests.data.helpers import Writer, write
from tests.training.helpers import run

ROOT = Path(__file__).parents[1]
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
RESULTS = ROOT / "benchmarks" / "results"
MACHINE = "amd-epyc-family-26-avx512-1-thread"  # that of the committed CPU figures
BLOCKS = {
    name: re.findall(r"^```(sh|python|console)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for name, text in PAGES.items()
}
SHELL = 'set -e\npython() { "$PYTHON" "$@"; }\n'
OURS = re.compile(r"python -m cramming_train\.(\w+)([^|<>&;$]*)$")  # runs within this process, which saves seconds
CONSOLE = [
    pytest.param(line, id=f"{name}-{line[:60]}")
    for name in PAGES
    for line in dict.fromkeys(
        [line[2:] for kind, body in BLOCKS[name] if kind == "console" for line in body.splitlines()]
        + re.findall(r"`((?:python|pytest) [^`\n]+)`", PAGES[name])
    )
]


def test_the_pages_are_there():
    assert set(PAGES) >= {"index", "data", "recipes", "kernels", "adding_a_kernel", "adding_a_recipe", "results"}
    assert all(f"]({name}.md)" in PAGES["index"] for name in PAGES if name != "index")
    assert "(docs/index.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert {word for text in PAGES.values() for word in re.findall(r"^```(\w+)", text, re.MULTILINE)} <= {
        "sh", "python", "console",
    }  # fmt: skip
    shown = [body for found in BLOCKS.values() for kind, body in found if kind == "console"]
    assert all(line.startswith("$ ") for body in shown for line in body.splitlines()) and len(CONSOLE) >= 15


@pytest.mark.parametrize("name", [name for name in PAGES if any(kind != "console" for kind, _ in BLOCKS[name])])
def test_a_page_does_what_it_says(name, tmp_path, monkeypatch):
    write(tmp_path / "mytext" / "text.txt", Writer(31, words=3000).documents(500))
    monkeypatch.chdir(tmp_path)
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    for key, value in {"CRAMMING_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths,
                       "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    namespace: dict = {}
    for kind, body in BLOCKS[name]:
        if kind == "python":
            exec(compile(body, f"docs/{name}.md", "exec"), namespace)
        elif kind == "sh":
            lines = body.splitlines()
            for step in lines if all(map(OURS.match, lines)) else [body]:
                if command := OURS.match(step):
                    pictures = command[1] not in ("pretrain", "compare")
                    done = run(command[1], *shlex.split(command[2]), tmp_path=tmp_path, report=pictures)
                else:
                    done = subprocess.run(["sh", "-c", SHELL + step], capture_output=True, text=True, timeout=300)
                assert done.returncode == 0, f"{step}\n{done.stderr}"


class Accepted(BaseException):
    """What the parser made of the arguments."""


@pytest.mark.parametrize("line", CONSOLE)
def test_a_command_is_accepted(line, monkeypatch):
    words = shlex.split(line, comments=True)
    while words[0] == "time" or "=" in words[0]:
        words.pop(0)
    match words:
        case ["python", "-m", module, *arguments]:
            check_recipes(accepted(module, arguments, monkeypatch))
        case ["python", file, *_]:
            assert (ROOT / file).is_file()
        case ["pytest", *arguments]:
            paths = [word for word in arguments if word.startswith(("tests", "benchmarks"))]
            assert paths and all((ROOT / path).exists() for path in paths)
        case ["pip", "install", "-e", what]:
            extras = what.partition("[")[2].rstrip("]").split(",")
            metadata = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
            assert all(not extra or re.search(rf"^{extra} = \[", metadata, re.MULTILINE) for extra in extras)
        case ["pdoc", *arguments]:
            assert all(importlib.util.find_spec(module) for module in in_braces(arguments[4:]))
        case _:
            pytest.fail(f"no check for {words[0]!r}")


def in_braces(words: list[str]) -> list[str]:
    """As a shell expands them: ``a.{b,c}`` is a.b and a.c."""
    found = []
    for word in words:
        start, brace, rest = word.partition("{")
        found += [start + end for end in rest.removesuffix("}").split(",")] if brace else [word]
    return found


def accepted(module: str, arguments: list[str], monkeypatch) -> argparse.Namespace:
    """The parsed arguments of a program, which is stopped there; argparse ends it where it does not know one."""
    program = importlib.import_module(module)
    if not hasattr(program, "main"):
        assert not arguments, f"{module} takes no arguments"
        return argparse.Namespace()
    parse = argparse.ArgumentParser.parse_args

    def stopped(self, args=None, namespace=None):
        raise Accepted(parse(self, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stopped)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(Accepted) as caught:
        program.main()
    return caught.value.args[0]


def check_recipes(parsed: argparse.Namespace) -> None:
    """Recipes and keys have to exist."""
    changes = getattr(parsed, "overrides", None) or getattr(parsed, "set", None) or []
    apply_overrides(get_recipe(getattr(parsed, "recipe", None) or "crammed-bert"), changes)
    if getattr(parsed, "recipes", None):
        parse_contenders(parsed.recipes, getattr(parsed, "tokens", None), parsed.hours)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = ROOT / "docs" / path
        assert file.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}, target


def tables(text: str) -> list[list[dict[str, str]]]:
    """Its tables: a row is column -> cell."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        header, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines())
        found.append([dict(zip(header, row, strict=True)) for row in rows])
    return found


def table_of(page: str, *columns: str) -> list[dict[str, str]]:
    """The one table of a page that has these columns, code marks taken off."""
    (found,) = (table for table in tables(PAGES[page]) if set(columns) <= table[0].keys())
    return [{column: cell.strip("`") for column, cell in row.items()} for row in found]


@pytest.mark.parametrize("file", ["table", "attention", "loss"])
def test_counted_costs_are_the_committed_ones(file):
    (section,) = (s for s in PAGES["kernels"].split("\n### ") if f"results/cost/{file}.md" in s)
    (shown,) = tables(section)
    (committed,) = tables((RESULTS / "cost" / f"{file}.md").read_text(encoding="utf-8"))
    committed = [row for row in committed if row.get("dtype", "bfloat16") == "bfloat16"]
    assert len(shown) >= 6
    for row in shown:
        assert any(row.items() <= other.items() for other in committed), row


def test_ratios_are_the_committed_floors():
    floors = json.loads((RESULTS / "floors" / f"{MACHINE}.json").read_text())
    for row in table_of("results", "operation", "hidden 256", "hidden 768"):
        for width in (256, 768):
            assert float(row[f"hidden {width}"]) == floors[f"{row['operation']}-4096x{width} step"]["eager"]


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


def fine_tunings(name: str) -> list[dict]:
    """As committed, one of a task and a seed each."""
    lines = (RESULTS / "recipes" / "glue" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_forty_minutes_are_the_committed_ones():
    cells, (shown,) = cells_of("glue"), tables(section("Forty minutes, and GLUE"))
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


def test_figures_are_those_of_the_readme_or_the_results():
    sources = [ROOT / "README.md", RESULTS / MACHINE / "report.md", *(RESULTS / "floors").iterdir()]
    known = set(re.findall(r"\d+(?:[,.]\d+)*", " ".join(path.read_text(encoding="utf-8") for path in sources)))
    prose = re.sub(r"^```.*?^```$|\]\([^)]*\)|`[^`]*`", "", PAGES["results"], flags=re.MULTILINE | re.DOTALL)
    figures = re.findall(r"\d+(?:[,.]\d+)*", prose)
    assert len(figures) > 40 and set(figures) <= known


def test_the_tables_of_recipes():
    bundles = {row["bundle"]: row for row in table_of("recipes", "bundle")}
    assert {
        name: (row["architecture"], row["training"], row["data"]) for name, row in bundles.items()
    } == {name: (r.architecture.name, r.training.name, r.data.name) for name, r in BUNDLES.items()}  # fmt: skip
    norms, positions = {"pre": "before", "post": "after"}, {"scaled-sinusoidal": "scaled sinusoids", "rope": "rotary"}
    assert [list(row.values()) for row in table_of("recipes", "architecture", "layers")] == [
        [a.name, str(a.layers), str(a.hidden), str(a.heads), f"{a.ffn.upper()}, {a.ffn_hidden}", norms[a.norm],
         positions.get(a.positions, a.positions), str(a.max_length)]
        for a in ARCHITECTURES.values()
    ]  # fmt: skip
    rows = table_of("recipes", "training", "optimizer")
    assert [row["training"] for row in rows] == list(TRAININGS)
    for row, t in zip(rows, TRAININGS.values(), strict=True):
        assert row["optimizer"].lower().split(",")[0] == t.optimizer and row["schedule"] == t.schedule
        assert float(row["peak rate"]) == t.peak_lr and row["masked"] == f"{100 * t.masking_rate:g} %"
        assert t.masking_rate == t.masking_rate_final
        assert str(t.batch_size) in row["rows a batch"] and (f"at {t.batch_ramp:g}" in row["rows a batch"]) == (
            t.batch_ramp > 0
        )


def test_the_reference_is_built_without_a_warning(tmp_path):
    pytest.importorskip("pdoc", reason="pdoc is not installed (pip install -e '.[docs]')")
    program = "import warnings; warnings.filterwarnings('error', module='pdoc'); from pdoc.__main__ import cli; cli()"
    words = shlex.split(next(line for _, body in BLOCKS["index"] for line in body.splitlines() if "$ pdoc " in line))
    arguments = [str(tmp_path) if word == "api" else word for word in in_braces(words[2:])]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "geglu" in (tmp_path / "cramkernels.html").read_text(encoding="utf-8")
    assert (tmp_path / "cramming_train" / "recipes" / "training.html").is_file()
