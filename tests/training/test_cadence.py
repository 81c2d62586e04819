"""When things are due is a function of the step alone."""

from gptlab.training.cadence import EVALUATIONS, Cadence


def due(check, total):
    return [step for step in range(1, total + 1) if check(step, total)]


def test_a_named_cadence_is_kept_and_the_end_is_always_due():
    cadence = Cadence(evaluate_every=300, sample_every=700, save_every=0, epoch_steps=10**6)
    assert due(cadence.evaluation, 1000) == [300, 600, 900, 1000]
    assert due(cadence.samples, 1000) == [700, 1000]
    assert due(cadence.save, 1000) == due(cadence.evaluation, 1000)


def test_without_one_it_is_twenty_times_a_run():
    cadence = Cadence(0, 0, 0, epoch_steps=10**6)
    steps = due(cadence.evaluation, 1003)
    assert len(steps) == EVALUATIONS
    assert steps[-1] == 1003


def test_evaluations_together_cost_a_tenth_of_a_short_run_at_most():
    cadence = Cadence(0, 0, 0, epoch_steps=10**6, evaluation_cost=4)
    assert len(due(cadence.evaluation, 200)) == 5
    assert due(cadence.evaluation, 20) == [20]


def test_the_whole_set_is_scored_at_the_end_of_each_epoch():
    cadence = Cadence(0, 0, 0, epoch_steps=100)
    assert due(cadence.whole_validation, 250) == [100, 200, 250]


def test_of_very_short_epochs_only_some_twenty_are_scored():
    cadence = Cadence(0, 0, 0, epoch_steps=2)
    assert EVALUATIONS <= len(due(cadence.whole_validation, 1000)) <= EVALUATIONS + 1


def test_nothing_is_due_before_a_length_in_minutes_is_known():
    cadence = Cadence(0, 0, 0, epoch_steps=5)
    for check in (cadence.evaluation, cadence.whole_validation, cadence.samples, cadence.save):
        assert not any(check(step, None) for step in range(1, 50))
