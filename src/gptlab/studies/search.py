"""A study's search: the values of its trials, drawn by Optuna (Akiba et al., "Optuna", 2019), and which keys mattered.

Optuna keeps what was drawn and how it ended in a storage that all workers share: a journal in the study's folder, or a
database. An Optuna trial is written there in one piece, with its values and the name of its run, so that a killed
worker leaves a whole trial or none, and whoever takes the run over finds its values again. A storage that was lost is
filled again from the run directories.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from gptlab.errors import RecipeError, RunError, UserError
from gptlab.settings import flatten, plain
from gptlab.studies import plan
from gptlab.studies.claims import Claims, Outcome
from gptlab.studies.plan import Item
from gptlab.studies.results import ENDED, Results, RunResult, read_result
from gptlab.studies.settings import SearchSettings, StudySettings
from gptlab.studies.space import decoded, distributions, encoded, lies_in, measured, on_its_scale, quietly

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial, TrialState

JOURNAL = "search.journal"
"""The search's file in the study's folder."""

RUN = "run"
"""The attribute of an Optuna trial that names its run."""

WARM_UP, PERCENT_STEP = 20, 5
"""In percent of a run: no trial is ended earlier; evaluations are compared where they round to the same multiple, the
first of each, for runs that end by the clock differ in their steps and are not evaluated at quite the same percent."""

STATES = {"finished": "COMPLETE", "pruned": "PRUNED", "diverged": "FAIL", "failed": "FAIL"}
"""What a run that has ended is to Optuna. FAIL: its sampler learns nothing from it, for there is no true number."""


class Search:
    """A study's search, as one process sees it; the processes of a study may use theirs at the same time.

    UserError where Optuna is missing or the database cannot be used, RunError where the journal is damaged.
    """

    def __init__(self, study: StudySettings, folder: Path) -> None:
        if study.search is None:
            raise RecipeError(f"study {study.name} has no [search]")
        optuna = _optuna()
        self.study, self.folder, self.search = study, folder, study.search
        self._space = distributions(self.search.space)
        self._pruner = _pruner(self.search)
        self._direction = "minimize" if study.less_is_better else "maximize"
        self._storage = _storage(self.search, folder)
        self._study = optuna.create_study(
            study_name=study.name, storage=self._storage, direction=self._direction, load_if_exists=True
        )
        if any(trial.distributions != self._space for trial in self._trials()):
            raise UserError(
                f"study {study.name}: its trials so far are of another [search.space]; give it another name"
            )
        self._restore()

    def drawn(self, item: Item) -> dict[str, Any]:
        """The searched keys' values of a trial that is about to be run: key → value.

        A trial that was begun before, or has failed, has the values that it had. Else the first trial has the base
        recipe's own where all of them lie in the space, and the others are drawn: by the study's first seed, the
        trial's number and the trials that have ended, so one worker always draws the same.
        """
        last = self._last(item)
        if last and last.state.name != "FAIL":
            return decoded(self.search.space, last.params)
        params = last.params if last else self._of_recipe(item) or self._draw(item)
        self._add(item, params, "RUNNING")  # one that failed too: to Optuna what has ended never begins again
        return decoded(self.search.space, params)

    def report(self, item: Item, percent: int, value: float) -> bool:
        """An evaluation of the metric after `percent` of a trial's run; whether the trial is to end now.

        The rule is Optuna's MedianPruner: the best value so far is worse than the median of the finished trials'
        values at the same point. A trial that is through is not ended.
        """
        last = self._last(item)
        if self.search.pruning == "none" or last is None or last.state.is_finished():
            return False
        if (point := PERCENT_STEP * round(percent / PERCENT_STEP)) in last.intermediate_values:
            return False
        study_id = self._storage.get_study_id_from_name(self.study.name)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, last.number)
        self._storage.set_trial_intermediate_value(trial_id, point, value)
        return percent < 100 and self._pruner.prune(self._study, self._storage.get_trial(trial_id))

    def end(self, item: Item, outcome: Outcome, score: float | None) -> None:
        """How a trial's run ended; `score` of one that finished. A trial that has ended stays as it is, and one that
        was interrupted is continued later."""
        if outcome == "interrupted":
            return
        last = self._last(item)
        if last and not last.state.is_finished():
            self._tell(last, outcome, score)

    def _tell(self, trial: FrozenTrial, status: str, score: float | None) -> None:
        state, score = _ended(status, score)
        self._study.tell(trial.number, score, state, skip_if_finished=True)

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _last(self, item: Item) -> FrozenTrial | None:
        """The newest trial of a run: one that failed has another for each time it was tried again."""
        return next((trial for trial in reversed(self._trials()) if trial.user_attrs.get(RUN) == item.name), None)

    def _of_recipe(self, item: Item) -> dict[str, Any] | None:
        if item.round:
            return None
        recipe = flatten(plain(plan.recipe_of(self.study, item)))
        values = {key: recipe[key] for key in self.search.space if key in recipe}
        return encoded(values) if lies_in(self.search.space, values) else None

    def _draw(self, item: Item) -> dict[str, Any]:
        """Draws in a copy of the study, so that the storage never has a trial without its values."""
        optuna = _optuna()
        draft = optuna.create_study(direction=self._direction, sampler=_sampler(self.search, _seed(self.study, item)))
        draft.add_trials(self._trials())
        return draft.ask(self._space).params

    def _add(self, item: Item, params: dict[str, Any], status: str, score: float | None = None) -> None:
        """Writes a trial down, whole."""
        from optuna.trial import create_trial

        state, score = _ended(status, score)
        self._study.add_trial(
            create_trial(
                state=state, value=score, params=params, distributions=self._space, user_attrs={RUN: item.name}
            )
        )

    def _restore(self) -> None:
        """Tells the storage what only the run directories know: trials, where it was lost, and how one ended whose
        worker was killed before it said so."""
        claims = Claims(self.folder)
        trials = (item for item in plan.items(self.study) if item.stage == 1)
        # The folders first: a run that another worker begins in between is then not seen here, or known there.
        results = [result for item in trials if (result := read_result(self.study, item, self.folder, claims)).begun]
        known = {trial.user_attrs.get(RUN): trial for trial in self._trials()}
        for result in results:
            trial, values = known.get(result.item.name), values_of(result, self.study)
            if trial is None and lies_in(self.search.space, values):
                self._add(result.item, encoded(values), result.status, result.score)
            elif trial and not trial.state.is_finished() and result.status in ENDED:
                self._tell(trial, result.status, result.score)


def values_of(result: RunResult, study: StudySettings) -> dict[str, Any]:
    """The searched keys' values of a trial, from its recipe.toml; {} before it has begun."""
    space = study.search.space if study.search else {}
    return {key: result.recipe[key] for key in space if key in result.recipe}


def importances(results: Results) -> dict[str, float]:
    """How much of the metric's variance over the space each key explains alone, the most first; they add up to 1 at
    most, and what is missing is the keys' doing together (functional ANOVA over a random forest: Hutter, Hoos and
    Leyton-Brown, "An efficient approach for assessing hyperparameter importance", 2014). A key that is searched on a
    log scale is measured on it.

    {} with one key, with fewer than 4 finished trials, where all have one score, and where Optuna is not installed.
    """
    search = results.study.search
    if search is None or len(search.space) < 2:
        return {}
    found = [(values_of(result, results.study), result.score) for result in results.trials]
    scored = [(values, score) for values, score in found if score is not None and lies_in(search.space, values)]
    if len(scored) < 4:
        return {}
    try:
        optuna = _optuna()
    except UserError:
        return {}
    scales = distributions({key: on_its_scale(choices) for key, choices in search.space.items()})
    study = optuna.create_study()
    for values, score in scored:
        params = encoded({key: measured(search.space[key], value) for key, value in values.items()})
        study.add_trial(optuna.trial.create_trial(params=params, distributions=scales, value=score))
    try:
        seed = _seed(results.study, results.trials[0].item)
        return optuna.importance.FanovaImportanceEvaluator(seed=seed).evaluate(study)
    except RuntimeError:  # no tree has a variance to explain
        return {}


def _optuna() -> ModuleType:
    """Optuna, which then says nothing but warnings. UserError where it is missing."""
    try:
        import optuna
    except ImportError as error:
        raise UserError("a study with [search] needs: pip install 'gptlab[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _storage(search: SearchSettings, folder: Path) -> BaseStorage:
    from optuna.exceptions import OptunaError
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    from sqlalchemy.exc import SQLAlchemyError

    if search.storage:
        try:
            return RDBStorage(search.storage)
        except (ImportError, SQLAlchemyError, OptunaError) as error:
            raise UserError(f"search.storage: the database cannot be used: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    path = str(folder / JOURNAL)
    # Optuna's default lock is a link, which Windows and many mounted drives refuse; both are safe on NFS 3 and later.
    backend = JournalFileBackend(path, lock_obj=JournalFileOpenLock(path))
    try:
        return JournalStorage(backend)
    except (ValueError, KeyError) as error:
        raise RunError(
            f"{path}: is damaged ({error}). Move it away and start again: it is made anew from the trials' folders"
        ) from error


def _sampler(search: SearchSettings, seed: int) -> BaseSampler:
    from optuna.samplers import RandomSampler, TPESampler

    if search.sampler == "random":
        return RandomSampler(seed=seed)
    with quietly():
        # multivariate: the keys are drawn together (Falkner, Klein and Hutter, "BOHB", 2018). constant_liar: a running
        # trial counts as a bad one, so that workers do not try the same place (Ginsbourger et al., 2010).
        return TPESampler(
            seed=seed, n_startup_trials=search.startup_trials, multivariate=True, constant_liar=True,
            warn_independent_sampling=False,
        )  # fmt: skip


def _pruner(search: SearchSettings) -> BasePruner:
    from optuna.pruners import MedianPruner, NopPruner

    if search.pruning == "none":
        return NopPruner()
    return MedianPruner(n_startup_trials=search.startup_trials, n_warmup_steps=WARM_UP)


def _seed(study: StudySettings, item: Item) -> int:
    """A trial's own, below 2³², as NumPy's older generators want it."""
    return int(np.random.SeedSequence([study.seeds[0], item.round]).generate_state(1)[0])


def _ended(status: str, score: float | None) -> tuple[TrialState, float | None]:
    """Optuna's state of a run, and its value; one that finished without a finite score has failed."""
    from optuna.trial import TrialState

    state = TrialState[STATES.get(status, "RUNNING")]
    if state is not TrialState.COMPLETE:
        return state, None
    return (state, score) if score is not None and math.isfinite(score) else (TrialState.FAIL, None)
