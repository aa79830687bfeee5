"""The pictures of a report: SVG by matplotlib without background, in the colours of light and of dark pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cramming_train.evaluation.suites import GLUE

WIDTH, PANEL_HEIGHT = 5.4, 2.0  # inches
MOST_POINTS = 800  # of a curve: more than the pixels it is seen on
REFERENCES = ("s", "D", "v")  # markers of the published models

Event = dict[str, Any]


@dataclass(frozen=True)
class Theme:
    """Colours of one kind of page."""

    ink: str
    grid: str
    ours: str
    accent: str
    quiet: tuple[str, str, str]


LIGHT = Theme("#3b4148", "#e3e6ea", "#1f5fa8", "#c2571f", ("#4b5561", "#7d8894", "#a9b3bd"))
DARK = Theme("#c4cad1", "#31373e", "#6aa9ee", "#f0955f", ("#d3dae1", "#98a3ae", "#6b7681"))


@dataclass(frozen=True)
class Picture:
    """A picture ready for a page: its title, what it shows in words, and the two drawings as data URIs."""

    title: str
    words: str
    light: str
    dark: str


def loss_picture(steps: Sequence[Event], validations: Sequence[Event], unigram: float | None) -> Picture:
    """Training and held-out loss against time and against tokens."""

    def draw(axes) -> None:
        for axis, horizontal in zip(axes, (hours, tokens), strict=True):
            _curve(axis, horizontal(steps), _values(steps, "loss"), LIGHT.ours, "training")
            if validations:
                held_out = _values(validations, "loss")
                axis.plot(horizontal(validations), held_out, "o-", color=LIGHT.accent, ms=4, lw=1.2, label="held-out")
            if unigram is not None:
                axis.axhline(unigram, color=LIGHT.quiet[1], ls="--", lw=1, label="unigram model")
            _log_scale(axis)
            axis.set_ylabel("masked-LM loss (nats)")
        axes[0].set_xlabel(hours.label)
        axes[1].set_xlabel(tokens.label)
        handles, labels = axes[0].get_legend_handles_labels()
        axes[0].figure.legend(handles, labels, frameon=False, ncols=3, loc="outside upper right")

    hours, tokens = _Hours(steps), _Tokens(steps)
    return _picture("Loss", "training and held-out loss against time and tokens", 2, draw, share=False)


def schedule_picture(steps: Sequence[Event]) -> Picture:
    """Learning rate, batch, masking rate, and the window of attention where it has one, against time."""
    hours = _Hours(steps)
    panels = [
        ("learning_rate", "learning rate", 1),
        ("batch_rows", "batch (rows)", 1),
        ("masking_rate", "masked (%)", 100),
    ]
    words = "learning rate, batch and masking rate against time"
    if any(step.get("attention_window") is not None for step in steps):
        panels.append(("attention_window", "window (tokens)", 1))
        words = "learning rate, batch, masking rate and attention's window, until it is whole rows, against time"

    def draw(axes) -> None:
        for axis, (key, label, scale) in zip(axes, panels, strict=True):
            axis.step(*_thinned(hours(steps), scale * _values(steps, key)), where="post", color=LIGHT.ours, lw=1.4)
            axis.set_ylabel(label)
            _from_zero(axis)
        axes[-1].set_xlabel(hours.label)

    return _picture("Schedule", words, len(panels), draw, height=1.5)


def throughput_picture(steps: Sequence[Event]) -> Picture:
    """Tokens a second and the share of the machine's matrix rate."""
    hours = _Hours(steps)

    def draw(axes) -> None:
        _curve(axes[0], hours(steps), _values(steps, "tokens_per_second"), LIGHT.ours)
        axes[0].set_ylabel("tokens / s")
        _from_zero(axes[0])
        axes[0].yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        _curve(axes[1], hours(steps), 100 * _values(steps, "model_flops_utilization"), LIGHT.ours)
        axes[1].set(ylabel="MFU (% of GEMM rate)", xlabel=hours.label)
        _from_zero(axes[1])

    words = "tokens a second, and model FLOPs as a share of the machine's measured matrix rate, against time"
    return _picture("Throughput", words, 2, draw)


def gradient_picture(steps: Sequence[Event], clip: float | None) -> Picture:
    """Gradient norm before clipping."""
    hours = _Hours(steps)

    def draw(axes) -> None:
        _curve(axes[0], hours(steps), _values(steps, "grad_norm"), LIGHT.ours, "before clipping")
        if clip is not None:
            axes[0].axhline(clip, color=LIGHT.accent, ls="--", lw=1, label=f"clipped to {clip:g}")
        _log_scale(axes[0])
        axes[0].set(ylabel="gradient norm", xlabel=hours.label)
        axes[0].figure.legend(frameon=False, ncols=2, loc="outside upper right")

    return _picture("Gradient norm", "norm of the gradient before clipping, against time", 1, draw)


def glue_picture(scores: dict[str, Any], name: str) -> Picture:
    """Each task's median and spread beside the published scores; open where its data is incomplete."""
    tasks = [row for row in GLUE.headline if row in scores["tasks"]]

    def draw(axes) -> None:
        axis = axes[0]
        for place, task in enumerate(tasks):
            entry = scores["tasks"][task]
            values = [100 * value for value in entry["values"]]
            axis.hlines(place - 0.12, min(values), max(values), color=LIGHT.ours, lw=3, alpha=0.45)
            filled = LIGHT.ours if entry["complete"] else "none"
            label = {"label": f"{name}: median, lowest to highest seed"} if place == 0 else {}
            axis.plot(
                100 * entry["median"], place - 0.12, "o", ms=7, mec=LIGHT.ours, mfc=filled, mew=1.6, ls="none", **label
            )
        for (label, values), color, marker in zip(GLUE.published.items(), LIGHT.quiet, REFERENCES, strict=True):
            shown = [values[task] for task in tasks]
            axis.plot(
                shown, np.arange(len(tasks)) + 0.18, marker, ms=4.5, color=color, ls="none", zorder=1.9, label=label
            )
        names = [GLUE.rows[task][1].label + ("" if scores["tasks"][task]["complete"] else "*") for task in tasks]
        axis.set_yticks(range(len(tasks)), names)
        axis.set(ylim=(len(tasks) - 0.4, -0.6), xlabel="score on the development set (%)")
        axis.figure.legend(frameon=False, loc="outside upper left", ncols=1)

    words = "scores by task beside published ones"
    if not all(scores["tasks"][task]["complete"] for task in tasks):
        words += "; * and an open circle: incomplete data"
    return _picture("GLUE", words, 1, draw, height=1.5 + 0.32 * len(tasks))


# --- axes


class _Hours:
    """Budget used, in hours or minutes."""

    def __init__(self, steps: Sequence[Event]):
        in_hours = max(step["elapsed"] for step in steps) >= 2 * 3600
        self._unit = 3600 if in_hours else 60
        self.label = f"budget used ({'hours' if in_hours else 'minutes'})"

    def __call__(self, events: Sequence[Event]) -> np.ndarray:
        return np.array([event["elapsed"] for event in events]) / self._unit


class _Tokens:
    """Tokens seen, in a unit that fits."""

    def __init__(self, steps: Sequence[Event]):
        most = max(step["tokens"] for step in steps)
        self._unit, word = next(
            (unit, word) for unit, word in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")) if most >= unit
        )
        self.label = f"tokens seen ({word})" if word else "tokens seen"

    def __call__(self, events: Sequence[Event]) -> np.ndarray:
        return np.array([event["tokens"] for event in events]) / self._unit


def _values(events: Sequence[Event], key: str) -> np.ndarray:
    return np.array([np.nan if event.get(key) is None else event[key] for event in events], dtype=float)


def _curve(axis, x: np.ndarray, y: np.ndarray, color: str, label: str | None = None) -> None:
    """A noisy curve: itself, pale, and its running mean over a fiftieth of it."""
    known = np.isfinite(y)
    x, y = x[known], y[known]
    window = len(y) // 50
    if window < 3:
        axis.plot(*_thinned(x, y), color=color, lw=1.2, label=label)
        return
    axis.plot(*_thinned(x, y), color=color, lw=0.7, alpha=0.35)
    sums = np.cumsum(np.insert(y, 0, 0.0))
    mean = (sums[window:] - sums[:-window]) / window
    first = window // 2
    axis.plot(*_thinned(x[first : first + len(mean)], mean), color=color, lw=1.4, label=label)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most MOST_POINTS: of every stretch its lowest and its highest point, so that no spike is lost."""
    if len(y) <= MOST_POINTS:
        return x, y
    edges = np.linspace(0, len(y), MOST_POINTS // 2 + 1).astype(int)
    chosen = []
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        chosen += sorted({start + int(y[start:stop].argmin()), start + int(y[start:stop].argmax())})
    return x[chosen], y[chosen]


def _from_zero(axis) -> None:
    """From zero to a little above the highest value."""
    axis.set_ylim(0, 1.1 * axis.dataLim.y1 if axis.dataLim.y1 > 0 else 1)


def _log_scale(axis) -> None:
    """Logarithmic, with plain round numbers at the ticks."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(MaxNLocator(6))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter("{x:g}")


# --- drawing


def _picture(
    title: str, words: str, panels: int, draw: Callable[[Any], None], *, height: float = PANEL_HEIGHT,
    share: bool = True,
) -> Picture:  # fmt: skip
    """Draw once, in the light theme; the dark drawing is the same with each of its colours replaced."""
    light = _drawing(panels, height, share, draw)
    dark = light
    for old, new in zip(_colours(LIGHT), _colours(DARK), strict=True):
        dark = dark.replace(old, new)
    return Picture(title, words, _data_uri(light), _data_uri(dark))


def _colours(theme: Theme) -> tuple[str, ...]:
    return (theme.ink, theme.grid, theme.ours, theme.accent, *theme.quiet)


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode("ascii")


def _drawing(panels: int, height: float, share: bool, draw: Callable[[Any], None]) -> str:
    """One drawing as SVG; the same numbers give the same text."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style = {
        "font.size": 8.5, "font.family": "DejaVu Sans", "legend.fontsize": 8, "svg.fonttype": "path",
        "svg.hashsalt": "report", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "axes.axisbelow": True, "grid.color": LIGHT.grid, "grid.linewidth": 0.7, "axes.edgecolor": LIGHT.quiet[1],
        "axes.linewidth": 0.8,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), LIGHT.ink),
        **dict.fromkeys(("xtick.color", "ytick.color"), LIGHT.quiet[1]),
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure, axes = plt.subplots(
            panels, 1, figsize=(WIDTH, 0.3 + height * panels), sharex=share, layout="constrained", squeeze=False
        )
        try:
            draw(list(axes[:, 0]))
            figure.align_ylabels()
            data = io.StringIO()
            figure.savefig(data, format="svg", transparent=True, metadata={"Date": None})
        finally:
            plt.close(figure)
    return data.getvalue()
