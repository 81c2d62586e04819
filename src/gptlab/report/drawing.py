"""What the report's figures share: colours, axes, curves over the run, and how a figure becomes files and a page's SVG.

Colours are Okabe and Ito's, which colour-blind readers tell apart (jfly.uni-koeln.de/color, 2008); lines also
differ in dash and marker.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK, SOFT, PAPER, GRID = "#24292f", "#57606a", "#ffffff", "#d8dee4"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
PURPLE, AMBER, SKY, OLIVE = "#cc79a7", "#e69f00", "#56b4e9", "#998a00"
"""Olive is their yellow, dark enough for white paper."""

PAGE_COLOURS = {
    INK: "currentColor", SOFT: "var(--soft)", PAPER: "none", GRID: "var(--line)", BLUE: "var(--blue)",
    ORANGE: "var(--orange)", GREEN: "var(--green)", PURPLE: "var(--purple)", AMBER: "var(--amber)", SKY: "var(--sky)",
    OLIVE: "var(--olive)",
}  # fmt: skip
"""What the colours are called in a page: report.html says what they are in the light and in the dark."""

STYLE: dict[Any, Any] = {
    "font.size": 10, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "text.color": INK, "axes.linewidth": 0.8, "lines.linewidth": 1.6, "legend.frameon": False,
    "svg.fonttype": "none", "svg.hashsalt": "gptlab",  # text stays text, and the same run gives the same file
}  # fmt: skip

WIDE, HALF, THIRD = (7.6, 4.2), (4.6, 3.4), (3.8, 2.8)
"""Inches of a figure that has the page's whole width, of one of two and of one of three beside each other."""

REM_PER_INCH = 6.8
"""A figure of the page's whole width is so wide; a smaller one does not grow beyond its share, nor its letters."""

Record = dict[str, Any]


def draw(folder: Path, make: Callable[[], Mapping[str, Figure | None]]) -> dict[str, str]:
    """Makes the figures in the report's style and writes each as .svg and .png into `folder`.

    Returns name → SVG for a page. A figure that is None, for the run has nothing to show in it yet, is left out.
    """
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        return {name: _write(figure, folder / name) for name, figure in make().items() if figure is not None}


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


def moving_mean(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """(middles, means, window): (n,) steps and values smoothed over a window of about a fortieth of them; of few it is
    one, and they stay as they are."""
    window = max(1, len(steps) // 40) | 1
    return steps[window // 2 : len(steps) - window // 2], smooth(values, window), window


def loss_key(metrics: Sequence[Record]) -> str:
    """What is drawn and compared as the loss: with a teacher the cross-entropy alone, which models without one have
    too; what is descended mixes it with the distance to the teacher."""
    return "cross_entropy" if any("cross_entropy" in line for line in metrics) else "loss"


def axes_of(words: str, size: tuple[float, float], under: str = "step") -> tuple[Figure, Axes]:
    """An empty figure over steps (or what else `under` says), `words` beside its vertical axis."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=size, facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot(facecolor=PAPER)
    axes.set_xlabel(under)
    axes.set_ylabel(words)
    open_axes(axes)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=round(size[0]) + 1, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    return figure, axes


def open_axes(axes: Axes) -> None:
    """A grid behind what is drawn, and no frame around it."""
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def in_percent(axis: Axis) -> None:
    """Shares along an axis are told in per cent."""
    axis.set_major_formatter(lambda value, _: f"{100 * value:g} %")


def draw_training(axes: Axes, metrics: Sequence[Record], key: str) -> None:
    """The steps' values, and where they are many their moving mean."""
    steps, values = points(metrics, "step", key)
    middles, means, window = moving_mean(steps, values)
    smoothed = window > 1
    width, alpha = (0.8, 0.3) if smoothed else (1.6, 1.0)
    axes.plot(steps, values, color=BLUE, alpha=alpha, linewidth=width, label="training")
    if smoothed:
        axes.plot(middles, means, color=BLUE, label=f"training, mean of {window} points")


def draw_validation(axes: Axes, metrics: Sequence[Record], key: str, steps_per_unit: float = 1) -> None:
    """What validation found; `steps_per_unit` of the horizontal axis, where that counts no steps."""
    sampled, whole = (points(metrics, event, key) for event in ("validation_sampled", "validation"))
    if len(sampled[0]):
        x = sampled[0] / steps_per_unit
        axes.plot(x, sampled[1], "v--", color=GREEN, markersize=4, label="validation, a sample")
    if len(whole[0]):  # seldom, where there is a sample: a line between them would say what nobody measured
        style = "o" if len(sampled[0]) else "o-"
        axes.plot(whole[0] / steps_per_unit, whole[1], style, color=ORANGE, markersize=4, label="validation, whole")


def mark_best(axes: Axes, metrics: Sequence[Record], key: str, step: int | None, steps_per_unit: float = 1) -> None:
    """A ring around what validation found at the best step."""
    found = {
        line["step"]: line[key]
        for event in ("validation_sampled", "validation")
        for line in metrics
        if line["event"] == event and line.get(key) is not None
    }
    if step is not None and step in found:
        axes.plot(
            step / steps_per_unit, found[step], "o", color=INK, markersize=10, markerfacecolor="none", label="best"
        )


def single(metrics: Sequence[Record], key: str, words: str) -> Figure | None:
    """A small figure of one key of the `step` lines."""
    steps, values = points(metrics, "step", key)
    if len(steps) < 2:
        return None
    figure, axes = axes_of(words, size=THIRD)
    axes.plot(steps, values, color=BLUE, linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}" if values.max() >= 1000 else "{x:g}")
    return figure


def _write(figure: Figure, path: Path) -> str:
    """The figure as path.svg and path.png; returns the SVG with the page's colours, ready to stand in HTML."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a class in a script that the PNG's font has not
        figure.savefig(path.with_name(f"{path.name}.png"), dpi=200)  # a name may have a point: of a rate, of a key
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    path.with_name(f"{path.name}.svg").write_text(svg, encoding="utf-8")
    inline = svg[svg.index("<svg ") :]
    inline = re.sub(r"<metadata>.*?</metadata>", "", inline, flags=re.DOTALL)
    inline = re.sub(r' (width|height)="[\d.]+pt"', "", inline, count=2)
    inline = inline.replace("<svg ", f'<svg style="max-width: {REM_PER_INCH * figure.get_figwidth():.1f}rem" ', 1)
    for colour, name in PAGE_COLOURS.items():
        inline = inline.replace(colour, name)
    # Identifiers are the page's, not the figure's: two figures must not share one.
    return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{path.name}-", inline)
