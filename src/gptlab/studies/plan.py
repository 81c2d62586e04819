"""The runs of a study: their names, in which order, and the recipe of each."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptlab.errors import RecipeError
from gptlab.studies.settings import RangeTestSettings, StudySettings
from gptlab.training.recipe import Recipe, make_recipe, merged

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
RANGE_TEST = "range-test"
BASELINE, BEST, TRIAL = "baseline", "best", "trial"
"""The names of arms that no file names."""


HELD_OUT_BY = FIRST_SEED = 1337
"""The seed of what a share holds out, in every run of a study: the texts that are scored must be the same. And that of
first runs, whatever seeds are compared."""


@dataclass(frozen=True)
class Item:
    """A run of a study.

    name:  its folder in the study's folder: the arm and the seed; of a run that others begin with its name alone
    stage: 0 made first; 1 the arms (or trials); 2 what a search ends with. One begins when all before have ended
    round: of its stage; all arms with one seed, or one trial. First runs are made one after the other, since one may
           begin with another
    """

    name: str
    arm: str
    seed: int
    stage: int
    round: int = 0


@dataclass(frozen=True)
class Arm:
    """What the runs of an arm have in place of the study's."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    recipe: str | None = None
    variant: str | None = None

    @classmethod
    def of(cls, name: str, table: Mapping[str, Any]) -> Arm:
        """An arm as a study's file has it."""
        changes = {key: value for key, value in table.items() if key not in ("recipe", "variant")}
        return cls(name, changes, table.get("recipe"), table.get("variant"))


def arms(study: StudySettings) -> dict[str, Arm]:
    """The arms that are known before a run is made, by name: the file's, or a grid's; of a search the baseline."""
    if study.search:
        return {BASELINE: Arm(BASELINE)}
    found = [Arm.of(name, table) for name, table in study.arms.items()] or list(_grid(study.grid))
    if len(by_name := {arm.name: arm for arm in found}) < len(found):
        raise RecipeError(f"grid: two of its points would have one name: {', '.join(arm.name for arm in found)}")
    return by_name


def _grid(grid: Mapping[str, list[Any]]) -> Iterator[Arm]:
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        yield Arm("_".join(f"{key.split('.')[-1]}-{_in_a_name(value)}" for key, value in point.items()), point)


def _in_a_name(value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", f"{value:g}" if isinstance(value, float) else str(value)).strip("-.")


def baseline(study: StudySettings) -> str:
    """The arm that the others are compared with. RecipeError where the study names one that it has not."""
    known = list(arms(study))
    if study.baseline is not None and study.baseline not in known:
        raise RecipeError(f"baseline = {study.baseline!r}: there is no such arm; there is {', '.join(known)}")
    return study.baseline or known[0]


def items(study: StudySettings) -> list[Item]:
    """Every run of the study, in the order in which they are made."""
    names = [*study.first, *([RANGE_TEST] if study.range_test else [])]
    first = [Item(name, name, FIRST_SEED, 0, number) for number, name in enumerate(names)]
    if study.search is None:
        rounds = enumerate(study.seeds)
        return first + [_item(arm, seed, 1, number) for number, seed in rounds for arm in arms(study)]
    trials = (f"{TRIAL}-{number:03}" for number in range(1, study.search.trials + 1))
    return [
        *first,
        *(_item(trial, study.seeds[0], 1, number) for number, trial in enumerate(trials)),
        *(_item(arm, seed, 2, n) for n, seed in enumerate(study.search.confirm) for arm in (BASELINE, BEST)),
    ]


def _item(arm: str, seed: int, stage: int, number: int) -> Item:
    return Item(f"{arm}-{seed}", arm, seed, stage, number)


def recipe_of(study: StudySettings, item: Item, drawn: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of a run; `drawn`: what a search gave a trial (and the best of them).

    RecipeError, with the run's name, where it cannot be.
    """
    try:
        return _recipe(study, _arm_of(study, item, drawn or {}), item)
    except RecipeError as error:
        raise RecipeError(f"study {study.name}, run {item.name}: {error}") from error


def _recipe(study: StudySettings, arm: Arm, item: Item) -> Recipe:
    apart = item.stage == 0 and arm.recipe is not None  # another model, which is no part of what is compared
    return make_recipe(
        arm.recipe or study.recipe,
        {"data.seed": HELD_OUT_BY, **merged({} if apart else study.changes, arm.changes), "seed": item.seed},
        # An arm's recipe has variants of its own.
        variants=[name for name in (None if arm.recipe else study.variant, arm.variant) if name],
        data=() if apart else study.data,
        name=item.name,
    )


def _arm_of(study: StudySettings, item: Item, drawn: Mapping[str, Any]) -> Arm:
    if item.arm in study.first:
        return Arm.of(item.arm, study.first[item.arm])
    if item.arm == RANGE_TEST and study.range_test:
        return _range_test(study, study.range_test, item)
    if study.search:
        return Arm(item.arm, drawn)
    return arms(study)[item.arm]


def _range_test(study: StudySettings, test: RangeTestSettings, item: Item) -> Arm:
    """The baseline with a rate that rises; Muon's two rates keep their ratio."""
    base = arms(study)[baseline(study)]
    optimizer = _recipe(study, base, item).optimizer
    changes: dict[str, Any] = {
        "schedule.kind": "range", "schedule.initial_fraction": test.low / test.high,
        "optimizer.learning_rate": test.high, "training.max_steps": test.steps,
    }  # fmt: skip
    if optimizer.matrix_learning_rate:
        ratio = optimizer.matrix_learning_rate / optimizer.learning_rate
        changes["optimizer.matrix_learning_rate"] = test.high * ratio
    return Arm(item.arm, merged(base.changes, changes), base.recipe, base.variant)


def check(study: StudySettings) -> None:
    """RecipeError where a run of the study cannot be, before any is made: of a search the ends of its space."""
    baseline(study)
    _check_names(study)
    for arm in arms(study).values():
        kept = merged(study.changes, arm.changes)
        if clash := [key for key, value in study.changes.items() if key not in kept or key in arm.changes]:
            raise RecipeError(
                f"study {study.name}: {clash[0]} is changed for every run, and for the arm {arm.name} alone; one of "
                "both must go"
            )
    for item in items(study):
        if study.search and item.stage == 1:
            for end in (0, -1):
                ends = {
                    key: values[end] if isinstance(values, list) else (values.low, values.high)[end]
                    for key, values in study.search.space.items()
                }
                recipe_of(study, item, ends)
            continue
        recipe_of(study, item)


OTHER_FILES = ("work", "plots", "tables")
"""Folders of a study that are no runs."""


def _check_names(study: StudySettings) -> None:
    """RecipeError where two runs would have one folder, or a name would mean two things."""
    if not re.fullmatch(NAME, study.name):
        raise RecipeError(f"study {study.name!r} cannot be a folder's name; --name NAME gives it one")
    names = [*OTHER_FILES, *(item.name for item in items(study))]
    folded = [name.casefold() for name in names]  # some file systems see no difference
    if twice := [name for name in names if folded.count(name.casefold()) > 1]:
        raise RecipeError(f"study {study.name}: {twice[0]!r} would be two folders; give one of them another name")
    arm_names = [item.arm for item in items(study) if item.stage > 0]
    own = [*study.first, *([RANGE_TEST] if study.range_test else [])]
    if both := [name for name in own if name in arm_names]:
        raise RecipeError(f"study {study.name}: {both[0]!r} is a first run and an arm; give one of them another name")
    if study.search and set(study.search.confirm) & {study.seeds[0]}:
        raise RecipeError(f"search.confirm has {study.seeds[0]}, with which the trials are made: wanted fresh seeds")


def study_folder(study: StudySettings, runs: Path) -> Path:
    """Where a study's runs, its report and its state are."""
    return runs / study.name
