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

import pytest

from cramming_train.recipes import ARCHITECTURES, BUNDLES, TRAININGS, apply_overrides, get_recipe
from cramming_train.study.contender import parse_contenders
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
