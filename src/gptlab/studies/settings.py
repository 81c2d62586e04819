"""A study: a base recipe, what its runs differ in, their seeds, and what is compared. One TOML file.

    name = "mini-gpt-five"
    recipe = "mini-gpt"
    seeds = [1, 2, 3]
    metric = "perplexity"

    [arms.baseline]

    [arms.wider]
    "model.n_embd" = 256

An *arm* is one of the settings that are compared; its runs differ in nothing but the seed. Arms are named one by one
(`[arms.NAME]`), or the points of a grid (`[grid]`), or the trials of a search (`[search]`): one of the three.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from gptlab import settings
from gptlab.catalog import find_file, read_file, variant_of
from gptlab.errors import nearest
from gptlab.run.run import STUDY
from gptlab.settings import Section, Tree
from gptlab.training.recipe import Recipe, dotted, merged

Seed = Annotated[int, Field(ge=0, lt=2**63)]

LESS_IS_BETTER = (
    "loss", "cross_entropy", "perplexity", "perplexity_per_word", "bits_per_byte", "training_loss",
    "last_training_loss", "seconds", "memory_bytes",
)  # fmt: skip
MORE_IS_BETTER = ("accuracy", "matthews", "f1", "margin", "win_rate", "reward", "tokens_per_second")
"""Measures whose direction is known (studies/results.py says what each is)."""

WHILE_IT_LEARNS = ("loss", "cross_entropy", "perplexity", "accuracy", "matthews", "f1", "margin")
"""What every evaluation of a run gives."""


class BudgetSettings(Section):
    """`[budget]`: what a study may cost. `runs`: so many, in the order of the plan. `minutes`: of all runs together,
    divided by the command's workers; a round (every arm with one seed) is begun only where, at the speed of the runs
    so far, it ends in time. The first round is always made."""

    runs: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)


class Range(Section):
    """The values that a search may give a key: from `low` to `high`, in whole numbers where both are."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low} is not below high = {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log = true wants low above 0, and no step")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step = {self.step}: wanted a number above 0")
        return self


class SearchSettings(Section):
    """`[search]`: values drawn by Optuna (Akiba et al., 2019). The first trial is the base recipe; all have the study's
    first seed. Afterwards the best trial and the baseline are run with the fresh seeds `confirm`, because the best of
    many is partly luck.

    sampler:   "tpe" (Bergstra et al., 2011) learns from the trials before; "random" draws each alone
    pruning:   "median" ends a trial whose metric at an evaluation is worse than the median of the trials before
    startup_trials: so many are drawn at random, and none is ended early, before either begins
    storage:   where trials are kept: a database URL, where the file system of the study's folder cannot lock; by
               default a file in the study
    space:     key of the recipe → a list of values, or { low, high, log, step }
    """

    trials: int = Field(ge=2)
    sampler: Literal["tpe", "random"] = "tpe"
    pruning: Literal["none", "median"] = "none"
    startup_trials: int = Field(8, ge=1)
    confirm: tuple[Seed, ...] = Field((101, 102, 103), strict=False)
    storage: str | None = None
    space: dict[str, Range | Annotated[list[Any], Field(min_length=1)]] = Field(min_length=1)


class RangeTestSettings(Section):
    """`[range_test]`: before the arms one run of `steps` steps in which the learning rate rises from `low` to `high`,
    by the same factor at every step (Smith, "Cyclical learning rates for training neural networks", 2017). The report
    draws the loss against the rate, says where it diverges, and warns of arms beyond."""

    low: float = Field(1e-6, gt=0)
    high: float = Field(1.0, gt=0)
    steps: int = Field(200, ge=20)


class PublishedSettings(Section):
    """`[published]`: what a publication reports, beside which the report puts what was found here.

    source:   what it is, in a sentence
    metric:   which column of `values` is the study's metric, if any
    measures: column → the measure of the runs that it stands beside; one with a measure's own name needs none
    differs:  what is not as there, a sentence each
    values:   arm → column → a number, or words ("out of memory")
    """

    source: str
    metric: str | None = None
    measures: dict[str, str] = Field({})
    differs: list[str] = Field(min_length=1)
    values: dict[str, dict[str, float | int | str]] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_the_columns(self) -> PublishedSettings:
        columns = list(dict.fromkeys(column for row in self.values.values() for column in row))
        for column in self.measures:
            if column not in columns:
                raise ValueError(f"measures has {column!r}, and values no such column{nearest(column, columns)}")
        return self


class StudySettings(Section):
    """A study.

    question: what it asks, in a sentence, for the report
    recipe:   one that ships, or a file; `variant` one of its variants
    changes:  of every run: "section.key" = value
    arms:     name → changes; two keys are the study's own: `recipe` and `variant`, which stand in place of the study's
    grid:     key → values; every combination is an arm
    first:    runs that are made before the others, one after the other, which may name them as their start, teacher or
              tokenizer: name → as an arm. One with a recipe of its own has neither `changes` nor `data`
    metric:   what ranks the arms: a score of `evaluation.json`, or another measure (studies/results.py)
    measures: more of them, for the report's table
    checkpoint, on: whose score: the best or the last checkpoint, on which set
    baseline: the arm that the others are compared with; by default the first
    """

    name: str
    question: str = ""
    recipe: str
    variant: str | None = None
    changes: dict[str, Any] = Field({})
    data: tuple[str, ...] = Field((), strict=False)
    """Files in place of the recipe's sources, as `--data`."""
    seeds: tuple[Seed, ...] = Field((1, 2, 3), strict=False, min_length=1)
    metric: str
    direction: Literal["min", "max"] | None = None
    measures: tuple[str, ...] = Field((), strict=False)
    checkpoint: Literal["best", "last"] = "best"
    on: Literal["validation", "test"] = "validation"
    baseline: str | None = None
    first: dict[str, dict[str, Any]] = Field({})
    arms: dict[str, dict[str, Any]] = Field({})
    grid: dict[str, list[Any]] = Field({})
    search: SearchSettings | None = None
    range_test: RangeTestSettings | None = None
    budget: BudgetSettings = BudgetSettings()
    published: PublishedSettings | None = None

    @model_validator(mode="after")
    def _differs_in_one_way(self) -> StudySettings:
        given = [name for name in ("arms", "grid", "search") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"wanted one of [arms.NAME], [grid] and [search]; found {' and '.join(given) or 'none'}")
        if empty := [key for key, values in self.grid.items() if not values]:
            raise ValueError(f"grid.{empty[0]}: wanted at least one value")
        return self

    @model_validator(mode="after")
    def _prunes_by_what_is_measured(self) -> StudySettings:
        if self.search and self.search.pruning != "none" and self.metric not in WHILE_IT_LEARNS:
            raise ValueError(
                f"search.pruning = {self.search.pruning}: metric = {self.metric!r} is only known at a run's end; with "
                f"pruning it is one of {', '.join(WHILE_IT_LEARNS)}"
            )
        return self

    @model_validator(mode="after")
    def _has_a_direction(self) -> StudySettings:
        if self.direction is None and self.metric not in (*LESS_IS_BETTER, *MORE_IS_BETTER):
            raise ValueError(f'metric = {self.metric!r}: say which is better, direction = "min" or "max"')
        return self

    @field_validator("seeds")
    @classmethod
    def _are_different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{list(seeds)} has a seed twice: it would be the same run")
        return seeds

    @property
    def less_is_better(self) -> bool:
        return self.direction == "min" if self.direction else self.metric in LESS_IS_BETTER

    @property
    def sign(self) -> int:
        """What the metric is multiplied by so that less is better."""
        return 1 if self.less_is_better else -1


def load_study(
    study: str | Path, *changes: str, variant: str | None = None, data: Sequence[str] = (), name: str | None = None
) -> StudySettings:
    """The study of this name (one that ships) or path, with a variant and then changes: of the study's own keys
    (`seeds=[1,2]`, `budget.minutes=60`), or of a recipe's (`training.minutes=4`), which then hold for every run.

    RecipeError names what is wrong, before anything is loaded.
    """
    path = find_study(str(study))
    tree, variants = read_file(path)
    if variant is not None:
        changes_of = _spelt_out(variant_of(variants, variant, path))
        tree = _merge(_spelt_out(tree), {"name": f"{tree['name']}-{variant}", **changes_of})
    tree = _spelt_out(tree)
    if data:
        tree["data"] = list(data)
    for key, value in map(settings.parse_change, changes):
        if _is_the_studys(key):
            tree = settings.apply_changes(tree, {key: value})
        else:
            tree["changes"] = merged(tree.get("changes", {}), {key: value})
    if name is not None:
        tree["name"] = name
    for table in (tree, *_tables(tree, "arms"), *_tables(tree, "first")):
        if isinstance(table.get("recipe"), str) and (beside := path.parent / table["recipe"]).is_file():
            table["recipe"] = str(beside)
    return settings.build(StudySettings, tree, str(path))


def _spelt_out(tree: Tree) -> Tree:
    """The tree with dotted keys in its changes, however they were written: `model.n_embd = 256` in TOML is a table,
    "model.n_embd" = 256 is not."""
    spelt = {key: dotted(tree[key]) for key in ("changes", "grid") if isinstance(tree.get(key), dict)}
    for key in ("arms", "first"):
        if isinstance(tree.get(key), dict):
            spelt[key] = {n: dotted(table) if isinstance(table, dict) else table for n, table in tree[key].items()}
    if isinstance(search := tree.get("search"), dict) and isinstance(search.get("space"), dict):
        spelt["search"] = {**search, "space": dotted(search["space"])}
    return {**tree, **spelt}


def _tables(tree: Tree, key: str) -> list[Tree]:
    found = tree.get(key)
    return [table for table in found.values() if isinstance(table, dict)] if isinstance(found, dict) else []


MERGED = ("changes", "budget", "search", "range_test", "published")
"""Sections of which a variant changes single keys; of the others it replaces the whole."""


def _merge(tree: Tree, changes: Tree) -> Tree:
    sections = {key: merged(tree.get(key, {}), changes[key]) for key in MERGED if key in changes}
    kinds = ("arms", "grid", "search")
    if any(kind in changes for kind in kinds):  # a grid in place of arms, say
        tree = {key: value for key, value in tree.items() if key not in kinds or key in changes}
    return {**tree, **changes, **sections}


def _is_the_studys(key: str) -> bool:
    """Whether a dotted key is the study's own; what both have (`name`) is."""
    first = key.split(".")[0]
    return first in StudySettings.model_fields and (first == "name" or first not in Recipe.model_fields)


def find_study(name: str) -> Path:
    """The file of a study: an existing path (also a study's folder), else one that ships."""
    own = Path(name).expanduser() / STUDY
    return own if own.is_file() else find_file("study", name)
