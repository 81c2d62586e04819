"""The figures of a study: its arms beside each other, what they cost, and those of the modules beside this one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gptlab import words
from gptlab.report.drawing import BLUE, INK, PAPER, WIDE, axes_of, draw
from gptlab.studies.curve_plots import curve_plots
from gptlab.studies.drawing import Look, arm_legend, is_far, looks, measure_words, rows_of, scale, time_axis, unit
from gptlab.studies.range_test_plot import range_test_plot
from gptlab.studies.results import Results
from gptlab.studies.search_plots import effect_plots, history
from gptlab.studies.settings import StudySettings
from gptlab.studies.statistics import ArmScore, ranking

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS = 40
"""Of more arms the best are compared, and the baseline."""

SAME_SCALE = 3.0
"""A published value is drawn beside ours where neither is more than so many times the other."""


def draw_study_plots(results: Results, folder: Path) -> dict[str, str]:
    """Writes the study's figures as .svg and .png into `folder`; returns name → SVG for a page. What nothing is known
    of yet is left out.

    comparison:          the metric of every arm in ranking order: seeds, mean, 95 % interval, the baseline's mean, and
                         published values on the same scale
    curves, curves_time: validation of every arm over steps and over time, mean and range of the seeds
    cost, memory:        the metric over the time that a run took; the peak memory of each arm
    curve-ARM:           training and validation of each seed, of the best arms and the baseline
    effect-KEY, importance: of a grid or a search, the metric over each key's values, and how much each key matters
    history:             of a search, the metric trial by trial
    range_test:          the loss over the learning rate
    """
    scores = ranking(results)
    look_of = looks([score.arm for score in scores], results.baseline)
    return draw(folder, lambda: {
        "comparison": _comparison(results, scores, look_of),
        **curve_plots(results, look_of),
        "cost": _cost(results, scores, look_of),
        "memory": _memory(results, scores),
        **effect_plots(results),
        "history": history(results),
        "range_test": range_test_plot(results),
    })  # fmt: skip


def _comparison(results: Results, scores: Sequence[ArmScore], look_of: dict[str, Look]) -> Figure | None:
    study, shown = results.study, _best(scores, results.baseline)
    near = _near(shown, study.sign)
    if not near:
        return None
    published = {arm: value / unit(study.metric) for arm, value in _published(results, near).items()}
    left_out = f" (the best {len(shown)} of {len(scores)} arms)" if len(shown) < len(scores) else ""
    figure, axes = rows_of(measure_words(study) + left_out, [score.arm for score in shown])
    limits = _set_limits(axes, study.metric, near, list(published.values()))
    for row, score in enumerate(shown):
        if score in near:
            _row(axes, row, score, look_of[score.arm], unit(study.metric), limits)
        else:
            _row_without(axes, row, score, study)
        if score.arm in published:
            axes.plot(published[score.arm], row, "d", color=INK, markersize=8, markerfacecolor=PAPER)
    baseline = next((score.mean for score in near if score.arm == results.baseline), None)
    if baseline is not None:
        axes.axvline(baseline / unit(study.metric), color=INK, linewidth=0.8, linestyle=":", zorder=0)
    _comparison_legend(
        figure, seeds=any(len(score.values) > 1 for score in near), baseline=baseline is not None,
        published=bool(published),
    )  # fmt: skip
    return figure


def _near(scores: Sequence[ArmScore], sign: int) -> list[ArmScore]:
    """The arms that have a score with a place on an axis."""
    means = [score.mean for score in scores if score.mean is not None]
    return [
        score for score in scores
        if score.mean is not None and not is_far(score.mean, means, sign=sign)
    ]  # fmt: skip


def _set_limits(axes: Axes, metric: str, scores: Sequence[ArmScore], published: Sequence[float]) -> tuple[float, float]:
    """Scales the horizontal axis to the seeds of these arms and what is published; returns its ends."""
    values = [*published, *(value / unit(metric) for score in scores for value in score.values.values())]
    ends = [end / unit(metric) for score in scores for end in (score.low, score.high) if end is not None]
    scale(axes.xaxis, metric, values)
    limits = axis_limits(values, ends, log=axes.get_xscale() == "log")
    axes.set_xlim(*limits)
    return limits


def _best(scores: Sequence[ArmScore], baseline: str) -> list[ArmScore]:
    """So many arms as a figure has room for, the best first, the baseline among them."""
    if len(scores) <= MOST_ROWS:
        return list(scores)
    others = [score.arm for score in scores if score.arm != baseline][: MOST_ROWS - 1]
    return [score for score in scores if score.arm in (baseline, *others)]


def _row(axes: Axes, row: int, score: ArmScore, look: Look, unit: float, limits: tuple[float, float]) -> None:
    """One arm: its mean and interval, and just below each seed. An arrow is where the interval goes on."""
    if score.low is not None and score.high is not None:
        ends = np.array([score.low, score.high]) / unit
        axes.plot(np.clip(ends, *limits), (row, row), color=look.colour, linewidth=4, alpha=0.35, solid_capstyle="butt")
        for end, limit, arrow in zip(ends - limits, limits, "<>", strict=True):
            if end < 0 if arrow == "<" else end > 0:
                axes.plot(limit, row, arrow, color=look.colour, markersize=6, clip_on=False)
    seeds = np.array(list(score.values.values())) / unit
    if len(seeds) > 1:
        axes.plot(seeds, np.full(len(seeds), row + 0.27), "o", color=look.colour, markersize=3.5, alpha=0.7)
    axes.plot(seeds.mean(), row, look.marker, color=look.colour, markersize=7)


def _row_without(axes: Axes, row: int, score: ArmScore, study: StudySettings) -> None:
    """An arm without a place on the axis: why, and of one that is far off its mean, at the side where it would be."""
    far_right = score.mean is not None and study.less_is_better
    if score.mean is not None:
        number = words.number(score.mean / unit(study.metric))
        text = f"{number} →" if far_right else f"← {number}"
    else:
        text = "diverged" if score.diverged else "failed" if score.failed else "not finished"
    axes.text(
        0.99 if far_right else 0.01, row, text, ha="right" if far_right else "left", va="center", fontsize=9,
        transform=axes.get_yaxis_transform(),
    )  # fmt: skip


def axis_limits(values: Sequence[float], ends: Sequence[float], *, log: bool) -> tuple[float, float]:
    """An axis that has all values, and of the intervals as much as the values span on either side: the interval of two
    seeds is 13 standard errors wide and would leave no room for anything else."""
    to, back = (np.log, np.exp) if log else (np.asarray, np.asarray)
    least, most = to(min(values)), to(max(values))
    span = most - least or abs(most) / 20 or 1.0
    inner = [end for end in ends if end > 0 or not log]
    low = max(least - span, min([least, *to(inner)]))
    high = min(most + span, max([most, *to(inner)]))
    edge = 0.04 * (high - low or span)
    return float(back(low - edge)), float(back(high + edge))


def _published(results: Results, scores: Sequence[ArmScore]) -> dict[str, float]:
    """Arm → what a publication reports of the metric; none of them where one is not on the scale of ours (another data
    set or unit, per cent)."""
    published = results.study.published
    if published is None or published.metric is None:
        return {}
    reported = {arm: row.get(published.metric) for arm, row in published.values.items()}
    numbers = {arm: float(value) for arm, value in reported.items() if isinstance(value, int | float)}
    ours = {score.arm: score.mean for score in scores if score.mean and score.arm in numbers}
    fits = all(1 / SAME_SCALE <= numbers[arm] / mean <= SAME_SCALE for arm, mean in ours.items())
    return {arm: numbers[arm] for arm in ours} if fits else {}


def _comparison_legend(figure: Figure, *, seeds: bool, baseline: bool, published: bool) -> None:
    from matplotlib.lines import Line2D

    marks = {
        "mean" if seeds else "one seed": {"marker": "o", "markersize": 7, "linestyle": "none"},
        "95 % interval of the mean": {"linewidth": 4, "alpha": 0.35} if seeds else None,
        "each seed": {"marker": "o", "markersize": 3.5, "alpha": 0.7, "linestyle": "none"} if seeds else None,
        "the baseline's mean": {"linewidth": 0.8, "linestyle": ":"} if baseline else None,
        "published": {"marker": "d", "markersize": 8, "markerfacecolor": PAPER, "linestyle": "none"}
        if published
        else None,
    }
    handles = [Line2D([], [], color=INK, label=name, **mark) for name, mark in marks.items() if mark]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, columnspacing=1.2)


def _cost(results: Results, scores: Sequence[ArmScore], look_of: dict[str, Look]) -> Figure | None:
    """The metric over the time of a run: each seed, and larger the mean of the arm; without arms that are far off."""
    metric = results.study.metric
    near = [score.arm for score in _near(scores, results.study.sign)]
    found = {arm: points for arm in near if len(points := _costs(results, arm))}
    if not found or metric == "seconds":
        return None
    longest = max(float(points[:, 0].max()) for points in found.values())
    figure, axes = axes_of(measure_words(results.study, join="\n"), size=(WIDE[0], 3.8))
    length = time_axis(axes, longest)
    axes.set_xlim(0, 1.05 * longest / length)
    scale(axes.yaxis, metric, [value / unit(metric) for points in found.values() for value in points[:, 1]])
    for arm, points in found.items():
        look, (times, values) = look_of[arm], (points / (length, unit(metric))).T
        if len(points) > 1:
            axes.plot(times, values, look.marker, color=look.colour, markersize=3.5, alpha=0.5)
        axes.plot(times.mean(), values.mean(), look.marker, color=look.colour, markersize=8)
    arm_legend(figure, {arm: look for arm, look in look_of.items() if arm in found}, beside=True)
    return figure


def _costs(results: Results, arm: str) -> np.ndarray:
    """(seeds, 2): the seconds and the metric of each run that has both."""
    seconds, values = results.scores(arm, "seconds"), results.scores(arm)
    return np.array([(seconds[seed], values[seed]) for seed in values if seed in seconds])


def _memory(results: Results, scores: Sequence[ArmScore]) -> Figure | None:
    """The most memory that a run of each arm has held."""
    held = {score.arm: results.scores(score.arm, "memory_bytes") for score in _best(scores, results.baseline)}
    peaks = {
        arm: peak / unit("memory_bytes") for arm, seeds in held.items() if (peak := max(seeds.values(), default=0))
    }
    if not peaks or results.study.metric == "memory_bytes":
        return None
    figure, axes = rows_of(measure_words(results.study, "memory_bytes"), list(peaks))
    axes.barh(range(len(peaks)), list(peaks.values()), height=0.55, color=BLUE, alpha=0.5, linewidth=0)
    for row, peak in enumerate(peaks.values()):
        axes.text(peak, row, f" {peak:.3g}", va="center", fontsize=9)
    axes.set_xlim(0, 1.1 * max(peaks.values()))
    return figure
