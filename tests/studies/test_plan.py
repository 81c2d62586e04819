"""Which runs a study has, in which order, and the recipe of each."""

from __future__ import annotations

from typing import Any

import pytest

from gptlab.errors import RecipeError
from gptlab.settings import build
from gptlab.studies.plan import RANGE_TEST, arms, baseline, check, items, recipe_of
from gptlab.studies.settings import StudySettings
from gptlab.training.recipe import Recipe

SPACE = {"optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "model.n_layer": [1, 2]}


def study_of(**changes: Any) -> StudySettings:
    tree = {"name": "five", "recipe": "mini-gpt", "metric": "perplexity", "seeds": [1, 2], **changes}
    return build(StudySettings, tree, "a study")


def names(study: StudySettings) -> list[str]:
    return [item.name for item in items(study)]


def recipe(study: StudySettings, name: str, **drawn: Any) -> Recipe:
    return recipe_of(study, next(item for item in items(study) if item.name == name), drawn)


TWO: dict[str, Any] = {"arms": {"plain": {}, "wide": {"model.n_embd": 64}}}


def test_rounds_come_one_after_the_other() -> None:
    """So that a study that ends early has compared its arms with some seeds, and not some arms with all."""
    study = study_of(**TWO)
    assert names(study) == ["plain-1", "wide-1", "plain-2", "wide-2"]
    assert [(item.arm, item.seed, item.stage, item.round) for item in items(study)] == [
        ("plain", 1, 1, 0), ("wide", 1, 1, 0), ("plain", 2, 1, 1), ("wide", 2, 1, 1)
    ]  # fmt: skip


def test_runs_that_others_begin_with_come_first_and_once() -> None:
    study = study_of(**TWO, first={"base": {"training.max_steps": 5}}, range_test={"steps": 20})
    assert names(study) == ["base", RANGE_TEST, "plain-1", "wide-1", "plain-2", "wide-2"]
    assert [item.stage for item in items(study)] == [0, 0, 1, 1, 1, 1]


def test_every_combination_of_a_grid_is_an_arm() -> None:
    study = study_of(grid={"optimizer.learning_rate": [1e-3, 5e-5], "optimizer.kind": ["adamw", "muon"]}, seeds=[7])
    found = arms(study)
    assert list(found) == [
        "learning_rate-0.001_kind-adamw", "learning_rate-0.001_kind-muon", "learning_rate-5e-05_kind-adamw",
        "learning_rate-5e-05_kind-muon",
    ]  # fmt: skip
    assert found["learning_rate-5e-05_kind-muon"].changes == {"optimizer.learning_rate": 5e-5, "optimizer.kind": "muon"}
    made = recipe(study, "learning_rate-5e-05_kind-muon-7")
    assert (made.optimizer.learning_rate, made.optimizer.kind, made.seed) == (5e-5, "muon", 7)


def test_points_of_a_grid_with_one_name_are_refused() -> None:
    with pytest.raises(RecipeError, match="two of its points would have one name"):
        arms(study_of(grid={"optimizer.learning_rate": [1e-3, 1.0000001e-3]}))


def test_a_search_has_trials_and_then_proves_the_best() -> None:
    search = {"trials": 10, "space": SPACE, "confirm": [101, 102]}
    study = study_of(search=search)
    assert names(study)[:2] == ["trial-001-1", "trial-002-1"]
    assert names(study)[9:] == ["trial-010-1", "baseline-101", "best-101", "baseline-102", "best-102"]
    assert [item.round for item in items(study)] == [*range(10), 0, 0, 1, 1]
    assert baseline(study) == "baseline"


def test_a_run_is_the_recipe_with_the_studys_changes_the_arms_and_its_seed() -> None:
    study = study_of(**TWO, changes={"training.minutes": 3.0, "model.n_layer": 1})
    plain, wide = recipe(study, "plain-1"), recipe(study, "wide-2")
    assert (plain.name, plain.seed, wide.name, wide.seed) == ("plain-1", 1, "wide-2", 2)
    assert (plain.training.minutes, wide.training.minutes) == (3.0, 3.0)
    assert (plain.model.n_layer, wide.model.n_layer, wide.model.n_embd) == (1, 1, 64)
    same = {"name", "seed", "model"}
    assert plain.model_dump(exclude=same) == wide.model_dump(exclude=same), "they differ in nothing else"


def test_an_arm_may_have_a_recipe_and_a_variant_of_its_own() -> None:
    study = study_of(arms={"gpt": {}, "lstm": {"recipe": "mini-lstm", "training.minutes": 2.0}}, variant="tiny")
    assert recipe(study, "gpt-1").model.kind == "gpt"
    lstm = recipe(study, "lstm-1")
    assert (lstm.model.kind, lstm.training.minutes, lstm.name) == ("lstm", 2.0, "lstm-1")


def test_a_first_run_has_what_its_table_says() -> None:
    study = study_of(**TWO, first={"base": {"training.max_steps": 5, "model.n_layer": 1}})
    base = recipe(study, "base")
    assert (base.name, base.seed, base.training.max_steps, base.model.n_layer) == ("base", 1337, 5, 1)


def test_a_trial_has_what_was_drawn() -> None:
    study = study_of(search={"trials": 2, "space": SPACE})
    drawn = {"optimizer.learning_rate": 3e-3, "model.n_layer": 1}
    made = recipe(study, "trial-002-1", **drawn)
    assert (made.optimizer.learning_rate, made.model.n_layer) == (3e-3, 1)
    assert recipe(study, "best-101", **drawn).model_dump(exclude={"name", "seed"}) == made.model_dump(
        exclude={"name", "seed"}
    )
    base = recipe(study_of(arms={"plain": {}}), "plain-1")
    assert recipe(study, "baseline-101").optimizer == base.optimizer


def test_a_range_test_is_the_baseline_with_a_rate_that_rises() -> None:
    study = study_of(**TWO, baseline="wide", range_test={"low": 1e-5, "high": 0.1, "steps": 50})
    test = recipe(study, RANGE_TEST)
    assert (test.schedule.kind, test.optimizer.learning_rate, test.training.max_steps) == ("range", 0.1, 50)
    assert test.schedule.initial_fraction == pytest.approx(1e-4)
    assert test.model.n_embd == 64


def test_the_baseline_is_the_first_arm_or_the_one_that_is_named() -> None:
    assert baseline(study_of(**TWO)) == "plain"
    assert baseline(study_of(**TWO, baseline="wide")) == "wide"
    with pytest.raises(RecipeError, match=r"baseline = 'narrow': there is no such arm; there is plain, wide"):
        check(study_of(**TWO, baseline="narrow"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": {"plain": {}, "wide": {"model.n_embed": 64}}}, ("wide-1", "n_embed", "n_embd")),
        ({"arms": {"plain": {"recipe": "minigpt"}}}, ("plain-1", "minigpt")),
        ({"arms": {"plain": {"variant": "tinny"}}}, ("plain-1", "tinny")),
        ({"arms": {"a b": {}}}, ("a b-1",)),
        ({"arms": {"../up": {}}}, ("../up-1",)),
        ({**TWO, "changes": {"model.n_embd": 32}}, ("model.n_embd", "for the arm wide alone")),
        ({"grid": {"model.n_embd": [32]}, "changes": {"model.n_embd": 32}}, ("n_embd", "for the arm n_embd-32 alone")),
        ({**TWO, "first": {"base": {"model.n_layer": "two"}}}, ("base", "n_layer")),
        ({"search": {"trials": 2, "space": {"model.n_layer": [1, "two"]}}}, ("trial-001-1", "n_layer")),
        ({"search": {"trials": 2, "space": {"optimizer.learning_rate": {"low": -1.0, "high": 1.0}}}}, ("trial-001-1",)),
    ],
)
def test_a_run_that_cannot_be_is_named_before_any_is_made(changes: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError) as caught:
        check(study_of(**changes))
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"arms": {"base": {}, "wide": {}}, "first": {"base": {"training.max_steps": 5}}},
        {"arms": {"plain": {}}, "first": {"plain-2": {}}},
        {"arms": {"plain": {}}, "first": {RANGE_TEST: {}}, "range_test": {"steps": 20}},
        {"arms": {"plain": {}}, "first": {"work": {}}},
        {"search": {"trials": 2, "space": SPACE, "confirm": [5, 5]}},
        {"search": {"trials": 2, "space": SPACE, "confirm": [1]}},
        {"arms": {"plain": {}}, "name": "../elsewhere"},
    ],
)
def test_names_that_would_meet_are_refused(changes: dict[str, Any]) -> None:
    """Two runs of one name, an arm that would be taken for a first run, a first run where the claims are, a search that
    proves its best with the seed that chose it, a study outside of its folder."""
    with pytest.raises(RecipeError):
        check(study_of(**changes))
