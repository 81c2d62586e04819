"""What a study's scores say: means with their intervals, differences from the baseline, what each key does, and
whether a publication's order holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

from gptlab.errors import UserError
from gptlab.evaluation.classification_scores import LEVEL
from gptlab.studies import plan
from gptlab.studies.results import Results
from gptlab.studies.seed_noise import BySeed, PairedTest, Spread, paired, paired_tests, seeds_for, spread
from gptlab.studies.settings import MORE_IS_BETTER, StudySettings

FEW_VALUES, BINS = 6, 4
"""A searched range of which no more values were tried is told value by value, another in so many equal parts."""

Verdict = Literal["better", "worse", "within seed noise", "not known"]


@dataclass(frozen=True)
class ArmScore:
    """An arm over its seeds.

    values:          seed → the metric, of the runs that have it
    mean, deviation: over them; None where there are none, or (of the deviation, with n − 1) fewer than two
    low, high:       95 % interval of the mean by Student's t; None below two seeds
    diverged, failed: how many of its runs did
    """

    arm: str
    values: dict[int, float]
    mean: float | None
    deviation: float | None
    low: float | None
    high: float | None
    diverged: int
    failed: int


@dataclass(frozen=True)
class Difference:
    """An arm less the baseline, paired over the seeds that both have.

    difference, low, high: the mean difference with its 95 % interval
    p, adjusted_p: of the paired t-test, and by Holm's method (`seed_noise.holm`) over all arms: the chance that any
                   of the arms that are in truth like the baseline is called better or worse is then at most 5 %
    seeds:         how many pairs there are
    verdict:       by the adjusted p and the metric's direction
    seeds_needed:  pairs that it would take to find this difference with a chance of 80 %, were it and its spread as
                   they are here, at 5 % divided by the number of arms tested; MOST_SEEDS: so many or more. None where
                   it stands out, or nothing is known
    """

    arm: str
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    adjusted_p: float | None
    seeds: int
    verdict: Verdict
    seeds_needed: int | None


class Level(NamedTuple):
    """A value of a key (of a range the median of what lies in this part of it): the metric's mean and its 95 % interval
    over `runs` runs."""

    value: Any
    mean: float
    low: float | None
    high: float | None
    runs: int


@dataclass(frozen=True)
class Effect:
    """What one key does to the metric. `importance`: its share, 0 to 1; None where it is not known."""

    key: str
    importance: float | None
    levels: list[Level]


class Reported(NamedTuple):
    """An arm there and here; ranks begin with 1, the best, and equal values share one."""

    arm: str
    reported: float
    rank_there: int
    mean: float
    rank_here: int


@dataclass(frozen=True)
class Agreement:
    """Whether the order of a publication holds.

    pairs_same:     how many pairs of arms stand here as there, beyond seed noise
    pairs_reversed: those that stand the other way round, each (better here, worse here)
    pairs_open:     how many cannot be told from seed noise. Pairs that are equal there are not counted
    tested:         whether an arm has two seeds; without, all pairs are open
    spearman: rank correlation (Spearman, 1904) of the reported values and the means here; None below three arms
    """

    rows: list[Reported]
    pairs_same: int
    pairs_reversed: list[tuple[str, str]]
    pairs_open: int
    tested: bool
    spearman: float | None


def ranking(results: Results, measure: str | None = None) -> list[ArmScore]:
    """The arms by the study's metric (or another measure), the best first, those without a score last."""
    found = [_arm_score(results, arm, results.scores(arm, measure)) for arm in results.arms]
    sign = _sign(results.study, measure)
    return sorted(found, key=lambda score: math.inf if score.mean is None else sign * score.mean)


def differences(results: Results) -> list[Difference]:
    """Every other arm less the baseline, in the order of the arms."""
    scores = {arm: results.scores(arm) for arm in results.arms}
    base, sign = scores[results.baseline], _sign(results.study)
    others = {arm: (values, base) for arm, values in scores.items() if arm != results.baseline}
    tests = paired_tests(others)
    return [_difference(arm, paired(*both), tests.get(arm), len(tests), sign) for arm, both in others.items()]


def effects(results: Results) -> list[Effect]:
    """What each key of a grid or a search does, the most important first. [] where the arms are named ones.

    Grid: a level's mean is over all points with that value, its interval over the seeds that have them all. Importance
    is the key's share of the variance between the points' means: its main effect's sum of squares over the whole. What
    the shares lack to 1 is interaction of keys. It is None where a point has no score yet, for then the shares overlap.
    Search: importance is fANOVA's (studies/search.py); a level is over the trials, whose other values differ too.
    """
    found = _grid_effects(results) if results.study.grid else _search_effects(results)
    return sorted(found, key=lambda effect: -1.0 if effect.importance is None else effect.importance, reverse=True)


def agreement(results: Results) -> Agreement | None:
    """The publication's order of the arms beside the one found here; None where it reports no numbers of the study's
    metric, or fewer than two of its arms have a score."""
    published = results.study.published
    if published is None or published.metric is None:
        return None
    here = {arm: scores for arm in results.arms if (scores := results.scores(arm))}
    column = {arm: values.get(published.metric) for arm, values in published.values.items() if arm in here}
    there = {arm: float(value) for arm, value in column.items() if isinstance(value, int | float)}
    if len(there) < 2:
        return None
    means = {arm: spread(list(here[arm].values())).mean for arm in there}
    sign = _sign(results.study)
    orders = _orders({arm: here[arm] for arm in there})
    verdicts = {
        (a, b): order * np.sign(there[a] - there[b]) for (a, b), order in orders.items() if there[a] != there[b]
    }
    count = list(verdicts.values()).count
    return Agreement(
        [Reported(arm, there[arm], _rank(there, arm, sign), means[arm], _rank(means, arm, sign)) for arm in there],
        pairs_same=count(1),
        pairs_reversed=[(a, b) if sign * orders[a, b] < 0 else (b, a) for (a, b), v in verdicts.items() if v < 0],
        pairs_open=count(0),
        tested=any(len(here[arm]) > 1 for arm in there),
        spearman=_spearman(list(there.values()), list(means.values())),
    )


def _arm_score(results: Results, arm: str, values: dict[int, float]) -> ArmScore:
    mean, deviation, low, high = spread(list(values.values())) if values else (None, None, None, None)
    count = [result.status for result in results.arms[arm]].count
    return ArmScore(arm, values, mean, deviation, low, high, count("diverged"), count("failed"))


def _sign(study: StudySettings, measure: str | None = None) -> int:
    """1 where less is better, -1 where more is."""
    if measure is None or measure == study.metric:
        return study.sign
    return -1 if measure in MORE_IS_BETTER else 1


def _difference(
    arm: str, pair: tuple[list[float], list[float]], test: PairedTest | None, tests: int, sign: int
) -> Difference:
    seeds = len(pair[0])
    if test is None:
        mean = pair[0][0] - pair[1][0] if seeds else None
        return Difference(arm, mean, None, None, None, None, seeds, "not known", None)
    found = (arm, test.difference, test.low, test.high, test.p, test.adjusted_p, seeds)
    if test.stands_out:
        return Difference(*found, "better" if sign * test.difference < 0 else "worse", None)
    effect = test.difference / test.deviation if test.deviation else 0.0
    return Difference(*found, "within seed noise", seeds_for(effect, (1 - LEVEL) / tests))


def _grid_effects(results: Results) -> list[Effect]:
    points = plan.arms(results.study)
    scores = {arm: results.scores(arm) for arm in points}
    means = {arm: spread(list(values.values())).mean for arm, values in scores.items() if values}
    whole = _squares(list(means.values())) if len(means) == len(points) else 0.0
    found = []
    for key, values in results.study.grid.items():
        groups = [(value, [arm for arm, point in points.items() if point.changes[key] == value]) for value in values]
        levels = [_level(value, [scores[arm] for arm in arms]) for value, arms in groups]
        between = [spread([means[arm] for arm in arms]).mean for _, arms in groups for _ in arms] if whole else []
        share = _squares(between) / whole if whole else None
        found.append(Effect(key, share, [level for level in levels if level]))
    return found


def _squares(values: Sequence[float]) -> float:
    """The sum of squares around the mean; rounding alone is none."""
    found = float(np.square(np.subtract(values, np.mean(values))).sum())
    return found if found > 1e-12 * float(np.square(values).sum()) else 0.0


def _level(value: Any, points: Sequence[BySeed]) -> Level | None:
    """Over the seeds that all points of the level have, each seed's mean; where there is no such seed over all runs."""
    common = set.intersection(*(set(scores) for scores in points))
    by_seed = [spread([scores[seed] for scores in points]).mean for seed in sorted(common)]
    every = [score for scores in points for score in scores.values()]
    if not every:
        return None
    found = spread(by_seed) if by_seed else Spread(spread(every).mean, None, None, None)
    return Level(value, found.mean, found.low, found.high, len(every))


def _search_effects(results: Results) -> list[Effect]:
    if results.study.search is None:
        return []
    from gptlab.studies.search import importances, values_of

    try:
        shares = importances(results)
    except UserError:  # Optuna is not on the machine that makes the report
        shares = {}
    scored = [(values_of(trial, results.study), trial.score) for trial in results.trials if trial.score is not None]
    return [
        Effect(key, shares.get(key), _trial_levels([(values[key], score) for values, score in scored if key in values]))
        for key in results.study.search.space
    ]


def _trial_levels(tried: Sequence[tuple[Any, float]]) -> list[Level]:
    """Of (value, score) of each trial: by value where there are few or they are no numbers, else in BINS parts."""
    values = [value for value, _ in tried]
    distinct = list(dict.fromkeys(map(str, values)))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if numbers and len(distinct) > FEW_VALUES:
        ordered = sorted(tried)
        cuts = [round(len(ordered) * part / BINS) for part in range(BINS + 1)]
        groups = [ordered[start:end] for start, end in pairwise(cuts)]
        middles = [float(np.median([value for value, _ in group])) for group in groups]
    else:
        groups = [[each for each in tried if str(each[0]) == name] for name in distinct]
        groups.sort(key=lambda group: group[0][0] if numbers else 0)
        middles = [group[0][0] for group in groups]
    found = []
    for middle, group in zip(middles, groups, strict=True):
        seen = spread([score for _, score in group])
        found.append(Level(middle, seen.mean, seen.low, seen.high, len(group)))
    return found


def _orders(scores: Mapping[str, BySeed]) -> dict[tuple[str, str], int]:
    """Of every two arms the sign of their difference, 0 where it is within seed noise."""
    pairs = {(a, b): (scores[a], scores[b]) for a, b in combinations(scores, 2)}
    tests = paired_tests(pairs)
    stands = {names: int(np.sign(test.difference)) for names, test in tests.items() if test.stands_out}
    return {names: stands.get(names, 0) for names in pairs}


def _rank(values: Mapping[str, float], arm: str, sign: int) -> int:
    return 1 + sum(sign * other < sign * values[arm] for other in values.values())


def _spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    from scipy.stats import spearmanr

    if len(a) < 3 or len(set(a)) < 2 or len(set(b)) < 2:  # two arms always agree or disagree wholly
        return None
    return float(spearmanr(a, b).statistic)
