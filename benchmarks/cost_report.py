"""The cost table as aligned text, as markdown and as JSON lines."""

from __future__ import annotations

import json
import platform
from pathlib import Path

from benchmarks.cost_count import MULTIPROCESSORS, PARTS
from benchmarks.cost_targets import misses

NAMES = ("operation", "variant", "dtype", "shape", "direction", "language")
HEADINGS = (
    *NAMES, "MB", "requested", "DRAM", "param MB", "partial MB", "conflicts", "instr", "issued", *PARTS,
)  # fmt: skip
LEGEND = (
    "One line is one call, all its launches together, executed for sm_80 on the grids of {part} ({sms} "
    "multiprocessors). Every figure is a count, or a bound made from counts; nothing here was timed.",
    "MB: compulsory bytes (1e6), each activation and gradient once. requested: bytes of the sectors that warps ask "
    "for, over the tensor's own, for the worst activation or gradient. DRAM: distinct sectors of activations, "
    "gradients and row statistics, over the compulsory bytes.",
    "param MB: requested of parameters and their gradients, not of DRAM. partial MB: memory of the partial sums of "
    "parameter gradients. conflicts: shared-memory wavefronts beyond one a phase, in loops over rows + elsewhere.",
    "instr: PTX instructions a thread executes per element of the output (warp instructions x 32). issued: an estimate "
    "of the machine instructions among them: register moves vanish, divisions become several.",
    "{parts}: upper bound on the fraction of copy bandwidth, and what sets it in the longest launch: the counted bytes "
    "and instructions, divided over the part's multiprocessors as its own grid would be, with perfect overlap, no "
    "latency and no hits in L1. Partial sums count as DRAM traffic.",
    "Liger sums its partial rows with torch, a launch that is not counted. torch.compile's kernels are those of "
    "inductor for a pretended GPU, each with its first launch configuration, where a card would try several.",
)
MISSED = "Rows of ours that miss a target:"


def legend() -> list[str]:
    """What the columns mean."""
    part = PARTS[0]
    return [line.format(part=part, sms=MULTIPROCESSORS[part], parts=", ".join(PARTS)) for line in LEGEND]


def cells(row: dict) -> list[str]:
    """One line of the table."""
    names = [str(row[name]) for name in NAMES]
    if "absent" in row:
        return [*names, row["absent"]]
    requested, in_loops = row["requested_bytes"], row["loop_bank_conflicts"]
    conflicts = f"{in_loops}+{row['bank_conflicts'] - in_loops}" if row["bank_conflicts"] else "0"
    return [
        *names,
        f"{row['compulsory_bytes'] / 1e6:.1f}",
        f"{row['worst_request_ratio']:.3f} {row['worst_tensor']}",
        f"{row['footprint_ratio']:.3f}",
        f"{requested['parameter'] / 1e6:.2f}",
        f"{row['partial_bytes'] / 1e6:.2f}",
        conflicts,
        f"{row['instructions_per_element']:.1f}",
        f"{row['issued_per_element']:.1f}",
        *(f"{row['bounds'][part]['fraction']:.2f} {row['bounds'][part]['pipe']}" for part in PARTS),
    ]


def text(results: list[dict]) -> str:
    """Aligned columns."""
    table = [list(HEADINGS), *(cells(row) for row in results)]
    full = [line for line in table if len(line) == len(HEADINGS)]
    widths = [max(len(line[i]) for line in full) for i in range(len(HEADINGS))]
    widths[: len(NAMES)] = [max(len(line[i]) for line in table) for i in range(len(NAMES))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip() for line in table]
    return "\n".join([*lines, "", *legend(), "", MISSED, *(misses(results) or ["none"])])


def markdown(results: list[dict], command: str, versions: dict[str, str]) -> str:
    """The table for readers of the repository."""
    made = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = ["# Counted cost of the LayerNorm/GELU kernels and rotary", "", f"`{command}`", ""]
    lines += [f"Python {platform.python_version()}, {made}.", ""]
    lines += [f"- {line}" for line in legend()] + [""]
    lines += ["| " + " | ".join(HEADINGS) + " |", "|" + " --- |" * len(HEADINGS)]
    for row in results:
        line = cells(row)
        lines.append("| " + " | ".join(line + [""] * (len(HEADINGS) - len(line))) + " |")
    lines += ["", MISSED, "", *(f"- {line}" for line in misses(results) or ["none"])]
    return "\n".join(lines) + "\n"


def write(folder: Path, results: list[dict], command: str, versions: dict[str, str]) -> None:
    """``rows.jsonl``, whose first line says how it was made, and ``table.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    header = {"command": command, "versions": versions, "multiprocessors": MULTIPROCESSORS, "simulated": PARTS[0]}
    lines = [json.dumps(entry) for entry in (header, *results)]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "table.md").write_text(markdown(results, command, versions))
