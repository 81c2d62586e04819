"""A study's arithmetic: intervals, paired tests and power against scipy, effects and ranks against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from gptlab.studies.results import Results, read_results
from gptlab.studies.seed_noise import MOST_SEEDS, holm, paired_tests, seeds_for, spread
from gptlab.studies.statistics import agreement, differences, effects, ranking

MakeStudy = Callable[..., Path]
ARMS: dict[str, dict[str, Any]] = {"base": {}, "wide": {"model.n_embd": 256}, "deep": {"model.n_layer": 4}}


def study_of(make_study: MakeStudy, tmp_path: Path, values: Mapping[str, Mapping[int, Any]], **study: Any) -> Results:
    """A study of `ARMS` whose runs have these perplexities (a state's name stays)."""
    scores = {
        arm: {seed: {"perplexity": value} if isinstance(value, float) else value for seed, value in runs.items()}
        for arm, runs in values.items()
    }  # fmt: skip
    return read_results(make_study(tmp_path, {"arms": ARMS, **study}, scores))


def test_the_spread_is_students() -> None:
    values = [160.6, 157.2, 163.9, 161.0]
    found = spread(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert found == pytest.approx((np.mean(values), np.std(values, ddof=1), low, high))
    assert spread([3.0]) == (3.0, None, None, None)


def test_holm_adjusts_as_published_examples_do() -> None:
    """The second example is the one of R's `p.adjust` for ties and a p that rises above 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.5, 0.9]) == pytest.approx([1.0, 1.0, 1.0])
    assert holm([]) == []


def test_paired_tests_are_scipys() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 6))
    found = paired_tests({"one": (dict(enumerate(a)), {**dict(enumerate(b)), 9: 0.0}), "none": ({1: 1.0}, {1: 2.0})})
    assert list(found) == ["one"]  # of one pair there is no test, and it does not count
    assert found["one"].p == found["one"].adjusted_p == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert found["one"].deviation == pytest.approx(np.std(a - b, ddof=1))


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (-0.8, 15), (1.0, 10)])
def test_seeds_needed_are_those_of_power_tables(effect: float, seeds: int) -> None:
    """As G*Power 3.1 has them: means, difference between two dependent means, two tails, 0.05, power 0.8."""
    assert seeds_for(effect) == seeds


def test_so_many_seeds_find_the_difference_in_four_of_five_studies() -> None:
    seeds = seeds_for(0.9, level=0.01)
    drawn = np.random.default_rng(1).normal(0.9, 1.0, size=(20_000, seeds))
    assert 0.79 < np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.01) < 0.84


@pytest.mark.parametrize("effect", [0.0, 1e-9, 0.01])
def test_what_nobody_can_find_is_capped(effect: float) -> None:
    assert seeds_for(effect) == MOST_SEEDS


def test_a_huge_effect_takes_few_seeds() -> None:
    assert seeds_for(180.0, level=0.0025) <= 3  # where the noncentral t of many seeds is no number any more


def test_the_ranking_has_the_best_first_and_the_scoreless_last(make_study: MakeStudy, tmp_path: Path) -> None:
    values = {"base": {1: 160.0, 2: 162.0, 3: "diverged"}, "wide": {1: "failed", 2: "diverged"}, "deep": {1: 150.0}}
    deep, base, wide = ranking(study_of(make_study, tmp_path, values))
    assert (deep.arm, base.arm, wide.arm) == ("deep", "base", "wide")
    assert (base.values, base.mean, base.diverged, base.failed) == ({1: 160.0, 2: 162.0}, 161.0, 1, 0)
    assert (deep.mean, deep.deviation, deep.low) == (150.0, None, None)
    assert (wide.mean, wide.values, wide.diverged, wide.failed) == (None, {}, 1, 1)


def test_more_can_be_better(make_study: MakeStudy, tmp_path: Path) -> None:
    scores = {arm: {seed: {"accuracy": at + seed / 1000, "loss": 1.0} for seed in (1, 2, 3)}
              for arm, at in (("base", 0.6), ("wide", 0.7), ("deep", 0.5))}  # fmt: skip
    results = read_results(make_study(tmp_path, {"arms": ARMS, "metric": "accuracy"}, scores))
    assert [score.arm for score in ranking(results)] == ["wide", "base", "deep"]
    assert [score.arm for score in ranking(results, "seconds")] == ["base", "wide", "deep"]  # alike: as they stand
    assert {gap.arm: gap.verdict for gap in differences(results)} == {"wide": "better", "deep": "worse"}


def test_differences_are_paired_over_the_seeds_that_both_have(make_study: MakeStudy, tmp_path: Path) -> None:
    base = {1: 160.0, 2: 170.0, 3: 150.0, 4: 166.0}
    wide = {1: 150.0, 2: 161.0, 3: 139.0, 4: "diverged"}
    deep = {1: 165.0, 2: 165.0, 3: 153.0, 4: 160.0}
    results = study_of(make_study, tmp_path, {"base": base, "wide": wide, "deep": deep}, seeds=[1, 2, 3, 4])
    first, second = differences(results)
    a, b = np.array([150.0, 161.0, 139.0]), np.array([160.0, 170.0, 150.0])
    p = stats.ttest_rel(a, b)
    low, high = p.confidence_interval()
    assert (first.arm, first.seeds, first.verdict, first.seeds_needed) == ("wide", 3, "better", None)
    assert (first.difference, first.low, first.high) == pytest.approx((-10.0, low, high))
    assert (first.p, first.adjusted_p) == pytest.approx((p.pvalue, 2 * p.pvalue))  # the smaller of two
    gaps = np.array([5.0, -5.0, 3.0, -6.0])
    assert (second.arm, second.seeds, second.verdict) == ("deep", 4, "within seed noise")
    assert second.seeds_needed == seeds_for(gaps.mean() / gaps.std(ddof=1), 0.05 / 2)
    assert second.seeds_needed > 4


def test_one_seed_says_nothing_of_noise(make_study: MakeStudy, tmp_path: Path) -> None:
    results = study_of(make_study, tmp_path, {"base": {1: 160.0}, "wide": {1: 150.0}}, seeds=[1])
    wide, deep = differences(results)
    assert (wide.difference, wide.p, wide.verdict, wide.seeds_needed) == (pytest.approx(-10.0), None, "not known", None)
    assert (deep.difference, deep.seeds, deep.verdict) == (None, 0, "not known")


def test_equal_runs_are_within_seed_noise(make_study: MakeStudy, tmp_path: Path) -> None:
    same = dict.fromkeys((1, 2, 3), 160.0)
    gap = differences(study_of(make_study, tmp_path, {"base": same, "wide": same}))[0]
    assert (gap.difference, gap.p, gap.verdict, gap.seeds_needed) == (0.0, 1.0, "within seed noise", MOST_SEEDS)


def grid_of(make_study: MakeStudy, tmp_path: Path, perplexity: Callable[[int, int, int], float | None]) -> Results:
    """A grid of three rates and two dropouts with three seeds; `perplexity` of their numbers, None: waiting."""
    rates, dropouts = [1e-4, 1e-3, 1e-2], [0.0, 0.1]
    scores = {
        f"learning_rate-{rate:g}_dropout-{dropout:g}": {
            seed: {"perplexity": value}
            for seed in (1, 2, 3) if (value := perplexity(i, j, seed)) is not None
        }
        for i, rate in enumerate(rates) for j, dropout in enumerate(dropouts)
    }  # fmt: skip
    grid = {"optimizer.learning_rate": rates, "model.dropout": dropouts}
    return read_results(make_study(tmp_path, {"grid": grid}, scores))


def test_main_effects_share_the_variance_of_a_grid(make_study: MakeStudy, tmp_path: Path) -> None:
    of_rate, of_dropout = np.array([0.0, -30.0, 10.0]), np.array([0.0, 5.0])
    rate, dropout = effects(grid_of(make_study, tmp_path, lambda i, j, seed: 200 + of_rate[i] + of_dropout[j] + seed))
    whole = of_rate.var() + of_dropout.var()  # nothing else: no interaction
    assert (rate.key, dropout.key) == ("optimizer.learning_rate", "model.dropout")
    assert (rate.importance, dropout.importance) == pytest.approx((of_rate.var() / whole, of_dropout.var() / whole))
    assert [level.value for level in rate.levels] == [1e-4, 1e-3, 1e-2]
    means = [200 + of_rate[1] + 2.5 + seed for seed in (1, 2, 3)]
    assert rate.levels[1][1:] == pytest.approx((np.mean(means), *spread(means)[2:], 6))


def test_interaction_is_what_the_shares_lack(make_study: MakeStudy, tmp_path: Path) -> None:
    found = effects(grid_of(make_study, tmp_path, lambda i, j, seed: 200.0 + 10 * (i == 2 and j == 1)))
    table = np.array([[0, 0], [0, 0], [0, 10.0]])
    shares = table.mean(axis=1).var() / table.var(), table.mean(axis=0).var() / table.var()
    assert [effect.importance for effect in found] == pytest.approx(shares)
    assert sum(shares) < 1


def test_of_an_unfinished_grid_no_importance_is_known(make_study: MakeStudy, tmp_path: Path) -> None:
    found = effects(grid_of(make_study, tmp_path, lambda i, j, seed: None if i == 0 or (i == j == 1) else 200.0 + seed))
    rate = next(effect for effect in found if effect.key == "optimizer.learning_rate")
    assert rate.importance is None
    assert [(level.value, level.mean, level.runs) for level in rate.levels] == [(1e-3, 202.0, 3), (1e-2, 202.0, 6)]


def test_seeds_that_a_level_lacks_are_left_out_of_its_mean(make_study: MakeStudy, tmp_path: Path) -> None:
    """Or else a seed that is hard would be counted for one point of the level and not for another."""
    found = effects(
        grid_of(make_study, tmp_path, lambda i, j, seed: None if j == 0 and seed == 3 else 200.0 + 50 * seed)
    )
    dropout = next(effect for effect in found if effect.key == "model.dropout")
    assert [level.mean for level in dropout.levels] == pytest.approx([275.0, 300.0])


def test_a_grid_of_equal_points_has_no_importance(make_study: MakeStudy, tmp_path: Path) -> None:
    found = effects(grid_of(make_study, tmp_path, lambda i, j, seed: 200.1))
    assert [effect.importance for effect in found] == [None, None]


def test_named_arms_have_no_effects(make_study: MakeStudy, tmp_path: Path) -> None:
    assert effects(study_of(make_study, tmp_path, {"base": {1: 160.0}})) == []


def test_a_searched_range_is_told_in_parts(make_study: MakeStudy, tmp_path: Path) -> None:
    trials, widths = 12, [64, 128, 256]
    drawn = {f"trial-{n:03}": {"optimizer.learning_rate": 10 ** (-4 + n / 6), "model.n_embd": widths[n % 3]}
             for n in range(1, trials + 1)}  # fmt: skip
    scores: dict[str, dict[int, Any]] = {name: {1: {"perplexity": 100.0 + n}} for n, name in enumerate(drawn, 1)}
    scores["trial-012"] = {1: "pruned"}
    space = {"optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "model.n_embd": widths}
    results = read_results(make_study(tmp_path, {"search": {"trials": trials, "space": space}}, scores, drawn))
    levels = {effect.key: effect.levels for effect in effects(results)}
    rate = levels["optimizer.learning_rate"]
    assert [level.runs for level in rate] == [3, 3, 2, 3]  # eleven trials in four parts
    assert rate[0].mean == pytest.approx(102.0)
    assert rate[0].value == pytest.approx(10 ** (-4 + 2 / 6))
    assert [(level.value, level.runs) for level in levels["model.n_embd"]] == [(64, 3), (128, 4), (256, 4)]


PUBLISHED = {"source": "A report.", "metric": "validation perplexity", "differs": ["The data."]}


def published(**values: float | str) -> dict[str, Any]:
    return {**PUBLISHED, "values": {arm: {"validation perplexity": value} for arm, value in values.items()}}


def test_agreement_with_a_publication(make_study: MakeStudy, tmp_path: Path) -> None:
    """wide stands out of both; base and deep cannot be told apart."""
    values = {
        "base": {1: 160.0, 2: 162.0, 3: 161.0}, "wide": {1: 120.0, 2: 122.1, 3: 121.0},
        "deep": {1: 161.0, 2: 160.0, 3: 162.5},
    }  # fmt: skip
    found = agreement(study_of(make_study, tmp_path, values, published=published(base=160.61, wide=175.0, deep=157.0)))
    assert found is not None
    assert [tuple(row) for row in found.rows] == [
        ("base", 160.61, 2, 161.0, 2), ("wide", 175.0, 3, pytest.approx(121.0333), 1),
        ("deep", 157.0, 1, pytest.approx(161.1667), 3),
    ]  # fmt: skip
    turned = [("wide", "base"), ("wide", "deep")]
    assert (found.pairs_same, found.pairs_reversed, found.pairs_open, found.tested) == (0, turned, 1, True)
    assert found.spearman == pytest.approx(stats.spearmanr([160.61, 175, 157], [161, 121, 161.2]).statistic) == -1


def test_pairs_that_are_equal_there_are_not_counted(make_study: MakeStudy, tmp_path: Path) -> None:
    values = {arm: {seed: at + seed for seed in (1, 2, 3)} for arm, at in (("base", 100.0), ("wide", 90.0))}
    found = agreement(study_of(make_study, tmp_path, values, published=published(base=8.4, wide=8.4)))
    assert found is not None
    assert (found.pairs_same, found.pairs_reversed, found.pairs_open, found.spearman) == (0, [], 0, None)
    assert [row.rank_there for row in found.rows] == [1, 1]


@pytest.mark.parametrize("values", [{"base": 8.4}, {"base": "out of memory", "wide": 8.4}, {"base": 8.4, "other": 7.0}])
def test_too_few_figures_have_no_order(make_study: MakeStudy, tmp_path: Path, values: dict[str, Any]) -> None:
    here = {"base": {1: 100.0}, "wide": {1: 90.0}}
    assert agreement(study_of(make_study, tmp_path, here, published=published(**values))) is None


def test_without_a_publication_there_is_no_agreement(make_study: MakeStudy, tmp_path: Path) -> None:
    assert agreement(study_of(make_study, tmp_path, {"base": {1: math.e}})) is None
