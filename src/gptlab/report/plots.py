"""The curves of a run that learns language."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gptlab.report.drawing import (
    GREEN,
    INK,
    WIDE,
    Record,
    axes_of,
    draw,
    draw_training,
    draw_validation,
    loss_key,
    points,
    single,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SINGLE = {
    "distillation": ("distillation", "T² · KL to the teacher"),
    "learning_rate": ("learning_rate", "learning rate"),
    "gradient_norm": ("gradient_norm", "gradient norm before clipping"),
    "throughput": ("tokens_per_second", "{unit}s per second"),
}
"""Plots of one key of the `step` lines: name → (key, the axis' words)."""

SAYS_NOTHING = 15.0
"""A loss above which nobody asks for the perplexity: 3 million, larger than any vocabulary."""


def draw_plots(
    metrics: Sequence[Record], folder: Path, unigram_perplexity: float | None = None, unit: str = "token"
) -> dict[str, str]:
    """Writes loss, reward, distillation, learning_rate, gradient_norm and throughput as .svg and .png into `folder`.

    Returns name → SVG for a page. A plot for which the run has no two points yet is left out. `unit` is what a loss is
    over: a token, an answer token.
    """
    return draw(folder, lambda: {
        "loss": _loss(metrics, unigram_perplexity, unit), "reward": rewards(metrics), **single_plots(metrics, unit),
    })  # fmt: skip


def single_plots(metrics: Sequence[Record], unit: str) -> Mapping[str, Figure | None]:
    """The small figures that every run has, whatever it learns."""
    return {name: single(metrics, key, words.format(unit=unit)) for name, (key, words) in SINGLE.items()}


def rewards(metrics: Sequence[Record]) -> Figure | None:
    """What a reward model said of the answers as training went on."""
    steps, means = points(metrics, "reward", "mean")
    if len(steps) < 2:
        return None
    figure, axes = axes_of("mean reward", size=(WIDE[0], 3.2))
    low, high = (points(metrics, "reward", key)[1] for key in ("low", "high"))
    axes.fill_between(steps, low, high, color=GREEN, alpha=0.2, linewidth=0, label="95 % interval")
    axes.plot(steps, means, "o-", color=GREEN, markersize=4, label="mean")
    axes.legend(loc="best")
    return figure


def _loss(metrics: Sequence[Record], unigram_perplexity: float | None, unit: str) -> Figure | None:
    key = loss_key(metrics)
    if len(points(metrics, "step", key)[0]) < 2:
        return None
    figure, axes = axes_of(f"{key.replace('_', '-')} (nats per {unit})", size=WIDE)
    draw_training(axes, metrics, key)
    draw_validation(axes, metrics, key)
    if unigram_perplexity:
        axes.axhline(math.log(unigram_perplexity), color=INK, linewidth=0.8, linestyle=":", label="unigram model")
    if axes.get_ylim()[1] < SAYS_NOTHING:
        _add_perplexity(axes)
    axes.legend(loc="upper right")
    return figure


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
