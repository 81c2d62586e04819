"""The schedules against their closed forms."""

import math

import pytest
from pydantic import ValidationError

from gptlab.errors import RecipeError
from gptlab.training.recipe import load_recipe
from gptlab.training.schedule import ScheduleSettings, rate_factor


def factors(total, **settings):
    return [rate_factor(ScheduleSettings(**settings), step, total) for step in range(total)]


def test_warmup_rises_linearly_to_the_full_rate():
    assert factors(100, kind="constant", warmup_steps=4)[:6] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_is_the_formula():
    got = factors(110, kind="cosine", warmup_steps=10, final_fraction=0.1)
    for step in range(10, 110):
        expected = 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 10) / 100)) / 2
        assert got[step] == pytest.approx(expected)


def test_linear_falls_to_its_final_fraction_at_the_end():
    got = factors(100, kind="linear", warmup_steps=0, final_fraction=0.2)
    assert got[0] == 1.0
    assert got[50] == pytest.approx(0.6)
    assert got[99] == pytest.approx(0.2 + 0.8 / 100)


def test_wsd_holds_and_then_falls_over_its_last_part():
    got = factors(100, kind="wsd", warmup_steps=10, decay_fraction=0.4, final_fraction=0.0)
    assert got[10:61] == [1.0] * 51
    assert got[80] == pytest.approx(0.5)
    assert 0 < got[99] < 0.03


def test_a_run_shorter_than_its_warmup_still_reaches_its_rate():
    assert max(factors(10, kind="constant", warmup_steps=1000)) == 1.0


def test_before_a_length_in_minutes_is_known_only_the_warmup_acts():
    settings = ScheduleSettings(kind="cosine", warmup_steps=2)
    assert [rate_factor(settings, step, None) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]


def test_a_range_rises_by_the_same_factor_from_its_initial_fraction_to_the_full_rate():
    got = factors(7, kind="range", initial_fraction=1e-6, warmup_steps=100)
    assert got == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    assert factors(1, kind="range") == [1e-6]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1e-3])
def test_a_range_begins_above_zero_and_below_its_end(fraction):
    with pytest.raises(ValidationError, match="initial_fraction"):
        ScheduleSettings(kind="range", initial_fraction=fraction)


def test_a_range_in_minutes_is_refused_since_its_last_step_is_not_known():
    changes = ["schedule.kind=range", "training.minutes=2"]
    with pytest.raises(RecipeError, match=r"schedule\.kind = range: .* wants training\.max_steps, epochs or tokens"):
        load_recipe("quickstart", *changes)
    assert load_recipe("quickstart", changes[0], "training.max_steps=20").schedule.initial_fraction == 1e-6
