"""The law that sizes ``cram``, fitted to committed runs: ``python -m benchmarks.scaling_law [--write]``.

Held-out loss after T tokens of a model with N parameters in its blocks, in the form of Hoffmann et al. 2022, "Training
compute-optimal large language models", equation 2: L = E + A / N**alpha + B / T**beta. So few runs do not determine
five numbers: those of that paper are taken as what is likely before anything was measured, each with a width, and so is
that a day on one GPU wants the 16 layers of 768 of Geiping and Goldstein 2022, "Cramming", within a factor. What the
runs leave open is shown by an ensemble: the same fit to losses with noise as between seeds, and to what is likely drawn
anew. ``--write`` stores fit and ensemble where cramming_train/scaling.py reads them, and a picture beside the runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from cramming_train.scaling import LADDER, LAW_FILE, Law, Size

FOLDER = Path(__file__).parent / "results" / "recipes" / "scaling"
# E, alpha, beta: mean and width. The exponents of Hoffmann et al.'s third approach; E of masked tokens of which 85 in a
# hundred neighbours are seen should lie below that of a model of the next token (1.69): how far is an assumption.
# The last: logarithm of the parameters that are neither few nor many for the tokens of a day.
LIKELY = ((1.4, 0.3), (0.34, 0.08), (0.28, 0.08), (float(np.log(Size(16, 768).parameters)), float(np.log(3))))
DAY_TOKENS = 6.9e9  # that the planner predicts for that model on an RTX 3090
NOISE = 0.05  # nats: half of what seeds of cram-mini spread (0.08) and some of the law's own error
MEMBERS = 40  # of the ensemble


def runs(folder: Path = FOLDER) -> list[dict]:
    """The committed cells."""
    return [json.loads(line) for line in (folder / "cells.jsonl").read_text(encoding="utf-8").splitlines()]


def fit(parameters: np.ndarray, tokens: np.ndarray, losses: np.ndarray, likely=LIKELY) -> Law:
    """The most likely law. parameters, tokens, losses: [runs]."""

    def residuals(x: np.ndarray) -> np.ndarray:
        floor, alpha, beta = x[:3]
        found = floor + np.exp(x[3] - alpha * np.log(parameters)) + np.exp(x[4] - beta * np.log(tokens))
        balanced = np.log(Law(floor, np.exp(x[3]), alpha, np.exp(x[4]), beta).balanced(DAY_TOKENS))
        known = floor, alpha, beta, balanced
        prior = [(value - mean) / width for value, (mean, width) in zip(known, likely, strict=True)]
        return np.concatenate([(found - losses) / NOISE, prior])

    start = np.array([*(mean for mean, _ in LIKELY[:3]), 4.0, 4.0])
    lowest, highest = [0.0, 0.02, 0.02, -10.0, -10.0], [3.0, 1.0, 1.0, 20.0, 20.0]
    found = least_squares(residuals, start, bounds=(lowest, highest), x_scale=[0.1, 0.01, 0.01, 0.1, 0.1])
    floor, alpha, beta, a, b = found.x
    return Law(floor, float(np.exp(a)), alpha, float(np.exp(b)), beta)


def ensemble(parameters: np.ndarray, tokens: np.ndarray, losses: np.ndarray) -> list[Law]:
    """What else the runs would allow."""
    random = np.random.default_rng(0)
    return [
        fit(
            parameters, tokens, losses + NOISE * random.standard_normal(len(losses)),
            [(mean + width * random.standard_normal(), width) for mean, width in LIKELY],
        )
        for _ in range(MEMBERS)
    ]  # fmt: skip


def of_runs(cells: list[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(parameters of the blocks, tokens, losses) [runs]."""
    sizes = [Size(cell["layers"], cell["hidden"]).parameters for cell in cells]
    return np.array(sizes), np.array([cell["tokens"] for cell in cells]), np.array([cell["loss"] for cell in cells])


def draw(path: Path, cells: list[dict], law: Law, others: list[Law]) -> None:
    """Loss against tokens for each size: runs, the law, and what the ensemble says between its 5 and 95 %."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    tokens = np.geomspace(1e5, 1e10, 60)
    shown = sorted({(cell["layers"], cell["hidden"]) for cell in cells} | {tuple(LADDER[-2])})
    for number, size in enumerate(Size(*size) for size in shown):
        color = f"C{number}"
        band = np.array([[one.loss(size.parameters, t) for t in tokens] for one in others])
        axes.fill_between(tokens, *np.quantile(band, [0.05, 0.95], axis=0), color=color, alpha=0.15, linewidth=0)
        axes.plot(tokens, [law.loss(size.parameters, t) for t in tokens], color=color, label=str(size))
        own = [cell for cell in cells if (cell["layers"], cell["hidden"]) == size]
        axes.plot([c["tokens"] for c in own], [c["loss"] for c in own], "o", color=color, markersize=4)
    axes.set_xscale("log")
    axes.set_xlabel("tokens")
    axes.set_ylabel("held-out loss (nats)")
    axes.set_title("cram: runs (points) and what is made of them")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Fit; with --write store what is found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling_law", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"store {LAW_FILE.name} and the picture")
    arguments = parser.parse_args(argv)
    cells = runs()
    parameters, tokens, losses = of_runs(cells)
    law, others = fit(parameters, tokens, losses), ensemble(parameters, tokens, losses)
    for cell, n, t, loss in zip(cells, parameters, tokens, losses, strict=True):
        print(f"{cell['layers']:2} layers of {cell['hidden']:4}, {t:9,} tokens: {loss:.3f}, law {law.loss(n, t):.3f}")
    print("law: " + ", ".join(f"{name} {value:.4g}" for name, value in law._asdict().items()))
    if arguments.write:
        content = {"law": rounded(law), "ensemble": [rounded(one) for one in others]}
        LAW_FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        draw(FOLDER / "law.png", cells, law, others)
    return 0


def rounded(law: Law) -> list[float]:
    """To six digits, which machines agree on."""
    return [float(f"{value:.6g}") for value in law]


if __name__ == "__main__":
    sys.exit(main())
