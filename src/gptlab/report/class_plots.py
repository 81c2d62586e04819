"""The figures of a run that classifies: loss and accuracy by epoch, and what was taken for what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptlab import words
from gptlab.report.drawing import (
    BLUE,
    GRID,
    HALF,
    INK,
    ORANGE,
    PAPER,
    WIDE,
    Record,
    axes_of,
    draw,
    draw_training,
    draw_validation,
    in_percent,
    loss_key,
    mark_best,
    points,
)
from gptlab.report.plots import single_plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW_CLASSES = 6
"""A confusion matrix of so many stands in half of the page's width."""

NUMBERED_CELL = 0.26
"""Inches of a square of the confusion matrix from which on its number fits in."""

SHADE = 0.6
"""How strong the colour of a square that has all texts of its row: the number in it must be read."""


def draw_class_plots(metrics: Sequence[Record], folder: Path, facts: Record) -> dict[str, str]:
    """Writes loss, accuracy, confusion and the small figures (plots.single_plots) as .svg and .png into `folder`.

    Returns name → SVG for a page. A plot for which the run has no two points yet is left out.
    """
    classes, key = facts["classes"], loss_key(metrics)
    majority = facts["best"] and facts["best"]["majority_accuracy"]
    shown = classes["shown"]
    return draw(folder, lambda: {
        "loss": _curve(metrics, facts, key, f"{key.replace('_', '-')} (nats per text)"),
        "accuracy": _curve(metrics, facts, "accuracy", "accuracy", majority),
        "confusion": _confusion(np.array(shown["confusion"]), classes["labels"]) if shown else None,
        **single_plots(metrics, "text"),
    })  # fmt: skip


def epoch_means(metrics: Sequence[Record], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(middles, means), each (epochs,) float64: of the steps' lines of each epoch the mean over its texts, and the
    middle of the stretch that they cover, in epochs; the last epoch may be short."""
    lines = [line for line in metrics if line["event"] == "step" and line.get(key) is not None]
    ends = np.array([line["epoch"] for line in lines])
    texts = np.diff([0, *(line["tokens"] for line in lines)])
    values = np.array([line[key] for line in lines], dtype=np.float64)
    number = np.ceil(ends - 1e-9).astype(int)
    numbers = np.unique(number)
    means = [np.average(values[number == n], weights=texts[number == n]) for n in numbers]
    middles = [(n - 1 + ends[number == n].max()) / 2 for n in numbers]
    return np.array(middles), np.array(means)


def _curve(
    metrics: Sequence[Record], facts: Record, key: str, words: str, majority: float | None = None
) -> Figure | None:
    """Training and validation, the best checkpoint marked; by epoch where there are enough. What the start was worth,
    with a head that had learned nothing, is left out."""
    metrics = [line for line in metrics if line["step"] > 0]
    steps = [line for line in metrics if line["event"] == "step"]
    if len(points(metrics, "step", key)[0]) < 2:
        return None
    by_epoch = facts["classes"]["by_epoch"]
    figure, axes = axes_of(words, size=HALF, under="epoch" if by_epoch else "step")
    if by_epoch:
        axes.plot(*epoch_means(metrics, key), "s-", color=BLUE, markersize=4, label="training, mean of the epoch")
    else:
        draw_training(axes, metrics, key)
    steps_per_unit = steps[-1]["step"] / steps[-1]["epoch"] if by_epoch else 1
    draw_validation(axes, metrics, key, steps_per_unit)
    mark_best(axes, metrics, key, facts["best_step"], steps_per_unit)
    if majority is not None:
        sampled = any(line["event"] == "validation_sampled" for line in metrics)
        label = "majority in the whole" if sampled else "majority"
        axes.axhline(majority, color=INK, linewidth=0.8, linestyle=":", label=label)
    if key == "accuracy":
        in_percent(axes.yaxis)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _confusion(counts: np.ndarray, labels: Sequence[str]) -> Figure:
    """The classes' texts (classes, classes), true ones down, answers across; shaded by the share of its row, blue where
    the answer is right, orange where it is not."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    n = len(counts)
    names = [words.cut(name, 18) for name in labels]
    margin = 0.35 + 0.07 * max(map(len, names))
    cell = min(0.85, (3.7 - margin) / n) if n <= FEW_CLASSES else min(0.5, (WIDE[0] - margin) / n)
    level = (margin - 0.35) <= cell  # the names fit below their columns
    below = 0.45 if level else margin
    figure = Figure(figsize=(margin + n * cell, below + n * cell), facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot(facecolor=PAPER, aspect="equal", xlim=(0, n), ylim=(n, 0))
    axes.set_xlabel("answer", fontsize=8)
    axes.set_ylabel("true", fontsize=8)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour, strength = BLUE if row == column else ORANGE, SHADE * shares[row, column]
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, alpha=strength, linewidth=0))
    for row, column in np.ndindex(n, n) if cell >= NUMBERED_CELL else ():
        number = f"{counts[row, column]:,}"
        axes.text(column + 0.5, row + 0.5, number, ha="center", va="center", fontsize=min(8, 24 * cell))
    _name_classes(axes, names, fontsize=min(8, 60 * cell), rotation=0 if level else 90)
    return figure


def _name_classes(axes: Axes, names: Sequence[str], fontsize: float, rotation: float) -> None:
    """The classes' names beside their rows and below their columns, and lines between these. No name is a formula."""
    middles: Any = np.arange(len(names)) + 0.5
    axes.set_xticks(middles, names, fontsize=fontsize, rotation=rotation, parse_math=False)
    axes.set_yticks(middles, names, fontsize=fontsize, parse_math=False)
    axes.tick_params(length=0)
    edges = np.arange(len(names) + 1)
    axes.hlines(edges, 0, len(names), color=GRID, linewidth=0.6)
    axes.vlines(edges, 0, len(names), color=GRID, linewidth=0.6)
    axes.spines[:].set_visible(False)
