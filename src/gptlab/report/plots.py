"""The curves of a run, as SVG and PNG files and as SVG that follows the page's colours.

Colours are Okabe and Ito's, which colour-blind readers tell apart (jfly.uni-koeln.de/color, 2008); lines also
differ in dash and marker.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, PAPER, GRID = "#24292f", "#ffffff", "#d8dee4"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
PAGE_COLOURS = {INK: "currentColor", PAPER: "none", GRID: "var(--line)", BLUE: "var(--blue)", ORANGE: "var(--orange)",
                GREEN: "var(--green)"}  # fmt: skip
"""What the colours are called in a page: report.html says what they are in the light and in the dark."""

STYLE: dict[Any, Any] = {
    "font.size": 10, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "text.color": INK, "axes.linewidth": 0.8, "lines.linewidth": 1.6, "legend.frameon": False,
    "svg.fonttype": "none", "svg.hashsalt": "gptlab",  # text stays text, and the same run gives the same file
}  # fmt: skip

SINGLE = {
    "learning_rate": ("learning_rate", "learning rate"),
    "gradient_norm": ("gradient_norm", "gradient norm before clipping"),
    "throughput": ("tokens_per_second", "{unit}s per second"),
}
"""Plots of one key of the `step` lines: name → (key, the axis' words)."""

SAYS_NOTHING = 15.0
"""A loss above which nobody asks for the perplexity: 3 million, larger than any vocabulary."""

Record = dict[str, Any]


def draw_plots(
    metrics: Sequence[Record], folder: Path, unigram_perplexity: float | None = None, unit: str = "token"
) -> dict[str, str]:
    """Writes loss, reward, learning_rate, gradient_norm and throughput as .svg and .png into `folder`.

    Returns name → SVG for a page. A plot for which the run has no two points yet is left out. `unit` is what a loss is
    over: a token, an answer token.
    """
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figures = {"loss": _loss(metrics, unigram_perplexity, unit), "reward": _reward(metrics)}
        figures |= {name: _single(metrics, key, words.format(unit=unit)) for name, (key, words) in SINGLE.items()}
        return {name: _write(figure, folder / name) for name, figure in figures.items() if figure is not None}


def points(metrics: Sequence[Record], event: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values), each (n,) float64, of the lines of `event` that have a finite `key`."""
    found = [(line["step"], line[key]) for line in metrics if line["event"] == event and line.get(key) is not None]
    steps, values = np.array(found, dtype=np.float64).reshape(-1, 2).T
    finite = np.isfinite(values)
    return steps[finite], values[finite]


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """The means (n - window + 1,) of all `window` values in a row, of (n,). Drawn over the windows' middles nothing
    lags, and where a window is not full there is no mean: a single noisy value would look like one."""
    return np.convolve(values, np.full(window, 1 / window), mode="valid")


def _loss(metrics: Sequence[Record], unigram_perplexity: float | None, unit: str) -> Figure | None:
    steps, losses = points(metrics, "step", "loss")
    if len(steps) < 2:
        return None
    figure, axes = _axes(f"loss (nats per {unit})", size=(7.6, 4.2))
    window = max(1, len(steps) // 40) | 1
    smoothed = window > 1
    width, alpha = (0.8, 0.3) if smoothed else (1.6, 1.0)
    axes.plot(steps, losses, color=BLUE, alpha=alpha, linewidth=width, label="training")
    if smoothed:
        middles = steps[window // 2 : len(steps) - window // 2]
        axes.plot(middles, smooth(losses, window), color=BLUE, label=f"training, mean of {window} points")
    sampled, whole = (points(metrics, event, "loss") for event in ("validation_sampled", "validation"))
    if len(sampled[0]):
        axes.plot(*sampled, "v--", color=GREEN, markersize=4, label="validation, a sample")
    if len(whole[0]):  # seldom, where there is a sample: a line between them would say what nobody measured
        style = "o" if len(sampled[0]) else "o-"
        axes.plot(*whole, style, color=ORANGE, markersize=4, label="validation, whole")
    if unigram_perplexity:
        axes.axhline(math.log(unigram_perplexity), color=INK, linewidth=0.8, linestyle=":", label="unigram model")
    if axes.get_ylim()[1] < SAYS_NOTHING:
        _add_perplexity(axes)
    axes.legend(loc="upper right")
    return figure


def _reward(metrics: Sequence[Record]) -> Figure | None:
    steps, means = points(metrics, "reward", "mean")
    if len(steps) < 2:
        return None
    figure, axes = _axes("mean reward", size=(7.6, 3.2))
    low, high = (points(metrics, "reward", key)[1] for key in ("low", "high"))
    axes.fill_between(steps, low, high, color=GREEN, alpha=0.2, linewidth=0, label="95 % interval")
    axes.plot(steps, means, "o-", color=GREEN, markersize=4, label="mean")
    axes.legend(loc="best")
    return figure


def _single(metrics: Sequence[Record], key: str, words: str) -> Figure | None:
    steps, values = points(metrics, "step", key)
    if len(steps) < 2:
        return None
    figure, axes = _axes(words, size=(3.8, 2.8))
    axes.plot(steps, values, color=BLUE, linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}" if values.max() >= 1000 else "{x:g}")
    return figure


def _axes(words: str, size: tuple[float, float]) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=size, facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot(facecolor=PAPER)
    axes.set_xlabel("step")
    axes.set_ylabel(words)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=round(size[0]) + 1, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    return figure, axes


def _add_perplexity(axes: Axes) -> None:
    """A second axis on the right: the perplexities 1, 2, 5, 10, 20, 50, … at their losses."""
    low, high = axes.get_ylim()
    marks = [n * 10.0**tens for tens in range(-2, 8) for n in (1, 2, 5)]
    marks = [mark for mark in marks if low <= math.log(mark) <= high]
    right = axes.twinx()
    right.set_ylim(low, high)
    right.set_ylabel("perplexity")
    right.set_yticks([math.log(mark) for mark in marks], [f"{mark:,g}" for mark in marks])
    right.spines[:].set_visible(False)


def _write(figure: Figure, path: Path) -> str:
    """The figure as path.svg and path.png; returns the SVG with the page's colours, ready to stand in HTML."""
    figure.savefig(path.with_suffix(".png"), dpi=200)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    path.with_suffix(".svg").write_text(svg, encoding="utf-8")
    inline = svg[svg.index("<svg ") :]
    inline = re.sub(r"<metadata>.*?</metadata>", "", inline, flags=re.DOTALL)
    inline = re.sub(r' (width|height)="[\d.]+pt"', "", inline, count=2)
    for colour, name in PAGE_COLOURS.items():
        inline = inline.replace(colour, name)
    # Identifiers are the page's, not the figure's: two figures must not share one.
    return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{path.name}-", inline)
