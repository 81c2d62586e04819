"""New run or the one there is: where it lives, what may differ, how long it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptlab.data.batch import steps_per_epoch
from gptlab.errors import RecipeError, RunError
from gptlab.run.run import RECIPE, Run
from gptlab.settings import Tree, build, flatten_all, plain
from gptlab.training.auto import as_chosen
from gptlab.training.cadence import CLASS_METRICS, Cadence
from gptlab.training.length import Length
from gptlab.training.prepare import Prepared
from gptlab.training.recipe import LENGTHS, Recipe, TrainingSettings
from gptlab.words import duration

MAY_DIFFER = (
    *(f"training.{name}" for name in LENGTHS),
    "training.micro_batch_size",
    "validation.every_steps",
    "samples.every_steps",
    "checkpoints.every_steps",
    "checkpoints.keep",
    "checkpoints.mirror",
    "tracking.services",
    "tracking.project",
)
"""What may change when a run goes on: its length, the cadence of validating and saving, mirror, micro-batch, and what
follows it."""


ADVICE = "--fresh starts over, --name NAME names another run"


def find_run(
    recipe: Recipe, runs: Path, *, fresh: bool, say: Callable[[str], None], advice: str = ADVICE
) -> tuple[Run, Recipe] | tuple[None, Recipe]:
    """The run that this recipe continues, brought back from its mirror if need be; None for a new one. And the
    recipe, in which what was chosen when the run began is chosen again. `advice`: what to do where it is another's."""
    if fresh:
        return None, recipe
    folder = runs / recipe.name
    mirror = _mirror(recipe)
    if (folder / RECIPE).exists():
        run = Run.open(folder, mirror=mirror, warn=say)
    else:
        restored = Run.restore(folder, mirror, warn=say) if mirror else None
        if restored is None:
            return None, recipe
        say(f"{folder} was gone: restored from {mirror}")
        run = restored
    recipe = _with_context(as_chosen(recipe, run.recipe), run)
    _refuse_differences(run, recipe, advice)
    return run, recipe


def _with_context(recipe: Recipe, run: Run) -> Recipe:
    """The recipe with the context of the start that the run found."""
    if recipe.start is None or recipe.model.context is not None:
        return recipe
    model = recipe.model.model_copy(update={"context": run.recipe["model"]["context"]})
    return recipe.model_copy(update={"model": model})


def _mirror(recipe: Recipe) -> Path | None:
    return Path(recipe.checkpoints.mirror).expanduser() if recipe.checkpoints.mirror else None


def _refuse_differences(run: Run, recipe: Recipe, advice: str) -> None:
    before, now = flatten_all(_with_new_keys(run.recipe)), flatten_all(plain(recipe))
    differing = [
        f"  {key}: {_shown(before, key)} there, {_shown(now, key)} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in MAY_DIFFER
    ]
    if differing:
        raise RunError("\n".join([f"{run.folder} is a run of another recipe:", *differing, advice]))


def _with_new_keys(recipe: Tree) -> Tree:
    """A run's recipe with the defaults of keys that there were not when it began."""
    try:
        return plain(build(Recipe, recipe, RECIPE))
    except RecipeError:
        return recipe


def _shown(flat: Tree, key: str) -> str:
    return repr(flat[key]) if key in flat else "not set"


def is_finished(run: Run, recipe: Recipe) -> bool:
    """Whether the run has ended and no other length is asked for."""
    return run.state.get("status") == "finished" and _length_of(run.recipe) == _length_of(plain(recipe))


def _length_of(recipe: Tree) -> Tree:
    return {name: recipe["training"][name] for name in LENGTHS if name in recipe["training"]}


def new_folder(name: str, runs: Path) -> Path:
    """`runs/NAME`, or the first free of NAME-2, NAME-3, … : where a fresh run begins."""
    folder, number = runs / name, 1
    while (folder / RECIPE).exists():
        number += 1
        folder = runs / f"{name}-{number}"
    return folder


def open_run(existing: Run | None, recipe: Recipe, folder: Path, origin: Tree, say: Callable[[str], None]) -> Run:
    """The run directory, new or existing; RunError where its data are no longer those it began with."""
    if existing is None:
        return Run.create(folder, plain(recipe), origin, mirror=_mirror(recipe), warn=say)
    before, now = existing.origin["data"]["fingerprints"], origin["data"]["fingerprints"]
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        raise RunError(
            f"{existing.folder}: the data have changed since it began ({', '.join(changed)}); it cannot go on with "
            f"others. {ADVICE}"
        )
    return existing


def bring_up_to_date(run: Run, recipe: Recipe, data: Prepared, done: int, say: Callable[[str], None]) -> Length:
    """The length of a run of which `done` steps are done; what may differ from before is written into the run.

    RunError where it is shorter than that.
    """
    decisions = run.state.get("decisions", {})
    changed = _length_of(run.recipe) != _length_of(plain(recipe))
    if changed:
        decisions = {key: value for key, value in decisions.items() if key not in ("length", "ended")}
    length = make_length(recipe.training, data, decisions.get("length", []))
    if "ended" in decisions:  # it stopped itself early
        length = Length.fixed(decisions["ended"])
    if length.total is not None and length.total < done:
        raise RunError(f"{run.folder} has done {done:,} steps already, and {length.total:,} are asked for")
    spent = run.state.get("elapsed_seconds", 0.0) if changed else 0.0
    if length.seconds is not None and length.seconds < spent:
        raise RunError(
            f"{run.folder} has trained for {duration(spent)} already, {duration(length.seconds)} are asked for"
        )
    if changed:
        say("another length than before: the learning rate's schedule is rebuilt over it")
        # "running" first: were it still "finished" after a kill, the new length would never be trained.
        run.write_state({**run.state, "status": "running", "decisions": decisions})
    if run.recipe != plain(recipe):
        run.write_recipe(plain(recipe))
    length.rewind(done)
    return length


def make_cadence(recipe: Recipe, n_rows: int, n_validation: int) -> Cadence:
    """When a run of `n_rows` and so many rows of validation evaluates, samples and saves."""
    batch_size, validation = recipe.training.batch_size, recipe.validation
    whole = validation.best_by in CLASS_METRICS
    scored = n_validation if whole else min(validation.sampled_rows, n_validation)
    return Cadence(
        recipe.validation.every_steps,
        recipe.samples.every_steps,
        recipe.checkpoints.every_steps,
        steps_per_epoch(n_rows, batch_size),
        evaluation_cost=scored / (3 * batch_size),  # a forward is a third of a step
    )


def make_length(settings: TrainingSettings, data: Prepared, decided: list[Any]) -> Length:
    """The run's length; of one in minutes `decided` has what was decided so far."""
    per_epoch = steps_per_epoch(len(data.rows), settings.batch_size)
    if settings.minutes is not None:
        return Length.timed(settings.minutes * 60, decided)
    if settings.max_steps is not None:
        return Length.fixed(settings.max_steps)
    if settings.tokens is not None:
        tokens_a_row = data.rows.scored / len(data.rows)
        epochs, left = divmod(math.ceil(settings.tokens / tokens_a_row), len(data.rows))
        return Length.fixed(epochs * per_epoch + steps_per_epoch(left, settings.batch_size))
    assert settings.epochs is not None
    return Length.fixed(max(1, math.ceil(settings.epochs * per_epoch)))
