"""``python -m benchmarks.report [FOLDER]``: a page and a picture a family of a folder of results.

Of each family: how near the floor that the machine's own copy and product rates set, and our time against each peer's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import devices
from benchmarks.results import FOLDER, BadFolder, read

OURS, REFERENCE, PEERS = "#1f5fa8", "#b9c3cf", ("#d2642a", "#5f6b78", "#8d99a6", "#3f8f6b", "#b0873b")
TITLES = {"attention": "Attention and rotary embedding", "rows": "LayerNorm, GELU, GEGLU", "loss": "Masked-LM loss"}
LEGEND = (
    "Medians of rounds in which all implementers take turns; a ratio is the median of those within a round. Share of "
    "the floor: the least time that the compulsory bytes and the products take at the measured rates, over our time. A "
    "step is forward and backward together; a backward of its own is their difference."
)
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="default benchmarks/results/<this machine>")
    folder = parser.parse_args(argv).folder or FOLDER / devices.key(devices.present())
    try:
        machine, rows = read(folder)
        pictures = draw(folder, rows)
        page = folder / "report.md"
        page.write_text(markdown(machine, rows, pictures), encoding="utf-8")
    except (BadFolder, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(page)
    return 0


def draw(folder: Path, rows: list[Row]) -> dict[str, Path]:
    """Family -> picture; none, with a notice, where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("no pictures: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
        return {}
    matplotlib.use("Agg")
    families = {family: [row for row in rows if row["family"] == family] for family in TITLES}
    return {family: _picture(folder / f"{family}.png", family, found) for family, found in families.items() if found}


def _picture(path: Path, family: str, rows: list[Row]) -> Path:
    """Left the share of the floor, right ours over each peer's time."""
    import matplotlib.pyplot as plt

    labels = [_label(row) for row in rows]
    places = range(len(rows))
    figure, (floor, ratio) = plt.subplots(
        1, 2, figsize=(11, 1.4 + 0.42 * len(rows)), sharey=True, layout="constrained"
    )  # fmt: skip
    for axis in (floor, ratio):
        axis.grid(True, axis="x", color="#e6e9ed", linewidth=0.8)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    shares = [100 * row.get("share_of_floor", 0) for row in rows]
    floor.barh(places, shares, color=OURS)
    for place, share in zip(places, shares, strict=True):
        floor.text(share + 1, place, f"{share:.0f}", va="center", fontsize=8)
    floor.axvline(100, color=REFERENCE, linestyle="--", linewidth=1)
    floor.set(xlabel="least time at the measured rates, % of ours", xlim=(0, max(110, *shares)))
    floor.set_yticks(places, labels, fontsize=8)
    floor.invert_yaxis()
    peers = list(dict.fromkeys(peer for row in rows for peer in row["ratios"]))
    for peer, color in zip(peers, PEERS, strict=False):
        found = [(place, row["ratios"][peer]) for place, row in zip(places, rows, strict=True) if peer in row["ratios"]]
        ratio.plot([value for _, value in found], [place for place, _ in found], "o", color=color, label=peer)
    ratio.axvline(1, color=OURS, linewidth=1)
    ratio.set(xlabel="our time / theirs (left of the line: ours is faster)", xlim=(0, None))
    if peers:
        ratio.legend(frameon=False, fontsize=8)
    figure.suptitle(TITLES[family])
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _label(row: Row) -> str:
    direction = "" if row["direction"] == "step" else f" {row['direction']}"
    return f"{row['operation']} {row['width']}{direction}"


def markdown(machine: Row, rows: list[Row], pictures: dict[str, Path]) -> str:
    """The page."""
    rates = machine["ceilings"]
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
    lines = [f"# {machine['name']}", "", f"{machine['dtype']}; {versions}. Measured here: copy "
             f"{rates['copy_bytes_per_second'] / 1e9:,.1f} GB/s (read and written), matrix product "
             f"{rates['gemm_flops_per_second'] / 1e12:,.3g} TFLOP/s.", ""]  # fmt: skip
    lines += training(rows)
    for family, title in TITLES.items():
        found = [row for row in rows if row["family"] == family]
        if not found:
            continue
        lines += [f"## {title}", ""]
        if family in pictures:
            lines += [f"![{title}]({pictures[family].name})", ""]
        lines += table(found)
    return "\n".join([*lines, LEGEND, ""])


def training(rows: list[Row]) -> list[str]:
    """End to end."""
    lines = []
    for row in rows:
        if row.get("kind") != "training":
            continue
        lines += [f"## Training {row['recipe']}", ""]
        lines += ["| | tokens/s | of the measured product rate | our time / theirs |", "|---|---|---|---|"]
        for who, rate in row["tokens_per_second"].items():
            ratio = f"{row['ratios'][who]:.3f}" if who in row["ratios"] else ""
            lines.append(f"| {who} | {rate:,.0f} | {100 * row['model_flops_utilization'][who]:.1f} % | {ratio} |")
        lines.append("")
    return lines


def table(rows: list[Row]) -> list[str]:
    """Of one family."""
    peers = list(dict.fromkeys(peer for row in rows for peer in row["ratios"]))
    lines = [f"| operation | tokens x width | | ours, ms | share of floor | {' | '.join(f'/ {p}' for p in peers)} |"]
    lines.append("|" + "---|" * (5 + len(peers)))
    for row in rows:
        ratios = [f"{row['ratios'][peer]:.3f}" if peer in row["ratios"] else "" for peer in peers]
        figures = f"{1e3 * row['seconds']['ours']:.3f}", f"{100 * row.get('share_of_floor', 0):.0f} %"
        cells = [row["operation"], f"{row['tokens']} x {row['width']}", row["direction"], *figures, *ratios]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def number(value: Any) -> str:
    """For a table."""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main())
