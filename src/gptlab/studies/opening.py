"""The folder of a study: made, or found to be that of this study, before anything is run."""

from __future__ import annotations

from pathlib import Path

from gptlab.errors import RunError
from gptlab.run.files import write_text
from gptlab.run.run import RECIPE, STUDY, Run
from gptlab.settings import flatten, plain, to_toml
from gptlab.studies import plan
from gptlab.studies.claims import COMMAND, WORK, Claims
from gptlab.studies.plan import BEST, Item
from gptlab.studies.results import Results, RunResult, best_trial, read_result, read_results
from gptlab.studies.search import Search, values_of
from gptlab.studies.settings import StudySettings
from gptlab.training.continuing import find_run, is_finished
from gptlab.training.recipe import LENGTHS

ADVICE = "it is of another study: --name gives this one a folder of its own"

RANKED_BY = ("metric", "direction", "checkpoint", "on")
"""What a search has learned from its trials by."""


def open_study(study: StudySettings, runs: Path, command: str = "") -> Path:
    """The study's folder, with its file.

    RecipeError where a run of the study cannot be; RunError, with nothing changed, where the folder holds runs of
    another study, where a run would have to be shorter than it is, or where another command is at work there with
    other settings.
    """
    plan.check(study)
    folder = plan.study_folder(study, runs)
    if (folder / RECIPE).exists():
        raise RunError(f"{folder}: is a run; --name gives the study another folder")
    longer = _checked(study, folder) if (folder / STUDY).exists() else []
    try:
        (folder / WORK).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be made: {error.strerror}; choose another folder with --runs") from error
    write_text(folder / STUDY, to_toml(plain(study)))
    if command:
        write_text(folder / COMMAND, command + "\n")
    if study.search:
        Search(study, folder)  # what it needs is missed now, and its storage is made by one process
    for run in longer:
        run.write_state({**run.state, "status": "interrupted"})
    return folder


def _checked(study: StudySettings, folder: Path) -> list[Run]:
    """The finished runs that are to be longer now."""
    there = read_results(folder)
    _check_others(study, there)
    claims, longer = Claims(folder), []
    for item in plan.items(study):
        result = read_result(study, item, folder, claims)
        if not result.begun:
            continue
        recipe = plan.recipe_of(study, item, _drawn(study, result))
        run, recipe = find_run(recipe, folder, fresh=False, say=lambda text: None, advice=ADVICE)
        if run and run.state.get("status") == "finished" and not is_finished(run, recipe):
            _check_longer(item, run, flatten(plain(recipe)), there)
            longer.append(run)
    return longer


def _drawn(study: StudySettings, result: RunResult) -> dict[str, object]:
    """What a search gave a run, which its own recipe says."""
    is_drawn = study.search and (result.item.stage == 1 or result.item.arm == BEST)
    return values_of(result, study) if is_drawn else {}


def _check_longer(item: Item, run: Run, now: dict[str, object], there: Results) -> None:
    before = flatten(run.recipe)
    for key in (f"training.{name}" for name in LENGTHS):
        was, wanted = before.get(key), now.get(key)
        if isinstance(was, int | float) and isinstance(wanted, int | float) and wanted < was:
            raise RunError(f"{run.folder}: is finished with {key} = {was:g}, and {wanted:g} is asked for; {ADVICE}")
    if item.stage == 0 and any(result.begun for result in there.runs if result.item.stage > 0):
        raise RunError(f"{run.folder}: is to be longer, and others have begun with it as it is; {ADVICE}")


def _check_others(study: StudySettings, there: Results) -> None:
    """RunError where the study that is there differs in what must not change now."""
    before, now = flatten(plain(there.study)), flatten(plain(study))
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if study.search and there.trials and (keys := [key for key in RANKED_BY if key in differing]):
        raise RunError(f"{there.folder}: its trials were ranked by another {keys[0]}; {ADVICE}")
    claims = Claims(there.folder)
    if differing and (busy := [r.item.name for r in there.runs if claims.held(r.item.name)]):
        raise RunError(
            f"{there.folder}: another command is at work there ({busy[0]}), with another {', '.join(differing)}; wait "
            "until it has ended, or give the same command"
        )


def set_aside_old_best(results: Results) -> bool:
    """Where later trials were better, the runs that proved the best one before make room: best-101 becomes
    best-101.1 and so on. Whether there were any."""
    best, moved = best_trial(results), False
    for result in results.runs:
        if best and result.item.arm == BEST and result.begun and result.status != "running":
            if values_of(result, results.study) == values_of(best, results.study):
                continue
            number = 1
            while (aside := result.run.folder.with_name(f"{result.item.name}.{number}")).exists():
                number += 1
            try:
                result.run.folder.rename(aside)
            except FileNotFoundError:  # another command was faster
                continue
            moved = True
    return moved
