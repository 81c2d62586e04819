"""A length in minutes becomes steps by the clock, once, and is replayed ever after."""

import pytest

from gptlab.training.length import FIRST_DECISION, Length


def run(length, seconds_of_step, until=10_000):
    """The steps a run of this length takes on a clock that `seconds_of_step` gives."""
    step, elapsed = 0, 0.0
    while length.total is None or step < length.total:
        elapsed += seconds_of_step(step)
        step += 1
        length.decide(step, elapsed)
        assert step < until
    return step, elapsed


def test_an_even_clock_is_met_exactly():
    assert run(Length.timed(60), lambda step: 0.5) == (120, 60.0)


def test_a_machine_that_slows_down_ends_near_its_time():
    _, elapsed = run(Length.timed(60), lambda step: 0.1 if step < 200 else 0.3)
    assert 57 < elapsed < 63


@pytest.mark.parametrize(("first", "then"), [(50.0, 0.05), (10.0, 0.02), (2.0, 0.001)])
def test_a_slow_first_step_does_not_make_the_run_short(first, then):
    _, elapsed = run(Length.timed(240), lambda step: first if step == 0 else then, until=10**6)
    assert 0.9 * 240 < elapsed < 1.1 * 240


def test_a_machine_that_becomes_quick_is_used_to_the_end():
    _, elapsed = run(Length.timed(60), lambda step: 1.0 if step < 12 else 0.05)
    assert 54 < elapsed < 66


def test_decisions_are_replayed_whatever_the_clock_says():
    first = Length.timed(60)
    steps, _ = run(first, lambda step: 0.1 + 0.001 * step)
    again = Length.timed(60, first.decisions)
    assert run(again, lambda step: 5.0)[0] == steps
    assert again.decisions == first.decisions


def test_rewinding_brings_back_the_total_of_that_time():
    length = Length.timed(60)
    run(length, lambda step: 0.1 + 0.001 * step)
    assert len(length.decisions) > 2
    (first_step, first_total), (second_step, _) = length.decisions[:2]
    assert first_step == FIRST_DECISION
    length.rewind(second_step - 1)
    assert length.total == first_total
    length.rewind(first_step - 1)
    assert length.total is None


def test_slow_steps_are_decided_before_the_tenth():
    length = Length.timed(60)
    assert run(length, lambda step: 10.0) == (6, 60.0)


def test_a_fixed_length_never_decides():
    length = Length.fixed(7)
    assert not length.decide(5, 1e9)
    assert length.total == 7
