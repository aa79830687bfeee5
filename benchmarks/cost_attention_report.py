"""Attention's cost table as markdown and as JSON lines, and where ours misses a target."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from benchmarks.cost_cases import LANGUAGES
from benchmarks.cost_count import PARTS
from benchmarks.cost_peers import versions
from benchmarks.cost_targets import SLACK

RESULTS = Path(__file__).with_name("results") / "cost"
SINGLE_TILE, COMPARED_BOUND = 128, 512  # lengths up to which targets hold
OF_FLOOR, FLOOR_PARTS = 1.25, ("rtx3090", "rtx4090", "a100")
WARPS = 8
EQUAL = 1.001  # bounds: cu_seqlens is DRAM traffic too
HEADINGS = (
    "S", "direction", "implementation", "MB", "requested", "DRAM", "worst", "index MB", "torch MB", "conflicts",
    "spilled B", "instr", "issued", *PARTS, "warps",
)  # fmt: skip
LEGEND = (
    "16384 tokens in sequences of S, 12 heads of 64 columns; no mask, no dropout, no rotation. One line is all "
    "launches of one direction. Two heads were executed, for sm_80, and counts multiplied: heads do not differ. Every "
    "figure is a count, or a bound made from counts; nothing here was timed.",
    "MB (1e6): compulsory bytes, q, k, v and out forward, q, k, v, dout and the three gradients backward, and the "
    "log-sum-exp, each once. requested: bytes of the sectors that warps ask for, temporary buffers included. DRAM: "
    "distinct sectors, summed over the launches. Both also as a multiple of MB.",
    "worst: the activation or gradient that is asked for most, over its own bytes, loads and stores apart; q, k, v and "
    "their gradients are counted each for itself, also where they lie packed in one buffer.",
    "index MB: requested of cu_seqlens, a few sectors that every CTA reads again, not among requested and DRAM. The "
    "peers have no such thing: their sequences are of one length.",
    "torch MB: what torch does between the launches (scaling, zeroing, conversion), by shape; in no other column.",
    "instr: PTX instructions a thread executes per element of the output (warp instructions x 32). issued: an estimate "
    "of the machine instructions among them. conflicts: shared-memory wavefronts beyond one a phase.",
    "spilled B: of a thread, stores and loads together, for want of registers, as Triton's assembler reports them for "
    "sm_80, of the launch with the most; in no count of bytes or instructions. Bounds have them as executed once.",
    "{parts}: microseconds that this takes at the very least, with the grids of the launchers divided over the part's "
    "multiprocessors, perfect overlap, no latency, no hits in L1; in brackets what sets it in the longest launch, and "
    "its multiple of the floor: the larger of a copy of the compulsory bytes and the products (4 S S D and 10 S S D "
    "for each sequence and head) at the tensor cores' rate with fp32 sums (h100: what mma.sync reaches). Bounds within "
    "0.1 % of each other are taken for equal.",
    "warps: resident on a multiprocessor, the fewest of these parts and launches, by "
    "benchmarks/results/resources.json, which has the CUDA kernels.",
)
MISSED = "Where ours misses a target:"


def header(full: bool, commits: dict[str, str]) -> dict:
    """How the table was made."""
    command = f"python -m benchmarks.cost_attention{' --full' if full else ''}"
    found = {name: version for name, version in versions().items() if name in ("torch", "triton")}
    return {"command": command, "versions": found, "peers": commits}


def with_stored(head: dict, languages: Collection[str]) -> tuple[dict, list[dict]]:
    """(the stored table's head, its rows of these languages); this head and none, where versions or lengths differ."""
    stored, rows = committed()
    if {**stored, "peers": {}} != {**head, "peers": {}}:
        return head, []
    return stored, [row for row in rows if row["language"] in languages]


def markdown(head: dict, rows: list[dict]) -> str:
    """The table for readers."""
    lines = ["# Counted cost of attention", "", f"`{head['command']} --peer-path FOLDER --write`", ""]
    lines += [", ".join(f"{name} {version}" for name, version in head["versions"].items()) + ".", ""]
    lines += [f"- {line.format(parts=', '.join(PARTS))}" for line in LEGEND]
    for language in dict.fromkeys(row["language"] for row in rows):
        if configuration := next((r["configuration"] for r in rows if r["language"] == language and "dtype" in r), ""):
            lines.append(f"- {language}: {configuration}.")
    lines += [f"- {name}: {commit}, read from --peer-path." for name, commit in head["peers"].items()]
    lines += ["", "| " + " | ".join(HEADINGS) + " |", "|" + " --- |" * len(HEADINGS)]
    for row in rows:
        line = cells(row)
        lines.append("| " + " | ".join(line + [""] * (len(HEADINGS) - len(line))) + " |")
    lines += ["", MISSED, "", *(f"- {line}" for line in misses(rows) or ["nowhere"])]
    return "\n".join(lines) + "\n"


def cells(row: dict) -> list[str]:
    """One line of the table."""
    names = [str(row["length"]), row["direction"], row["language"]]
    if "absent" in row:
        return [*names, row["absent"]]
    compulsory = row["compulsory_bytes"]
    moved = [f"{row[key] / 1e6:.1f} ({row[key] / compulsory:.3f} x)" for key in ("requested_bytes", "dram_bytes")]
    bounds = [row["bounds"][part] for part in PARTS]
    return [
        *names,
        f"{compulsory / 1e6:.1f}",
        *moved,
        f"{row['worst_tensor']} {row['worst_request_ratio']:.3f} x",
        *(f"{row[key] / 1e6:.2f}" if row[key] else "" for key in ("index_bytes", "torch_bytes")),
        str(row["bank_conflicts"]),
        str(row["spilled_bytes"]),
        f"{row['instructions_per_element']:.1f}",
        f"{row['issued_per_element']:.1f}",
        *(f"{bound['microseconds']:.1f} ({bound['pipe']}, {bound['of_floor']:.2f} x)" for bound in bounds),
        str(min(row["warps"].values())) if row["warps"] else "",
    ]


def misses(rows: list[dict]) -> list[str]:
    """One line a row of ours that misses something."""
    lines = []
    for row in rows:
        if row["language"] not in LANGUAGES or "absent" in row:
            continue
        missed = [*_alone(row), *(line for peer in rows for line in _against(row, peer))]
        if missed:
            lines.append(f"{row['length']} {row['direction']} {row['language']}: {'; '.join(missed)}")
    return lines


def _alone(row: dict) -> list[str]:
    missed = [f"{row['bank_conflicts']} bank conflicts"] if row["bank_conflicts"] else []
    missed += [f"{row['spilled_bytes']} bytes spilled"] if row["spilled_bytes"] else []
    if row["length"] > SINGLE_TILE:
        return missed
    for name, (loaded, stored, _) in row["tensors"].items():
        if max(loaded, stored) > SLACK:
            missed.append(f"{name} is requested {max(loaded, stored)} x")
    if row["footprint_ratio"] > SLACK:
        missed.append(f"DRAM footprint {row['footprint_ratio']} x")
    for part in FLOOR_PARTS:
        bound = row["bounds"][part]
        if bound["of_floor"] > OF_FLOOR:
            missed.append(f"bound {bound['of_floor']} x the floor on {part}, by {bound['pipe']}")
    missed += [f"{warps} resident warps on {part}" for part, warps in row["warps"].items() if warps < WARPS]
    return missed


def _against(row: dict, peer: dict) -> list[str]:
    same = all(peer[key] == row[key] for key in ("length", "direction"))
    if not same or peer["language"] in LANGUAGES or "absent" in peer:
        return []
    missed = []
    strictly = row["direction"] == "backward" and row["length"] <= SINGLE_TILE
    for key, what in (("requested_bytes", "requested"), ("dram_bytes", "of DRAM")):
        if row[key] > peer[key] or (strictly and row[key] == peer[key]):
            missed.append(f"{row[key] / 1e6:.2f} MB {what}, {peer['language']} {peer[key] / 1e6:.2f}")
    if row["length"] <= COMPARED_BOUND:
        for part in PARTS:
            ours, theirs = (side["bounds"][part]["microseconds"] for side in (row, peer))
            if ours > EQUAL * theirs:
                pipe = row["bounds"][part]["pipe"]
                missed.append(f"bound {ours} us on {part}, by {pipe}, {peer['language']} {theirs}")
    return missed


def write(head: dict, rows: list[dict]) -> None:
    """``attention.jsonl``, whose first line says how it was made, and ``attention.md``."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "attention.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (head, *rows)))
    (RESULTS / "attention.md").write_text(markdown(head, rows))


def committed() -> tuple[dict, list[dict]]:
    """The stored header and rows."""
    head, *rows = map(json.loads, (RESULTS / "attention.jsonl").read_text().splitlines())
    return head, rows
