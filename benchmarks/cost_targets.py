"""Which of our rows miss a target, and by how much: computed from the counts, printed under the table."""

from __future__ import annotations

from benchmarks.cost_cases import LANGUAGES
from benchmarks.cost_count import PARTS
from benchmarks.cost_peers import LIGER

SLACK = 1.02  # on bytes requested of a tensor, and on the DRAM footprint
PARTIAL_BYTES = 4 << 20
FRACTION = {"forward": 0.85, "backward": 0.75}  # of copy bandwidth


def misses(results: list[dict]) -> list[str]:
    """One line a row of ours that misses something."""
    liger = {_shape(row): row for row in results if row["language"] == LIGER and "absent" not in row}
    lines = []
    for row in results:
        if row["language"] not in LANGUAGES or "absent" in row:
            continue
        if missed := [*_alone(row), *_against(row, liger.get(_shape(row)))]:
            lines.append(f"{' '.join(part for part in (*_shape(row), row['language']) if part)}: {'; '.join(missed)}")
    return lines


def _shape(row: dict) -> tuple[str, ...]:
    return tuple(row[name] for name in ("operation", "variant", "dtype", "shape", "direction"))


def _alone(row: dict) -> list[str]:
    missed = []
    if row["worst_request_ratio"] > SLACK:
        missed.append(f"{row['worst_tensor']} is requested {row['worst_request_ratio']} x")
    if row["footprint_ratio"] > SLACK:
        missed.append(f"DRAM footprint {row['footprint_ratio']} x")
    if row["partial_bytes"] > PARTIAL_BYTES:
        missed.append(f"partial sums of {row['partial_bytes']} bytes")
    if row["loop_bank_conflicts"]:
        missed.append("bank conflicts in a loop over rows")
    goal = FRACTION[row["direction"]]
    for part in PARTS:
        bound = row["bounds"][part]
        if bound["fraction"] < goal:
            missed.append(f"cannot reach {goal} of copy bandwidth on {part} ({bound['fraction']}, {bound['pipe']})")
    return missed


def _against(row: dict, liger: dict | None) -> list[str]:
    if liger is None:
        return []
    missed = []
    for key, what in (
        ("issued_per_element", "machine instructions an element"),
        ("instructions_per_element", "PTX instructions an element"),
    ):
        if row[key] >= liger[key]:
            why = "; counting register moves, which vanish" if key.startswith("instructions") else ""
            missed.append(f"{what} {row[key]}, Liger {liger[key]}{why}")
    if row["dram_bytes"] > liger["dram_bytes"]:
        ours, theirs = (f"{side['dram_bytes'] / 1e6:.1f} MB" for side in (row, liger))
        partials = f"{row['partial_bytes'] / 1e6:.1f} MB against {liger['partial_bytes'] / 1e6:.1f} MB"
        missed.append(f"DRAM bytes with partial sums {ours}, Liger {theirs} ({partials})")
    return missed
