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
    "throughput": ("tokens_per_second", "tokens per second"),
}
"""Plots of one key of the `step` lines: name → (key, the axis' words)."""

SAYS_NOTHING = 15.0
"""A loss above which nobody asks for the perplexity: 3 million, larger than any vocabulary."""

Record = dict[str, Any]


def draw_plots(metrics: Sequence[Record], folder: Path, unigram_perplexity: float | None = None) -> dict[str, str]:
    """Writes loss, learning_rate, gradient_norm and throughput as .svg and .png into `folder`.

    Returns name → SVG for a page. A plot for which the run has no two points yet is left out.
    """
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figures = {"loss": _loss(metrics, unigram_perplexity)}
        figures |= {name: _single(metrics, key, words) for name, (key, words) in SINGLE.items()}
        return {name: _write(figure, folder / name) for name, figure in figures.items() if figure is not None}


def points(metrics: Sequence[Record], event: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values), each (n,) float64, of the lines of `event` that have a finite `key`."""
    found = [(line["step"], line[key]) for line in metrics if line["event"] == event and line.get(key) is not None]
    steps, values = np.array(found, dtype=np.float64).reshape(-1, 2).T
    finite = np.isfinite(values)
    return steps[finite], values[finite]


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the `window` values around each (fewer at the ends, symmetrically), so that nothing lags."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    reach = np.minimum(np.minimum(place, place[::-1]), window // 2)
    return (sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1)


def _loss(metrics: Sequence[Record], unigram_perplexity: float | None) -> Figure | None:
    steps, losses = points(metrics, "step", "loss")
    if len(steps) < 2:
        return None
    figure, axes = _axes("loss (nats per token)", size=(7.6, 4.2))
    window = max(1, len(steps) // 40) | 1
    axes.plot(steps, losses, color=BLUE, alpha=0.3, linewidth=0.8, label="training")
    axes.plot(steps, smooth(losses, window), color=BLUE, label=f"training, mean of {window} points")
    for event, colour, style, words in (
        ("validation_sampled", GREEN, "v--", "validation, a sample"),
        ("validation", ORANGE, "o-", "validation, whole"),
    ):
        at, values = points(metrics, event, "loss")
        if len(at):
            axes.plot(at, values, style, color=colour, markersize=4, label=words)
    if unigram_perplexity:
        axes.axhline(math.log(unigram_perplexity), color=INK, linewidth=0.8, linestyle=":", label="unigram model")
    if axes.get_ylim()[1] < SAYS_NOTHING:
        _add_perplexity(axes)
    axes.legend(loc="upper right")
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
