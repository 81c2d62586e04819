"""The verbs as functions: what `import gptlab` gives, and what the commands call."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from gptlab.device import PrecisionName
from gptlab.evaluation.classify import Classification, Text
from gptlab.evaluation.classify import classify as classify_texts
from gptlab.report.report import write_report
from gptlab.run.open import Which, open_model
from gptlab.run.run import STUDY, Run
from gptlab.studies.live import make_screen
from gptlab.studies.running import run_study
from gptlab.studies.settings import load_study
from gptlab.studies.study import Study
from gptlab.training.assemble import train_recipe
from gptlab.training.evaluate import evaluate_model
from gptlab.training.prepare import Prepared
from gptlab.training.prepare import prepare as prepare_recipe
from gptlab.training.progress import Progress, make_progress
from gptlab.training.recipe import Recipe, load_recipe
from gptlab.training.start import find_start


def train(
    recipe: str | Path | Recipe,
    *changes: str,
    variant: str | None = None,
    data: Sequence[str] = (),
    name: str | None = None,
    fresh: bool = False,
    runs: str | Path = "runs",
    device: str = "auto",
    command: str | None = None,
    progress: Progress | None = None,
) -> Run:
    """Trains a recipe and writes its report; the same call continues an unfinished run.

        run = gptlab.train("mini-gpt", "training.minutes=10", data=["my-book.txt"])

    recipe:  one that ships, a TOML file, or a Recipe
    changes: `section.key=value`
    data:    text files, folders or globs that stand in place of the recipe's sources
    name:    the folder under `runs`; the recipe's name by default
    fresh:   starts over in a new folder
    command: what repeats it, for the report; by default `gptlab train` with these arguments
    """
    progress = progress or make_progress()
    if command is None:
        named = {"--variant": variant, "--name": name, "--runs": None if str(runs) == "runs" else str(runs)}
        what = f"{runs}/{recipe.name}/recipe.toml" if isinstance(recipe, Recipe) else str(recipe)
        command = _command("train", what, [*changes, *(["--fresh"] if fresh else [])], named, data)
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, *changes, variant=variant, data=data, name=name)
    run = train_recipe(recipe, runs=Path(runs), device=device, fresh=fresh, command=command, progress=progress)
    with progress.busy("writing the report"):
        write_report(run)
    return run


evaluate = evaluate_model


def classify(
    model: str | Path,
    texts: Sequence[Text],
    *,
    checkpoint: Which = None,
    device: str = "auto",
    precision: PrecisionName = "float32",
    separator: str | None = None,
    runs: str | Path = "runs",
) -> list[Classification]:
    """The class of each text (or pair of texts) with its probabilities, by a classifier: a folder, a run, a hub name.

        gptlab.classify("cola-lora", ["The sailors rode the breeze clear of the rocks."])

    separator: between the two texts of a pair; by default that of the run that the model lies in.

    UserError where the model is no classifier or a text is empty.
    """
    opened = open_model(model, device=device, runs=runs, checkpoint=checkpoint, task="classification")
    return classify_texts(opened, texts, precision=precision, separator=separator)


def prepare(
    recipe: str | Path | Recipe,
    *changes: str,
    variant: str | None = None,
    data: Sequence[str] = (),
    runs: str | Path = "runs",
    progress: Progress | None = None,
) -> Prepared:
    """Tokenizes a recipe's text, as training does when it is missing: tokenizer, template, rows."""
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, *changes, variant=variant, data=data)
    start, recipe = find_start(recipe, None, Path(runs))
    return prepare_recipe(recipe, progress or make_progress(), start, runs=Path(runs))


def study(
    study: str | Path,
    *changes: str,
    variant: str | None = None,
    data: Sequence[str] = (),
    name: str | None = None,
    workers: int = 1,
    runs: str | Path | None = None,
    device: str = "auto",
    command: str | None = None,
) -> Study:
    """Makes the runs of a study that are missing, and its report; the same call goes on with one that was stopped.

        found = gptlab.study("mini-gpt-five", "training.minutes=4", data=["books/*.txt"])
        found.table()

    study:   one that ships, a TOML file, or a study's folder
    changes: the study's own `key=value`, or a recipe's, which then hold for every run
    workers: runs that are made at a time; the same call on other machines shares the work over the folder
    runs:    where the study's folder is; by default "runs", or where the folder is that `study` names
    command: what repeats it, for the report; by default `gptlab study` with these arguments

    A run that fails does not stop the others; `results` says which.
    """
    settings = load_study(study, *changes, variant=variant, data=data, name=name)
    is_folder = (Path(study) / STUDY).is_file()
    place = Path(runs) if runs is not None else Path(study).parent if is_folder else Path("runs")
    if command is None:
        named = {"--variant": variant, "--name": name, "--runs": None if runs is None else str(runs)}
        command = _command("study", str(study), changes, named, data)
    folder = run_study(settings, runs=place, workers=workers, device=device, command=command, screen=make_screen())
    return Study(folder)


def _command(verb: str, what: str, changes: Sequence[str], named: Mapping[str, str | None], data: Sequence[str]) -> str:
    """What a person would type."""
    options = (word for option, value in named.items() if value for word in (option, value))
    return shlex.join(["gptlab", verb, what, *changes, *options, *(["--data", *data] if data else [])])
