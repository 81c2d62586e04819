"""The figures of a run on pairs: loss, accuracy, what both answers are given, what its confidence is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gptlab.report.drawing import (
    BLUE,
    HALF,
    INK,
    ORANGE,
    PAPER,
    Record,
    axes_of,
    draw,
    draw_training,
    draw_validation,
    in_percent,
    mark_best,
    moving_mean,
    open_axes,
    points,
)
from gptlab.report.plots import rewards, single_plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDES = {"chosen": BLUE, "rejected": ORANGE}


def draw_pair_plots(metrics: Sequence[Record], folder: Path, facts: Record) -> dict[str, str]:
    """Writes loss, accuracy, answer_rewards, margin, log_probs and kl (of DPO), calibration (of a reward model), reward
    (where answers were judged) and the small figures (plots.single_plots) as .svg and .png into `folder`.

    Returns name → SVG for a page. A plot for which the run has no two points yet is left out.
    """
    preferences, best = facts["preferences"], facts["best_step"]
    dpo, shown = preferences["objective"] == "dpo", preferences["shown"]
    alike = "both answers alike" if preferences["settings"].get("loss") == "simpo" else "the reference"

    def curve(key: str, words: str, level: tuple[float, str] | None = None) -> Figure | None:
        return _curve(metrics, key, words, best, level)

    return draw(folder, lambda: {
        "loss": curve("loss", "loss of a pair", (preferences["level"], alike if dpo else "guessing")),
        "accuracy": curve("accuracy", "accuracy", (0.5, "guessing")),
        "answer_rewards": _sides(metrics, "reward", "implicit reward" if dpo else "reward"),
        "margin": curve("margin", "margin"),
        "log_probs": _sides(metrics, "log_prob", "ln π a token (nats)"),
        "kl": curve("kl", "KL estimate (nats a token)"),
        "calibration": _calibration(shown["calibration"]["bins"]) if shown else None,
        "reward": rewards(metrics),
        **single_plots(metrics, "pair"),
    })  # fmt: skip


def _curve(
    metrics: Sequence[Record], key: str, words: str, best_step: int | None, level: tuple[float, str] | None
) -> Figure | None:
    """Training and validation, the best checkpoint marked; `level` (value, words) is who knows nothing."""
    if len(points(metrics, "step", key)[0]) < 2:
        return None
    figure, axes = axes_of(words, size=HALF)
    draw_training(axes, metrics, key)
    draw_validation(axes, metrics, key)
    mark_best(axes, metrics, key, best_step)
    if level is not None:
        axes.axhline(level[0], color=INK, linewidth=0.8, linestyle=":", label=level[1])
    if key == "accuracy":
        in_percent(axes.yaxis)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _sides(metrics: Sequence[Record], key: str, words: str) -> Figure | None:
    """What the chosen and the rejected answers are given, in training (smoothed) and in validation."""
    if len(points(metrics, "step", f"chosen_{key}")[0]) < 2:
        return None
    figure, axes = axes_of(words, size=HALF)
    sampled = any(line["event"] == "validation_sampled" for line in metrics)
    event = "validation_sampled" if sampled else "validation"
    for side, colour in SIDES.items():
        middles, means, _ = moving_mean(*points(metrics, "step", f"{side}_{key}"))
        steps, values = points(metrics, event, f"{side}_{key}")
        axes.plot(middles, means, color=colour, linewidth=1.2, alpha=0.7, label=f"{side}, training")
        axes.plot(steps, values, "o--", color=colour, markersize=4, label=f"{side}, validation")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _calibration(bins: Sequence[Record]) -> Figure:
    """A reliability diagram (Guo et al., "On Calibration of Modern Neural Networks", 2017): of the pairs of each bin
    the accuracy over their mean confidence, and below how many they are."""
    from matplotlib.figure import Figure

    confidence, accuracy, pairs, low, high = (
        np.array([each[key] for each in bins]) for key in ("confidence", "accuracy", "pairs", "low", "high")
    )
    figure = Figure(figsize=(HALF[0], 4.0), facecolor=PAPER, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1), subplot_kw={"facecolor": PAPER})
    above.plot((0.5, 1), (0.5, 1), ":", color=INK, linewidth=0.8, label="right as often as it is sure")
    above.plot(confidence, accuracy, "o-", color=BLUE, markersize=5, label="the model")
    above.set(ylabel="accuracy", xlim=(0.5, 1))
    above.legend(loc="upper left")
    middles = (low + high) / 2
    below.bar(middles, pairs, width=0.92 * (high - low), color=BLUE, alpha=0.4, linewidth=0)
    for middle, n in zip(middles, pairs, strict=True):
        below.text(middle, n, f"{n:,}", ha="center", va="bottom", fontsize=7)
    below.set(ylabel="pairs", xlabel="confidence, σ(|margin|)", yticks=[], ylim=(0, 1.25 * pairs.max()))
    for axes in (above, below):
        open_axes(axes)
    in_percent(above.yaxis)
    in_percent(below.xaxis)
    return figure
