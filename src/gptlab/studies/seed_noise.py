"""Arithmetic over seeds: intervals, paired tests, and how many seeds a test would take.

Seeds are what repeats: an interval or a test is over runs that differ in nothing but the seed. Differences are paired,
for runs with one seed share what the seed decides: first weights of the same shapes, and the order of the rows where
the data are the same. What this does to all of them drops out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from gptlab.evaluation.classification_scores import LEVEL, seeds_difference

POWER = 0.8
"""How probable it is to find a difference that is there, with the seeds that `seeds_for` asks for."""

MOST_SEEDS = 1_000
"""Nobody makes more; a difference that takes so many is none for practice."""

Key = TypeVar("Key")
BySeed = Mapping[int, float]
"""Seed → a score."""


class Spread(NamedTuple):
    """Of some values the mean, the standard deviation (with n − 1), and the mean's 95 % interval by Student's t; all
    but the mean are None below two values."""

    mean: float
    deviation: float | None
    low: float | None
    high: float | None


class PairedTest(NamedTuple):
    """Paired scores a less b: the mean difference with its 95 % interval, the differences' standard deviation, p of the
    paired t-test, and p adjusted for the number of tests (`holm`)."""

    difference: float
    low: float
    high: float
    deviation: float
    p: float
    adjusted_p: float

    @property
    def stands_out(self) -> bool:
        return self.adjusted_p < 1 - LEVEL


def spread(values: Sequence[float]) -> Spread:
    """Of (n,) values, n ≥ 1."""
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2:
        return Spread(mean, None, None, None)
    deviation = float(np.std(values, ddof=1))
    margin = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * deviation / math.sqrt(len(values))
    return Spread(mean, deviation, mean - margin, mean + margin)


def paired(a: BySeed, b: BySeed) -> tuple[list[float], list[float]]:
    """The scores of the seeds that both have, each (pairs,)."""
    seeds = [seed for seed in a if seed in b]
    return [a[seed] for seed in seeds], [b[seed] for seed in seeds]


def paired_tests(comparisons: Mapping[Key, tuple[BySeed, BySeed]]) -> dict[Key, PairedTest]:
    """Of each comparison that has two pairs or more a test, adjusted for how many these are."""
    pairs = {name: paired(*both) for name, both in comparisons.items()}
    found = {name: seeds_difference(*pair) for name, pair in pairs.items() if len(pair[0]) > 1}
    adjusted = holm([test["p"] for test in found.values()])
    deviations = {name: float(np.std(np.subtract(*pairs[name]), ddof=1)) for name in found}
    return {
        name: PairedTest(test["difference"], test["low"], test["high"], deviations[name], test["p"], adjusted_p)
        for (name, test), adjusted_p in zip(found.items(), adjusted, strict=True)
    }


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for their number, each in its place: the k-th smallest of m times m + 1 − k, never less than
    those before it, at most 1 (Holm, "A simple sequentially rejective multiple test procedure", 1979)."""
    adjusted, least = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        least = min(1.0, max(least, p[place] * (len(p) - rank)))
        adjusted[place] = least
    return adjusted


def seeds_for(effect: float, level: float = 1 - LEVEL) -> int:
    """Pairs with which a paired t-test at `level`, two-sided, finds a difference of `effect` standard deviations (of
    the differences) with a chance of POWER: by the noncentral t distribution (Cohen, Statistical Power Analysis for
    the Behavioral Sciences, 1988, chapter 2). At most MOST_SEEDS."""
    from scipy.stats import nct, t

    pairs = np.arange(2, MOST_SEEDS)
    critical, shift = t.ppf(1 - level / 2, pairs - 1), abs(effect) * np.sqrt(pairs)
    enough = nct.sf(critical, pairs - 1, shift) + nct.cdf(-critical, pairs - 1, shift) >= POWER
    return int(pairs[enough.argmax()]) if enough.any() else MOST_SEEDS
