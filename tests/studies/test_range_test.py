"""The range test against curves whose shape is known, and what is said of arms that diverged."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptlab.run.files import to_json
from gptlab.settings import Tree
from gptlab.studies.plan import FIRST_SEED
from gptlab.studies.range_test import RangeTest, range_test, warnings
from gptlab.studies.results import Results, read_results

RATES = np.geomspace(1e-6, 1, 200)
STUDY = {"name": "rates", "arms": {"base": {}, "fast": {"optimizer.learning_rate": 0.3}}, "range_test": {}}


def steps(rates: np.ndarray, losses: np.ndarray) -> list[Tree]:
    """Lines of metrics.jsonl, one a step."""
    return [
        {"event": "step", "step": number, "loss": float(loss), "learning_rate": float(rate), "tokens": 9, "seconds": 1}
        for number, (rate, loss) in enumerate(zip(rates, losses, strict=True), 1)
    ]


def falls_and_rises(rates: np.ndarray, least_at: float = 1e-2) -> np.ndarray:
    """A loss of 9 that is 4 at `least_at` and 9 again as far behind it as 1e-6 is before it, in decades."""
    decades = np.log10(rates / least_at) / 4
    return 4 + 5 * np.minimum(decades**2, 2)


@pytest.fixture
def tested(make_study: Callable[..., Path], tmp_path: Path) -> Callable[..., RangeTest | None]:
    """tested(losses, rates, noise, state=) → what a range test with these losses found; `state` of make_study."""

    def test(losses: np.ndarray, rates: np.ndarray = RATES, noise: float = 0.0, state: str = "") -> RangeTest | None:
        noisy = losses + noise * np.random.default_rng(0).normal(size=len(losses))
        folder = make_study(tmp_path, STUDY, {"range-test": {FIRST_SEED: state or {"lines": steps(rates, noisy)}}})
        if state:
            log = "".join(to_json(line) + "\n" for line in steps(rates, noisy))
            (folder / "range-test" / "metrics.jsonl").write_text(log, encoding="utf-8")
        return range_test(result(read_results(folder), "range-test", FIRST_SEED))

    return test


def result(results: Results, arm: str, seed: int = 1) -> Any:
    return next(found for found in results.runs if (found.item.arm, found.item.seed) == (arm, seed))


def test_the_suggestion_is_a_tenth_of_the_rate_of_the_lowest_loss(tested: Callable[..., RangeTest]) -> None:
    found = tested(falls_and_rises(RATES))
    assert found.suggested == pytest.approx(1e-3, rel=0.04)  # a step is 7 %
    assert found.losses.min() == pytest.approx(4, abs=0.02)


def test_it_diverges_where_a_quarter_of_what_was_learned_is_lost_again(tested: Callable[..., RangeTest]) -> None:
    # 5 · (log10(rate / 1e-2) / 4)² = 5 / 4 at two decades behind the least
    found = tested(falls_and_rises(RATES, 1e-3), RATES)
    learned = 5 * (3 / 4) ** 2
    expected = 1e-3 * 10 ** (4 * math.sqrt(learned / 4 / 5))
    assert found.diverges_at == pytest.approx(expected, rel=0.15)


def test_noise_moves_neither(tested: Callable[..., RangeTest]) -> None:
    found = tested(falls_and_rises(RATES, 1e-3), RATES, noise=0.2)
    assert 3e-5 < (found.suggested or 0) < 3e-4
    assert found.diverges_at == pytest.approx(10**-1.5, rel=0.5)


def test_smoothing_does_not_lag_and_lowers_the_noise(tested: Callable[..., RangeTest]) -> None:
    line = np.linspace(9, 4, 200)
    found = tested(line, noise=0.2)
    truth = np.interp(np.log(found.rates), np.log(RATES), line)
    assert np.std(found.losses - truth) < 0.1
    assert np.mean(found.losses - truth) == pytest.approx(0, abs=0.05)
    assert len(found.rates) == len(found.losses) == 190
    assert (np.diff(found.rates) > 0).all()


def test_a_loss_that_only_falls_does_not_diverge(tested: Callable[..., RangeTest]) -> None:
    found = tested(np.linspace(9, 4, 200), noise=0.1)
    assert found.diverges_at is None
    assert found.suggested == pytest.approx(0.1, rel=0.6)


def test_a_loss_that_is_noise_suggests_nothing_and_does_not_diverge(tested: Callable[..., RangeTest]) -> None:
    found = tested(np.full(200, 5.0), noise=0.3)
    assert (found.suggested, found.diverges_at) == (None, None)


def test_a_run_that_stopped_diverged_at_the_next_steps_rate(tested: Callable[..., RangeTest]) -> None:
    rates = RATES[:150]
    found = tested(np.linspace(9, 4, 150), rates, state="diverged")
    assert found.diverges_at == pytest.approx(RATES[150])


def test_one_loss_that_blows_up_is_found_before_the_run_stops(tested: Callable[..., RangeTest]) -> None:
    losses = np.linspace(9, 4, 150)
    losses[-3:] = 1e6
    found = tested(losses, RATES[:150], state="diverged")
    assert RATES[135] < (found.diverges_at or 0) < RATES[147]


def test_a_loss_that_is_not_finite_is_no_point_of_the_curve(tested: Callable[..., RangeTest]) -> None:
    losses = np.linspace(9, 4, 200)
    losses[-1] = math.nan
    assert np.isfinite(tested(losses).losses).all()


def test_few_points_say_nothing(tested: Callable[..., RangeTest | None]) -> None:
    assert tested(np.linspace(9, 4, 19), RATES[:19]) is None


def test_another_run_is_no_range_test(make_study: Callable[..., Path], tmp_path: Path) -> None:
    results = read_results(make_study(tmp_path, STUDY, {"base": {1: {"perplexity": 160.0}}}))
    assert range_test(result(results, "base")) is None
    assert range_test(result(results, "range-test", FIRST_SEED)) is None


@pytest.fixture
def warned(make_study: Callable[..., Path], tmp_path: Path) -> Callable[[Tree], list[str]]:
    """warned(scores) → the warnings of a study with these runs."""
    return lambda scores: warnings(read_results(make_study(tmp_path, STUDY, scores)))


def at(rate: float, losses: np.ndarray) -> Tree:
    return {"lines": steps(np.full(len(losses), rate), losses)}


def test_a_study_that_learns_has_no_warning(warned: Callable[[Tree], list[str]]) -> None:
    random = np.random.default_rng(0)
    learns = at(1e-3, 4 + 5 * np.exp(-np.arange(300) / 40) + random.normal(0, 0.1, 300))
    tunes = at(1e-3, 3.2 - np.arange(300) / 3000 + random.normal(0, 0.2, 300))
    assert warned({"base": {1: learns, 2: tunes, 3: at(1e-3, np.linspace(9, 8, 5))}}) == []


@pytest.mark.parametrize("logged", [25, 80])
def test_a_run_that_does_not_learn_has_not_diverged(
    make_study: Callable[..., Path], tmp_path: Path, logged: int
) -> None:
    seeds = list(range(1, 201))
    flat = {seed: at(1e-3, np.random.default_rng(seed).normal(5, 0.3, logged)) for seed in seeds}
    results = read_results(make_study(tmp_path, {"arms": {"flat": {}}, "seeds": seeds}, {"flat": flat}))
    named = [seed for sentence in warnings(results) for seed in re.findall(r"\d+", sentence.partition("seed")[2])]
    assert len(named) <= 4


def test_an_arm_that_diverged_is_named_with_its_rate_and_seeds(warned: Callable[[Tree], list[str]]) -> None:
    rises = np.linspace(9, 12, 60)
    forgets = np.concatenate([np.linspace(9, 4, 40), np.full(40, 8.0)])
    found = warned({"base": {1: "diverged", 2: at(1e-3, rises), 3: "diverged"}, "fast": {2: at(0.3, forgets)}})
    assert found == [
        "base diverged at a learning rate of 0.0005 (seeds 1, 3): the loss was not finite, and training stopped",
        "base diverged at a learning rate of 0.0005 (seed 2): the training loss ended above where it began",
        "fast diverged at a learning rate of 0.3 (seed 2): the training loss ended far above its least",
    ]


def test_a_rate_beyond_the_range_tests_is_warned_of(warned: Callable[[Tree], list[str]]) -> None:
    test = {"lines": steps(RATES, falls_and_rises(RATES, 1e-3))}
    fine = at(1e-3, np.linspace(9, 4, 60))
    (found,) = warned({"range-test": {FIRST_SEED: test}, "base": {1: fine}, "fast": {1: fine}})
    assert found.startswith("fast has a learning rate of 0.3; the range test diverged at 0.02")


def test_an_arm_that_has_not_begun_is_not_warned_of(warned: Callable[[Tree], list[str]]) -> None:
    assert warned({"range-test": {FIRST_SEED: {"lines": steps(RATES, falls_and_rises(RATES, 1e-3))}}}) == []


def test_in_an_arm_that_is_a_range_test_divergence_is_what_is_looked_for(
    make_study: Callable[..., Path], tmp_path: Path
) -> None:
    arms = {"range": {"schedule.kind": "range", "training.max_steps": 200}}
    scores = {"range": {1: {"lines": steps(RATES, falls_and_rises(RATES, 1e-3))}, 2: "diverged"}}
    results = read_results(make_study(tmp_path, {"name": "ranges", "arms": arms}, scores))
    assert warnings(results) == []
    assert range_test(result(results, "range")) is not None
