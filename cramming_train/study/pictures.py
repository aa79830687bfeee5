"""The picture of a study: held-out loss against time and against tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cramming_train.study.table import CLOCKS

POINTS = 200


def draw(path: Path, labels: Sequence[str], cells: Sequence[dict[str, Any]], clock: str) -> None:
    """Two panels, a line a contender: the mean over its seeds, with their range as a band.

    ImportError where matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    present = [label for label in labels if any(cell["label"] == label for cell in cells)]
    colors = plt.get_cmap("tab10" if len(present) <= 10 else "turbo")
    figure, panels = plt.subplots(1, 2, figsize=(12, 5), sharey=True, layout="constrained")
    for axis, column, name in zip(panels, (CLOCKS[clock][1], 0), (f"{clock} seconds in steps", "tokens"), strict=True):
        for number, label in enumerate(present):
            group = [np.array(cell["curve"], dtype=float) for cell in cells if cell["label"] == label]
            color = colors(number if len(present) <= 10 else number / (len(present) - 1))
            at = np.geomspace(max(c[0, column] for c in group), min(c[-1, column] for c in group), POINTS)
            losses = np.stack([np.interp(at, c[:, column], c[:, 3]) for c in group])
            axis.plot(at, losses.mean(0), color=color, linewidth=1.6, label=label)
            axis.plot(at[-1], losses.mean(0)[-1], "o", color=color, markersize=4)
            if len(group) > 1:
                axis.fill_between(at, losses.min(0), losses.max(0), color=color, alpha=0.15, linewidth=0)
        axis.set(xscale="log", xlabel=name)
        axis.grid(True, color="#e6e9ed", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("held-out masked-LM loss (nats)")
    panels[1].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
