"""``summary.md`` of a session: the machine, what passed, the figures and pictures, as it may be posted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.results import BadFolder, read

TAIL = 15  # lines of a failed step's log
State = dict[str, Any]


def write(folder: Path, state: State) -> Path:
    """From the state of the session and what its steps have left in the folder."""
    path = folder / "summary.md"
    path.write_text(page(folder, state), encoding="utf-8")
    return path


def page(folder: Path, state: State) -> str:
    """The text."""
    machine, done = state["machine"], state["steps"]
    passed = sum(step["status"] == "passed" for step in done.values())
    lines = [f"# cramkernels on {machine.get('GPU', 'an unknown card')}", "",
             f"`python -m benchmarks.gpu_session`, {state['started']}: {passed} of {len(state['planned'])} steps "
             "passed.", ""]  # fmt: skip
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in machine.items()), ""]
    lines += _steps(state) + _pretraining(folder) + _benchmarks(folder) + _failures(folder, done)
    return "\n".join(lines) + "\n"


def _steps(state: State) -> list[str]:
    lines = ["| step | | result | seconds | output |", "|---|---|---|---|---|"]
    for name, what in state["planned"].items():
        step = state["steps"].get(name)
        if step is None:
            lines.append(f"| {name} | {what} | not run | | |")
        else:
            status = step["status"] if step["status"] == "passed" else f"**{step['status']}**"
            lines.append(f"| {name} | {what} | {status} | {step['seconds']:.0f} | [{name}.log]({name}.log) |")
    return [*lines, ""]


def _pretraining(folder: Path) -> list[str]:
    """Of its summary.json, whatever is there."""
    try:
        found = json.loads((folder / "pretraining" / "summary.json").read_text())
    except (OSError, ValueError):
        return []
    lines = ["## Pretraining", "", "| | |", "|---|---|"]
    for key in ("recipe", "train_seconds", "tokens", "tokens_per_second", "model_flops_utilization", "train_loss",
                "validation_loss", "validation_accuracy"):  # fmt: skip
        if key in found:
            lines.append(f"| {key} | {report.number(found[key])} |")
    if isinstance(data := found.get("data"), dict):
        lines.append(f"| unigram model's loss | {report.number(data.get('unigram_loss'))} |")
        lines.append(f"| data | {data.get('source')} |")
    lines += [
        "",
        *(f"![{path.stem}](pretraining/{path.name})" for path in sorted((folder / "pretraining").glob("*.png"))),
    ]
    return [*lines, ""]


def _benchmarks(folder: Path) -> list[str]:
    """The report's tables and pictures, a heading lower."""
    try:
        machine, rows = read(folder)
    except BadFolder:
        return []
    pictures = {family: folder / f"{family}.png" for family in report.TITLES if (folder / f"{family}.png").exists()}
    _, _, rest = report.markdown(machine, rows, pictures).partition("\n")
    return ["## Benchmarks", *rest.replace("\n## ", "\n### ").splitlines(), ""]


def _failures(folder: Path, done: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for name, step in done.items():
        if step["status"] == "passed":
            continue
        try:
            said = (folder / f"{name}.log").read_text(errors="replace").splitlines()
        except OSError:
            said = []
        lines += [f"## {name}: {step['status']}", "", f"`{' '.join(step['command'])}`", "", "```", *said[-TAIL:], "```",
                  ""]  # fmt: skip
    return lines
