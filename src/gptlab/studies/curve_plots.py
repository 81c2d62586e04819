"""Curves of a study: validation of its arms in one figure, and small ones of each arm's seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gptlab.report.drawing import (
    BLUE,
    ORANGE,
    THIRD,
    WIDE,
    Record,
    axes_of,
    in_percent,
    loss_key,
    moving_mean,
    points,
)
from gptlab.report.intervals import SHARES
from gptlab.studies.drawing import REST, Look, arm_legend, named, shortened, time_axis
from gptlab.studies.results import Results, RunResult
from gptlab.studies.settings import LESS_IS_BETTER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_SMALL = 12
"""So many arms have a figure of their own: the best, and the baseline."""

SETTLED = 0.15
"""The part of a run before which a loss is that of a fresh model, ln(vocabulary) at first: beside it nothing of what
follows could be seen."""

FAR = 3.0
"""A figure is at most so many times as high as half of the arms reach: one that diverges leaves it at the top."""


@dataclass(frozen=True)
class Curve:
    """What validation found of an arm, over its seeds: (n,) each."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class _Shown:
    """What the curves are of. `key`: of the lines of metrics.jsonl; None: the loss. `event`: of validation."""

    key: str | None
    event: str
    words: str

    def key_of(self, metrics: Sequence[Record]) -> str:
        return self.key or loss_key(metrics)

    def points(self, metrics: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values), (n,) each, of validation."""
        return points(metrics, self.event, self.key_of(metrics))


def curve_plots(results: Results, look_of: Mapping[str, Look]) -> dict[str, Figure | None]:
    """curves, curves_time and curve-ARM; `look_of`: every arm's look, the best first."""
    begun, shown = _begun(results, list(look_of)), _shown(results)
    small = [arm for arm in look_of if arm != results.baseline][: MOST_SMALL - 1]
    top = loss_top(list(_found(begun, shown, over_time=False).values()))
    return {
        "curves": _curves(begun, shown, look_of, over_time=False),
        "curves_time": _curves(begun, shown, look_of, over_time=True),
        **{f"curve-{arm}": _arm(arm, begun[arm], shown, top) for arm in look_of if arm in (results.baseline, *small)},
    }


def curve_captions(results: Results) -> dict[str, str]:
    """What the curves show: of curves, of curves_time, and (`curve`) of an arm's."""
    begun, shown = _begun(results, list(results.arms)), _shown(results)
    rows = " on the fixed sample of rows" if shown.event == "validation_sampled" else ""
    steps, times = (_found(begun, shown, over_time=over_time).values() for over_time in (False, True))
    trained = [_trained(result, shown)[1] for runs in begun.values() for result in runs]
    above = {
        "curves": _is_cut([float(curve.high[0]) for curve in steps], shown, loss_top(list(steps))),
        "curves_time": _is_cut([float(curve.high[0]) for curve in times], shown, loss_top(list(times))),
        "curve": _is_cut([float(values[0]) for values in trained if len(values)], shown, loss_top(list(steps))),
    }
    seeds = "the mean over the seeds, and from the lowest to the highest of them"
    words = {
        "curves": f"Validation{rows} over the steps: {seeds}",
        "curves_time": f"Validation{rows} over the time of training",
        "curve": f"each seed's training and validation{rows}",
    }
    return {name: f"{words[name]}{'; the first steps lie above the figure' * cut}" for name, cut in above.items()}


def _is_cut(first: Sequence[float], shown: _Shown, top: float | None) -> bool:
    """Whether a curve begins above where losses are drawn up to."""
    return shown.key is None and top is not None and any(value > top for value in first)


def _begun(results: Results, arms: Sequence[str]) -> dict[str, list[RunResult]]:
    return {arm: [result for result in results.arms[arm] if result.begun] for arm in arms}


def _shown(results: Results) -> _Shown:
    """The study's metric where validation logs it and more of it is better, else the loss; by the set that was scored
    more often: where there is a sample, the whole is scored seldom."""
    metric, events = results.study.metric, ("validation_sampled", "validation")
    runs = [result for arm in results.arms.values() for result in arm]
    lines = [line for result in runs for line in result.metrics if line["event"] in events]
    ours = metric not in LESS_IS_BETTER and any(line.get(metric) is not None for line in lines)
    sampled = sum(line["event"] == "validation_sampled" for line in lines)
    event = "validation_sampled" if 2 * sampled > len(lines) else "validation"
    return _Shown(metric if ours else None, event, named(metric if ours else "loss"))


def _curves(
    begun: Mapping[str, list[RunResult]], shown: _Shown, look_of: Mapping[str, Look], *, over_time: bool
) -> Figure | None:
    """Validation of every arm: the mean of its seeds, and their range as a band."""
    found = _found(begun, shown, over_time=over_time)
    if not found:
        return None
    figure, axes = axes_of(f"validation {shown.words}", size=(WIDE[0], 4.8))
    length = time_axis(axes, max(float(curve.x[-1]) for curve in found.values())) if over_time else 1.0
    for arm in sorted(found, key=lambda arm: look_of[arm] is not REST):  # those that are told apart lie on the grey
        _draw(axes, found[arm], look_of[arm], length)
    _fit(axes, shown, loss_top(list(found.values())))
    arm_legend(figure, {arm: look for arm, look in look_of.items() if arm in found})
    return figure


def _found(begun: Mapping[str, list[RunResult]], shown: _Shown, *, over_time: bool) -> dict[str, Curve]:
    """The curve of each arm that has one."""
    return {arm: curve for arm, runs in begun.items() if (curve := _curve(runs, shown, over_time=over_time))}


def _draw(axes: Axes, curve: Curve, look: Look, length: float) -> None:
    if look is REST:
        axes.plot(curve.x / length, curve.mean, color=look.colour, linewidth=0.8, alpha=0.5)
        return
    axes.fill_between(curve.x / length, curve.low, curve.high, color=look.colour, alpha=0.15, linewidth=0)
    axes.plot(
        curve.x / length, curve.mean, color=look.colour, linestyle=look.dash, marker=look.marker, markersize=4,
        markevery=max(1, len(curve.x) // 12), linewidth=1.4,
    )  # fmt: skip


def _curve(runs: Sequence[RunResult], shown: _Shown, *, over_time: bool) -> Curve | None:
    """Of the finished runs, or while there are none of those that have begun."""
    return mean_curve([_validated(result.metrics, shown, over_time=over_time) for result in _finished(runs)])


def mean_curve(seeds: Sequence[tuple[np.ndarray, np.ndarray]]) -> Curve | None:
    """Mean and range of curves (x, values), (n,) each, x ascending, where all of them are; None where they have no two
    places in common. Runs of equal minutes are validated at different steps: between two points a straight line is
    read."""
    lines = [(x, values) for x, values in seeds if len(x) > 1]
    if not lines:
        return None
    start, end = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    every = np.unique(np.concatenate([x for x, _ in lines]))
    x = every[(every >= start) & (every <= end)]
    if len(x) < 2:
        return None
    values = np.array([np.interp(x, *line) for line in lines])
    return Curve(x, values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def _finished(runs: Sequence[RunResult]) -> Sequence[RunResult]:
    return [result for result in runs if result.status == "finished"] or runs


def _validated(metrics: Sequence[Record], shown: _Shown, *, over_time: bool) -> tuple[np.ndarray, np.ndarray]:
    """(steps or seconds, values), (n,) each. The seconds are those of the training steps: what came between them, the
    evaluations too, is counted."""
    steps, values = shown.points(metrics)
    if not over_time:
        return steps, values
    trained, seconds = points(metrics, "step", "seconds")
    return (np.interp(steps, [0, *trained], [0, *seconds]), values) if len(trained) else (steps[:0], values[:0])


def loss_top(curves: Sequence[Curve]) -> float | None:
    """Up to where losses are drawn: the highest that an arm has behind its first steps, of one that diverges not all.
    None where there is nothing, or all is one value."""
    if not curves:
        return None
    least = min(float(curve.low.min()) for curve in curves)
    late = [float(curve.high[curve.x >= SETTLED * curve.x[-1]].max()) for curve in curves]
    most = min(max(late), least + FAR * (float(np.median(late)) - least))
    return most if most > least else None


def _fit(axes: Axes, shown: _Shown, top: float | None) -> None:
    """The vertical axis: of a loss up to `top`, unless all of it lies above; of a share in per cent."""
    least = axes.dataLim.ymin
    if shown.key is None and top is not None and least < top:
        axes.set_ylim(least - 0.05 * (top - least), top + 0.05 * (top - least))
    if shown.key in SHARES:
        in_percent(axes.yaxis)


def _trained(result: RunResult, shown: _Shown) -> tuple[np.ndarray, np.ndarray]:
    """(middles, means), (n,) each, of training."""
    steps, values = points(result.metrics, "step", shown.key_of(result.metrics))
    return moving_mean(steps, values)[:2] if len(steps) else (steps, values)


def _arm(arm: str, runs: Sequence[RunResult], shown: _Shown, top: float | None) -> Figure | None:
    """Training, smoothed, and validation of each seed; all arms' figures end at the same height."""
    trained = [_trained(result, shown) for result in runs]
    lines = {
        "training": (BLUE, "-", [seed for seed in trained if len(seed[0])]),
        "validation": (ORANGE, "o-", [shown.points(result.metrics) for result in runs]),
    }
    if not any(len(x) > 1 for _, _, seeds in lines.values() for x, _ in seeds):
        return None
    figure, axes = axes_of(shown.words, size=THIRD)
    axes.set_title(shortened(arm), loc="left", fontsize=10)
    for name, (colour, style, seeds) in lines.items():
        for n, seed in enumerate(seeds):
            label = None if n else name
            axes.plot(*seed, style, color=colour, linewidth=0.9, markersize=2.5, alpha=0.75, label=label)
    _fit(axes, shown, top)
    axes.legend(loc="best", fontsize=8)
    return figure
