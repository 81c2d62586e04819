"""What a learning rate range test found, and which arms of a study have diverged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gptlab.report.drawing import loss_key, smooth
from gptlab.studies.plan import RANGE_TEST
from gptlab.studies.results import Results, RunResult

LEAST_POINTS = 20
"""Fewer say nothing about where a loss goes."""

CLEARLY = 1 / 4
"""Of what was learned the part that must be lost again before it is called diverging."""


@dataclass(frozen=True)
class RangeTest:
    """A run in which the learning rate rose by the same factor at every step.

    rates:       (n,) float64, ascending
    losses:      (n,) float64, the training loss there, smoothed
    suggested:   a tenth of the rate of the lowest smoothed loss; None where nothing was learned. Smith ("A disciplined
                 approach to neural network hyper-parameters", 2018) takes rates below the lowest; the tenth is
                 fastai's (`lr_find`, `minimum`), because at the lowest itself the loss has stopped falling
    diverges_at: the first rate behind the lowest loss at which it has risen again by a quarter of what was learned,
                 and by more than its noise; or where it was not finite, which ended the run. None: nowhere
    """

    rates: np.ndarray
    losses: np.ndarray
    suggested: float | None
    diverges_at: float | None


def range_test(result: RunResult) -> RangeTest | None:
    """What a run with `schedule.kind = "range"` found, from its metrics.jsonl; None of another run, or before it has
    logged LEAST_POINTS steps."""
    curve = _curve(result) if _is_range(result) else None
    if curve is None:
        return None
    least = int(curve.losses.argmin())
    above = np.flatnonzero(curve.losses[least:] > curve.losses[least] + curve.margin)
    diverges_at = float(curve.rates[least + above[0]]) if len(above) else None
    if diverges_at is None and result.status == "diverged":
        diverges_at = curve.stopped_at
    suggested = float(curve.rates[least]) / 10 if curve.learned > curve.noise else None
    return RangeTest(curve.rates, curve.losses, suggested, diverges_at)


def warnings(results: Results) -> list[str]:
    """A sentence for each arm that has diverged, with its learning rate and seeds, and for each whose rate lies at or
    beyond the one at which the study's range test diverged."""
    found = [words for arm, runs in results.arms.items() for words in _divergence(arm, runs)]
    tests = (range_test(result) for result in results.runs if result.item.arm == RANGE_TEST)
    limit = next((test.diverges_at for test in tests if test), None)
    if limit is not None:
        rates = {arm: _rate(runs) for arm, runs in results.arms.items()}
        found += [
            f"{arm} has a learning rate of {rate:g}; the range test diverged at {limit:.2g}"
            for arm, rate in rates.items()
            if rate is not None and rate >= limit
        ]
    return found


@dataclass(frozen=True)
class _Curve:
    """A run's training loss, smoothed.

    rates, losses: (n,), a window's middle and mean each
    noise:         three deviations of single losses from their window's mean (from the median of the distances, which
                   a loss that blows up at the end does not move): that is six of a mean over five losses, so of all
                   the means of a run that learns nothing hardly ever two differ by as much
    stopped_at:    the rate of the step behind the last one logged
    """

    rates: np.ndarray
    losses: np.ndarray
    noise: float
    stopped_at: float

    @property
    def learned(self) -> float:
        return float(self.losses[0] - self.losses.min())

    @property
    def margin(self) -> float:
        return max(CLEARLY * self.learned, self.noise)


def _curve(result: RunResult) -> _Curve | None:
    key = loss_key(result.metrics)
    lines = [
        (line["learning_rate"], line[key])
        for line in result.metrics
        if line["event"] == "step" and math.isfinite(line[key])
    ]
    if len(lines) < LEAST_POINTS:
        return None
    rates, losses = np.array(lines, dtype=np.float64).T
    half = max(5, len(lines) // 20) // 2  # no lag: a mean belongs to its window's middle
    means, inside = smooth(losses, 2 * half + 1), slice(half, len(lines) - half)
    noise = 3 * 1.4826 * float(np.median(np.abs(losses[inside] - means)))  # 1.4826: of a normal distribution
    return _Curve(rates[inside], means, noise, float(rates[-1] ** 2 / rates[-2]))


def _ended_above_its_beginning(result: RunResult) -> bool:
    curve = _curve(result)
    return curve is not None and bool(curve.losses[-1] > curve.losses[0] + curve.noise)


def _ended_above_its_least(result: RunResult) -> bool:
    curve = _curve(result)
    return curve is not None and bool(curve.losses[-1] > curve.losses.min() + curve.margin)


DIVERGENCES: dict[str, Callable[[RunResult], bool]] = {
    "the loss was not finite, and training stopped": lambda result: result.status == "diverged",
    "the training loss ended above where it began": _ended_above_its_beginning,
    "the training loss ended far above its least": _ended_above_its_least,
}
"""How a run diverges, the worst first."""


def _divergence(arm: str, runs: Sequence[RunResult]) -> list[str]:
    """A sentence for each way in which runs of the arm diverged. In a range test that is what is looked for."""
    seeds: dict[str, list[int]] = {}
    for result in runs:
        if result.status in ("finished", "diverged") and not _is_range(result):
            how = next((words for words, diverged in DIVERGENCES.items() if diverged(result)), None)
            if how:
                seeds.setdefault(how, []).append(result.item.seed)
    rate = _rate(runs)
    at = f" at a learning rate of {rate:g}" if rate is not None else ""
    return [
        f"{arm} diverged{at} (seed{'s' * (len(which) > 1)} {', '.join(map(str, which))}): {how}"
        for how, which in seeds.items()
    ]


def _rate(runs: Sequence[RunResult]) -> float | None:
    """The learning rate of an arm's runs; None before one has begun."""
    return next((r.recipe["optimizer.learning_rate"] for r in runs if r.begun and not _is_range(r)), None)


def _is_range(result: RunResult) -> bool:
    return bool(result.recipe.get("schedule.kind") == "range")
