"""A process that makes one run of a study.

    python -m gptlab.studies.worker runs/STUDY RUN --device cpu

It holds the run's claim while it works, says what it does into work/RUN.log, and exits when the process that started it
does (its standard input ends): then it saves first.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from gptlab.errors import GptlabError, Interrupted, Pruned, RunError, RunHeld, TrainingStopped
from gptlab.report.report import write_report
from gptlab.run.run import RECIPE, Run
from gptlab.studies.claims import BEAT_SECONDS, WORK, Claims, Outcome
from gptlab.studies.plan import BEST, Item, items, recipe_of
from gptlab.studies.results import best_trial, read_result, read_results, read_study
from gptlab.studies.search import Search, values_of
from gptlab.studies.settings import StudySettings
from gptlab.training.assemble import train_recipe
from gptlab.training.progress import LineProgress, Progress

BUSY = 3
"""The exit code where another worker has the run."""


def main() -> int:
    made = argparse.ArgumentParser(prog="python -m gptlab.studies.worker")
    made.add_argument("folder", type=Path)
    made.add_argument("run")
    made.add_argument("--after", type=int, help="the number of the claim that this one follows")
    made.add_argument("--device", default="auto")
    options = made.parse_args()
    threading.Thread(target=_stop_with_the_parent, daemon=True).start()
    study = read_study(options.folder)
    item = next((item for item in items(study) if item.name == options.run), None)
    if item is None:
        made.error(f"{options.folder} has no run {options.run}; another command has changed the study")
    return make_run(study, item, options.folder, device=options.device, after=options.after)


def make_run(study: StudySettings, item: Item, folder: Path, *, device: str = "auto", after: int | None = None) -> int:
    """Makes or continues a run, and writes down in its claim how that ended. Returns the exit code: 0 where it has
    ended (also diverged or pruned), 1 where it failed, 130 where it was asked to stop, BUSY where it is another's.
    `after`: see `Claims.take`."""
    with Claims(folder).take(item.name, lost=_leave, after=after) as holding:
        if holding is None:
            return BUSY
        log = folder / WORK / f"{item.name}.log"
        with log.open("a", encoding="utf-8", buffering=1) as out:
            progress = LineProgress(out)
            outcome, words = _outcome_of(lambda: _train(study, item, folder, device, progress), progress)
        holding.end(outcome, words)
    return {"failed": 1, "interrupted": Interrupted.exit_code}.get(outcome, 0)


def _outcome_of(train: Callable[[], Any], progress: LineProgress) -> tuple[Outcome, str]:
    """How a run ended, and of a failure why. Whatever goes wrong is the run's, and must not stop the study."""
    try:
        train()
    except (Pruned, Interrupted, KeyboardInterrupt) as error:
        return _outcome_of_error(error), ""
    except GptlabError as error:
        progress.say(str(error))
        if isinstance(error, RunHeld):  # by a worker that seems to be dead; it will see that it has lost the run
            time.sleep(BEAT_SECONDS)
        return _outcome_of_error(error), str(error)
    except Exception as error:
        progress.say(traceback.format_exc())
        return "failed", f"{type(error).__name__}: {error}"
    return "finished", ""


def _outcome_of_error(error: BaseException) -> Outcome:
    """How a run ended that raised this."""
    match error:
        case Pruned():
            return "pruned"
        case TrainingStopped():
            return "diverged"
        case Interrupted() | KeyboardInterrupt() | RunHeld():
            return "interrupted"
    return "failed"


def _train(study: StudySettings, item: Item, folder: Path, device: str, progress: LineProgress) -> None:
    if study.search and item.stage == 1:
        _train_trial(study, item, folder, device, progress)
    else:
        _train_run(study, item, _drawn_before(study, item, folder), folder, device, progress)


def _drawn_before(study: StudySettings, item: Item, folder: Path) -> dict[str, Any]:
    """What the search gave the best trial, for the runs that prove it; of others nothing."""
    if item.stage != 2 or item.arm != BEST:
        return {}
    best = best_trial(read_results(folder))
    if best is None:
        raise RunError("no trial of the search has a score, so none is the best")
    return values_of(best, study)


def _train_trial(study: StudySettings, item: Item, folder: Path, device: str, progress: LineProgress) -> None:
    """A trial of a search, which hears of its evaluations and of its end."""
    search = Search(study, folder)
    watching = TrialProgress(progress.file, search, item)
    try:
        _train_run(study, item, search.drawn(item), folder, device, watching)
    except BaseException as error:
        search.end(item, _outcome_of_error(error), None)
        raise
    search.end(item, "finished", read_result(study, item, folder, Claims(folder)).score)


def _train_run(
    study: StudySettings, item: Item, drawn: Mapping[str, Any], folder: Path, device: str, progress: Progress
) -> None:
    recipe = recipe_of(study, item, drawn)
    run = folder / item.name
    command = shlex.join(["gptlab", "train", str(run / RECIPE), "--runs", str(folder)])
    try:
        train_recipe(recipe, runs=folder, device=device, command=command, progress=progress)
    except TrainingStopped:
        write_report(Run.open(run))
        raise
    write_report(Run.open(run))


class TrialProgress(LineProgress):
    """Tells a search of each evaluation; Pruned where the trial is to end."""

    def __init__(self, file: TextIO, search: Search, item: Item) -> None:
        super().__init__(file)
        self._search, self._item, self._total = search, item, 0

    def length(self, step: int, total: int | None, seconds: float) -> None:
        self._total = total or 0
        super().length(step, total, seconds)

    def evaluated(self, event: str, step: int, scores: dict[str, float]) -> None:
        super().evaluated(event, step, scores)
        percent = 100 * step // self._total if self._total else 0
        if self._search.search.pruning == "none" or not 0 < percent < 100:
            return
        if self._search.report(self._item, percent, scores[self._search.study.metric]):
            raise Pruned(f"step {step:,}: ended early, since other trials were better at this point")


def _leave() -> None:
    """The run is another worker's now: nothing more may be written."""
    os._exit(BUSY)


def _stop_with_the_parent() -> None:
    """Asks this process to save and exit when the one that started it is gone."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    raise SystemExit(main())
