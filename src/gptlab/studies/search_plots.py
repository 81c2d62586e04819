"""What each key of a grid or a search does to the metric, and how a search went."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gptlab.report.drawing import BLUE, HALF, INK, ORANGE, SOFT, WIDE, axes_of, in_percent
from gptlab.studies.drawing import is_far, log_scale, measure_words, rows_of, scale, shortened, spans_far, unit
from gptlab.studies.results import Results, RunResult
from gptlab.studies.settings import Range
from gptlab.studies.statistics import Effect, Level, effects

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAR_WORSE = "far worse"
EDGE_MARKS = {
    "pruned": ("ended early", "|", SOFT), "diverged": ("diverged", "x", INK), "failed": ("failed", "+", INK),
    FAR_WORSE: (FAR_WORSE, "^", BLUE),
}  # fmt: skip
"""Trials with no metric, or one too far off for the axis: what the history calls them, with which mark."""

FEW_LEVELS = 6
"""So many values of a key are marked on the axis themselves."""


def effect_plots(results: Results) -> dict[str, Figure | None]:
    """effect-KEY for every key, the most important first, and importance."""
    found = effects(results)
    return {**{f"effect-{effect.key}": _effect(results, effect) for effect in found}, "importance": _importance(found)}


def _effect(results: Results, effect: Effect) -> Figure | None:
    """The metric over a key's values: every run a dot, each level its mean and interval."""
    runs = results.trials or [result for arm in results.arms.values() for result in arm]
    runs, _ = _near([result for result in runs if effect.key in result.recipe], results)
    if not runs or len(effect.levels) < 2:
        return None
    metric, numeric = results.study.metric, all(_is_number(level.value) for level in effect.levels)
    figure, axes = axes_of(measure_words(results.study, join="\n"), size=HALF, under=effect.key)
    place = _number_places(axes, results, effect) if numeric else _name_places(axes, effect.levels)
    scores = [_score(result) / unit(metric) for result in runs]
    scale(axes.yaxis, metric, scores)
    axes.plot([place(result.recipe[effect.key]) for result in runs], scores, "o", color=BLUE, markersize=4, alpha=0.45,
              label="a run")  # fmt: skip
    limits = axes.get_ylim()
    x, means = [place(level.value) for level in effect.levels], [level.mean / unit(metric) for level in effect.levels]
    axes.plot(x, means, "D--" if numeric else "D", color=ORANGE, markersize=5, linewidth=1, label="mean, 95 % interval")
    for at, level in zip(x, effect.levels, strict=True):
        if level.low is not None and level.high is not None:
            axes.plot((at, at), np.array((level.low, level.high)) / unit(metric), color=ORANGE, linewidth=3, alpha=0.35)
    axes.set_ylim(limits)  # the interval of two seeds would leave no room for the runs
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _score(result: RunResult) -> float:
    return math.nan if result.score is None else result.score


def _near(runs: Sequence[RunResult], results: Results) -> tuple[list[RunResult], list[RunResult]]:
    """The runs whose metric has a place on an axis, and those whose metric is too far off."""
    scored = [result for result in runs if result.score is not None]
    scores = [_score(result) for result in scored]
    far = [is_far(score, scores, sign=results.study.sign) for score in scores]
    return (
        [result for result, off in zip(scored, far, strict=True) if not off],
        [result for result, off in zip(scored, far, strict=True) if off],
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number_places(axes: Axes, results: Results, effect: Effect) -> Callable[[Any], float]:
    """A horizontal axis of numbers; logarithmic where the search drew on that scale, or the values span far."""
    from matplotlib.ticker import MaxNLocator

    values = [level.value for level in effect.levels]
    space = results.study.search.space[effect.key] if results.study.search else None
    drawn = isinstance(space, Range)
    if space.log if isinstance(space, Range) else spans_far(values):
        log_scale(axes.xaxis, (space.low, space.high) if isinstance(space, Range) else values)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.xaxis.set_major_formatter("{x:,g}")
    if not drawn and len(values) <= FEW_LEVELS:
        axes.set_xticks(values, [f"{value:,g}" for value in values])
    axes.margins(x=0.08)
    return float


def _name_places(axes: Axes, levels: Sequence[Level]) -> Callable[[Any], float]:
    """A horizontal axis on which each value has a place beside the next."""
    names = list(dict.fromkeys(_name(level.value) for level in levels))
    axes.set_xticks(range(len(names)), [shortened(name) for name in names], parse_math=False)
    axes.set_xlim(-0.5, len(names) - 0.5)
    return lambda value: float(names.index(_name(value))) if _name(value) in names else math.nan


def _name(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _importance(found: Sequence[Effect]) -> Figure | None:
    """How much of what differs between the runs each key explains."""
    known = [(effect.key, effect.importance) for effect in found if effect.importance is not None]
    if len(known) < 2:
        return None
    figure, axes = rows_of("importance: share of the metric's variance", [key for key, _ in known])
    axes.barh(range(len(known)), [share for _, share in known], height=0.55, color=BLUE, alpha=0.5, linewidth=0)
    axes.set_xlim(0, 1)
    in_percent(axes.xaxis)
    return figure


def history(results: Results) -> Figure | None:
    """The metric of a search's trials in their order, the best so far, and along the upper edge those without."""
    near, far = _near(results.trials, results)
    if not near:
        return None
    metric, count = results.study.metric, len(results.trials)
    values = np.array([_score(result) for result in near]) / unit(metric)
    best = (np.minimum if results.study.less_is_better else np.maximum).accumulate(values)
    figure, axes = axes_of(measure_words(results.study, join="\n"), size=(WIDE[0], 3.6), under="trial")
    numbers = [_number(result) for result in near]
    axes.plot(numbers, values, "o", color=BLUE, markersize=5, alpha=0.6, label="a trial")
    axes.step([*numbers, count], [*best, best[-1]], where="post", color=ORANGE, label="the best so far")
    scale(axes.yaxis, metric, list(values))
    for kind, (name, marker, colour) in EDGE_MARKS.items():
        ended = far if kind == FAR_WORSE else [result for result in results.trials if result.status == kind]
        if ended:
            axes.plot(
                [_number(result) for result in ended], np.full(len(ended), 0.95), marker, color=colour, markersize=7,
                label=name, transform=axes.get_xaxis_transform(),
            )  # fmt: skip
    axes.margins(y=0.14)
    axes.set_xlim(0.5, count + 0.5)
    figure.legend(loc="outside lower center", ncols=6, fontsize=9)
    return figure


def _number(trial: RunResult) -> int:
    """Which trial it is, from 1."""
    return trial.item.round + 1
