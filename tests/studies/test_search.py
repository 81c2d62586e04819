"""The search of a study, against Optuna itself and closed forms."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from gptlab import settings
from gptlab.errors import RecipeError, RunError, UserError
from gptlab.settings import flatten, plain
from gptlab.studies import plan
from gptlab.studies.plan import Item
from gptlab.studies.results import read_results
from gptlab.studies.search import JOURNAL, Search, importances, values_of
from gptlab.studies.settings import StudySettings
from gptlab.training.recipe import load_recipe

RATE, WIDTH, DROPOUT, BETAS, KIND = (
    "optimizer.learning_rate", "model.n_embd", "model.dropout", "optimizer.betas", "schedule.kind",
)  # fmt: skip
SPACE: dict[str, Any] = {
    RATE: {"low": 1e-5, "high": 1e-1, "log": True},
    WIDTH: {"low": 64, "high": 256, "step": 32},
    DROPOUT: {"low": 0.0, "high": 0.5, "step": 0.1},
    BETAS: [[0.9, 0.95], [0.9, 0.999]],
    KIND: ["constant", "cosine"],
}


def tree(space: Mapping[str, Any] = SPACE, **search: Any) -> dict[str, Any]:
    given = {"trials": 40, "startup_trials": 4, "space": dict(space), **search}
    return {"name": "s", "recipe": "mini-gpt", "metric": "perplexity", "seeds": [7], "search": given}


def study(space: Mapping[str, Any] = SPACE, metric: str = "perplexity", **search: Any) -> StudySettings:
    return settings.build(StudySettings, {**tree(space, **search), "metric": metric}, "a study")


def trials(of: StudySettings) -> list[Item]:
    return [item for item in plan.items(of) if item.stage == 1]


def kept(folder: Path, name: str = "s") -> list[optuna.trial.FrozenTrial]:
    """What Optuna itself reads in the journal."""
    backend = optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
    return optuna.load_study(study_name=name, storage=optuna.storages.JournalStorage(backend)).trials


def test_the_first_trial_is_the_base_recipe_and_the_others_lie_in_the_space(tmp_path: Path) -> None:
    one = study()
    search = Search(one, tmp_path)
    drawn = [search.drawn(item) for item in trials(one)]
    base = flatten(plain(load_recipe("mini-gpt")))
    assert drawn[0] == {key: base[key] for key in SPACE}
    for values in drawn:
        assert list(values) == list(SPACE)
        assert 1e-5 <= values[RATE] <= 1e-1
        assert isinstance(values[WIDTH], int)
        assert values[WIDTH] in range(64, 257, 32)
        assert min(abs(values[DROPOUT] - 0.1 * n) for n in range(6)) < 1e-9
        assert values[BETAS] in SPACE[BETAS]
        assert values[KIND] in SPACE[KIND]
    rates = np.log10([values[RATE] for values in drawn[1:]])
    assert (rates < -3).any()  # on a log scale half of them; on a linear one in a hundred
    assert (rates > -3).any()
    for item, values in zip(trials(one)[:5], drawn, strict=False):
        made = flatten(plain(plan.recipe_of(one, item, values)))
        assert {key: made[key] for key in SPACE} == values


def test_a_base_that_lies_outside_is_drawn(tmp_path: Path) -> None:
    for space in ({RATE: {"low": 1e-2, "high": 1e-1}}, {WIDTH: {"low": 100, "high": 200, "step": 10}}, {KIND: ["x"]}):
        one = study({**space, DROPOUT: [0.1, 0.2]})
        folder = tmp_path / next(iter(space))
        values = Search(one, folder).drawn(trials(one)[0])
        assert values != {key: flatten(plain(load_recipe("mini-gpt")))[key] for key in values}


def test_a_trial_keeps_its_values_when_another_worker_takes_it_over(tmp_path: Path) -> None:
    one = study()
    before = [Search(one, tmp_path).drawn(item) for item in trials(one)[:3]]
    search = Search(one, tmp_path)
    assert [search.drawn(item) for item in trials(one)[:3]] == before
    assert [trial.state.name for trial in kept(tmp_path)] == ["RUNNING"] * 3
    assert [trial.user_attrs for trial in kept(tmp_path)] == [{"run": item.name} for item in trials(one)[:3]]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_study_draws_the_same(tmp_path: Path, sampler: str) -> None:
    def run(folder: Path, one: StudySettings, anew: bool) -> list[dict[str, Any]]:
        search, found = Search(one, folder), []
        for item in trials(one)[:10]:
            search = Search(one, folder) if anew else search
            found.append(search.drawn(item))
            search.end(item, "finished", 100 + math.log10(found[-1][RATE]) ** 2)
        return found

    one = study(sampler=sampler)
    first = run(tmp_path / "a", one, False)
    assert run(tmp_path / "b", one, True) == first  # a worker that was killed and started again draws the same
    other = settings.build(StudySettings, {**tree(sampler=sampler), "seeds": [8]}, "a study")
    assert run(tmp_path / "c", other, False)[1:] != first[1:]


def test_tpe_learns_where_the_good_values_are_and_random_does_not(tmp_path: Path) -> None:
    def distances(sampler: str, direction: int) -> float:
        one = study({RATE: SPACE[RATE]}, metric="perplexity" if direction > 0 else "accuracy", sampler=sampler)
        search, found = Search(one, tmp_path / f"{sampler}{direction}"), []
        for item in trials(one):
            found.append(abs(math.log10(search.drawn(item)[RATE]) + 2))
            search.end(item, "finished", direction * found[-1])
        return float(np.mean(found[-15:]))

    assert distances("tpe", 1) < 0.8  # of four decades; Optuna alone, over six seeds: 0.49 to 0.64
    assert distances("tpe", -1) < 0.8
    assert distances("random", 1) > 1.0


def test_how_runs_end_is_what_optuna_keeps(tmp_path: Path) -> None:
    one = study(pruning="median")
    search, items = Search(one, tmp_path), trials(one)
    for item in items[:7]:
        search.drawn(item)
    search.end(items[0], "finished", 12.5)
    search.report(items[1], 30, 20.0)
    search.end(items[1], "pruned", None)
    search.end(items[2], "diverged", None)
    search.end(items[3], "failed", None)
    search.end(items[4], "finished", math.inf)
    search.end(items[5], "interrupted", None)
    for _ in range(2):  # what is said again changes nothing
        assert [trial.state.name for trial in kept(tmp_path)] == [
            "COMPLETE", "PRUNED", "FAIL", "FAIL", "FAIL", "RUNNING", "RUNNING",
        ]  # fmt: skip
        assert [trial.value for trial in kept(tmp_path)] == [12.5, 20.0, None, None, None, None, None]
        search.end(items[0], "diverged", None)
        search.end(items[2], "finished", 1.0)
    search.end(items[9], "finished", 1.0)  # never drawn
    assert not search.report(items[9], 50, 1.0)
    assert not search.report(items[0], 50, 1.0)
    assert len(kept(tmp_path)) == 7


def test_a_trial_that_failed_is_tried_again_with_its_values(tmp_path: Path) -> None:
    one = study()
    search, item = Search(one, tmp_path), trials(one)[1]
    values = search.drawn(item)
    search.end(item, "failed", None)
    assert search.drawn(item) == values
    assert search.drawn(item) == values
    search.end(item, "finished", 3.0)
    assert [(trial.state.name, trial.value) for trial in kept(tmp_path)] == [("FAIL", None), ("COMPLETE", 3.0)]


def prepared(folder: Path, metric: str, finals: list[float], **search: Any) -> tuple[Search, Item]:
    """Finished trials that had these values at every evaluation, and one that has begun."""
    one = study(metric=metric, pruning="median", **search)
    begun, items = Search(one, folder), trials(one)
    for item, final in zip(items, finals, strict=False):
        begun.drawn(item)
        assert not any(begun.report(item, percent, final) for percent in (10, 20, 30, 100))
        begun.end(item, "finished", final)
    begun.drawn(items[len(finals)])
    return begun, items[len(finals)]


@pytest.mark.parametrize(("metric", "worse", "better"), [("perplexity", 21.0, 19.0), ("accuracy", 19.0, 21.0)])
def test_a_trial_that_is_worse_than_the_median_ends_after_the_warm_up(
    tmp_path: Path, metric: str, worse: float, better: float
) -> None:
    finals = [20.0, 10.0, 30.0, 20.0]
    search, item = prepared(tmp_path / "worse", metric, finals)
    assert not search.report(item, 10, worse)
    assert search.report(item, 31, worse)  # compared with the others' 30
    search, item = prepared(tmp_path / "better", metric, finals)
    assert not search.report(item, 29, better)
    assert not search.report(item, 100, worse)
    search, item = prepared(tmp_path / "late", metric, finals)
    assert not search.report(item, 100, worse)  # it is through
    search, item = prepared(tmp_path / "early", metric, finals[:3])
    assert not search.report(item, 30, worse)  # fewer have finished than startup_trials


def test_pruning_is_optunas_and_none_prunes_nothing(tmp_path: Path) -> None:
    one = study(pruning="median", sampler="random")
    search, free = Search(one, tmp_path / "ours"), Search(study(), tmp_path / "free")
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=20)
    reference = optuna.create_study(pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))

    def ours(item: Item, curve: list[float]) -> int:
        search.drawn(item)
        for point, value in enumerate(curve, start=1):
            if search.report(item, 10 * point, value):
                search.end(item, "pruned", None)
                return point
        search.end(item, "finished", curve[-1])
        return len(curve)

    def optunas(curve: list[float]) -> int:
        trial = reference.ask()
        for point, value in enumerate(curve, start=1):
            trial.report(value, 10 * point)
            if point < len(curve) and trial.should_prune():
                reference.tell(trial, state=optuna.trial.TrialState.PRUNED)
                return point
        reference.tell(trial, curve[-1])
        return len(curve)

    rng = np.random.default_rng(0)
    curves = (rng.uniform(1, 2, (16, 10)) * rng.uniform(1, 3, (16, 1))).tolist()
    ends = [ours(item, curve) for item, curve in zip(trials(one), curves, strict=False)]
    assert ends == [optunas(curve) for curve in curves]
    assert 2 <= min(ends) < 10
    assert ends.count(10) > 4
    for item in trials(one)[:6]:
        free.drawn(item)
        assert not free.report(item, 50, 1e9)
        free.end(item, "finished", 1.0)


WORKER = """
import sys
from pathlib import Path
from gptlab import settings
from gptlab.studies import plan
from gptlab.studies.search import Search
from gptlab.studies.settings import StudySettings

folder, mine = Path(sys.argv[1]), int(sys.argv[2])
one = settings.build(StudySettings, settings.read_toml(folder / "file.toml"), "a study")
search = Search(one, folder)
print("ready", flush=True)
sys.stdin.readline()
for item in [item for item in plan.items(one) if item.stage == 1][mine::2]:
    values = search.drawn(item)
    search.end(item, "finished", values["optimizer.learning_rate"])
"""


def test_several_processes_draw_and_end_at_once(tmp_path: Path) -> None:
    one = study({RATE: SPACE[RATE], BETAS: SPACE[BETAS]}, trials=24)
    (tmp_path / "file.toml").write_text(settings.to_toml(plain(one)), encoding="utf-8")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), str(number)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    for worker in workers:
        assert worker.stdout
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        out, error = worker.communicate("go\n", timeout=300)
        assert (worker.returncode, out, error) == (0, "", "")  # and Optuna says nothing
    found = kept(tmp_path)
    assert sorted(trial.user_attrs["run"] for trial in found) == sorted(item.name for item in trials(one))
    assert all(trial.state.name == "COMPLETE" and trial.value == trial.params[RATE] for trial in found)
    assert len({trial.params[RATE] for trial in found}) == 24


def test_a_database_in_place_of_the_journal(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    one = study(storage=url, pruning="median")
    search, item = Search(one, tmp_path / "here"), trials(one)[1]
    values = search.drawn(item)
    assert not search.report(item, 40, 5.0)
    assert Search(one, tmp_path / "elsewhere").drawn(item) == values
    search.end(item, "finished", 4.0)
    (trial,) = optuna.load_study(study_name="s", storage=url).trials
    assert (trial.value, trial.intermediate_values) == (4.0, {40: 5.0})
    assert not (tmp_path / "here" / JOURNAL).exists()
    for wrong in ("no url", "sqlite:////no/such/folder/x.db", "nosuchdialect://host/x"):
        with pytest.raises(UserError, match=r"search.storage: the database cannot be used"):
            Search(study(storage=wrong), tmp_path)


def test_optuna_is_asked_for_by_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'gptlab\[search\]'"):
        Search(study(), tmp_path)


def test_what_cannot_be_searched_is_said(tmp_path: Path) -> None:
    named = settings.build(StudySettings, {"name": "s", "recipe": "r", "metric": "loss", "arms": {"a": {}}}, "a study")
    with pytest.raises(RecipeError, match=r"has no \[search\]"):
        Search(named, tmp_path)
    one = study()
    Search(one, tmp_path).drawn(trials(one)[1])
    with pytest.raises(UserError, match=r"another \[search.space\]; give it another name"):
        Search(study({**SPACE, KIND: ["constant", "linear"]}), tmp_path)


def folder_of(
    make_study: Callable[..., Path], tmp_path: Path, one: Mapping[str, Any], scores: list[Any], drawn: list[Any]
) -> Path:
    arms = [item.arm for item in trials(settings.build(StudySettings, one, "a study"))]
    return make_study(
        tmp_path,
        one,
        {arm: {7: score} for arm, score in zip(arms, scores, strict=False)},
        dict(zip(arms, drawn, strict=False)),
    )


def test_a_lost_journal_is_made_again_from_the_folders(make_study: Callable[..., Path], tmp_path: Path) -> None:
    one = study()
    before = Search(one, tmp_path / "before")
    drawn = [before.drawn(item) for item in trials(one)[:6]]
    scores = [{"perplexity": 12.5}, "pruned", "diverged", "failed", "interrupted", "waiting"]
    folder = folder_of(make_study, tmp_path, tree(), scores, drawn)
    (folder / JOURNAL).write_text('{"op_code": 0, "worker_id": "x"\n{}\n', encoding="utf-8")
    with pytest.raises(RunError, match=r"search.journal: is damaged .* Move it away"):
        Search(one, folder)
    (folder / JOURNAL).unlink()
    search = Search(one, folder)
    found = [(trial.state.name, trial.value) for trial in kept(folder)]
    assert found == [("COMPLETE", 12.5), ("PRUNED", None), ("FAIL", None), ("FAIL", None), ("RUNNING", None)]
    assert search.drawn(trials(one)[4]) == drawn[4]
    Search(one, folder)
    assert len(kept(folder)) == 5
    results = read_results(folder)
    assert [values_of(result, one) for result in results.trials[:6]] == [*drawn[:5], {}]


def test_a_trial_whose_worker_was_killed_before_it_said_how_it_ended(
    make_study: Callable[..., Path], tmp_path: Path
) -> None:
    one = study()
    folder = folder_of(make_study, tmp_path, tree(), [{"perplexity": 12.5}], [{}])
    Search(one, folder)
    assert [trial.value for trial in kept(folder)] == [12.5]
    (folder / JOURNAL).unlink()
    unsaid = Search(one, tmp_path / "other")
    unsaid.drawn(trials(one)[0])
    (tmp_path / "other" / JOURNAL).rename(folder / JOURNAL)
    Search(one, folder)
    assert [(trial.state.name, trial.value) for trial in kept(folder)] == [("COMPLETE", 12.5)]


def test_importances_are_the_shares_of_an_additive_function(make_study: Callable[..., Path], tmp_path: Path) -> None:
    """y = a u + b v over uniform u and v: a² / (a² + b²) and b² / (a² + b²); u is the place on the rate's log scale."""
    rng = np.random.default_rng(1)
    one = tree({RATE: SPACE[RATE], DROPOUT: {"low": 0.0, "high": 0.5}, KIND: SPACE[KIND]}, trials=60)
    places = rng.uniform(size=(60, 2))
    drawn = [{RATE: 10 ** (4 * u - 5), DROPOUT: v / 2, KIND: SPACE[KIND][n % 2]} for n, (u, v) in enumerate(places)]
    scores = [{"perplexity": 50 + 20 * u + 10 * v} for u, v in places]
    results = read_results(folder_of(make_study, tmp_path, one, scores, drawn))
    found = importances(results)
    assert list(found) == [RATE, DROPOUT, KIND]
    assert found[RATE] == pytest.approx(0.8, abs=0.1)
    assert found[DROPOUT] == pytest.approx(0.2, abs=0.1)
    assert found[KIND] < 0.05
    assert sum(found.values()) <= 1 + 1e-9
    assert importances(results) == found  # seeded


def test_importances_want_something_to_explain(
    make_study: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {RATE: SPACE[RATE], KIND: SPACE[KIND]}
    drawn = [{RATE: 10.0**-n, KIND: SPACE[KIND][n % 2]} for n in range(1, 6)]
    different, same = [{"perplexity": 10.0 + n} for n in range(5)], [{"perplexity": 10.0}] * 5

    def found(name: str, scores: list[Any], over: Mapping[str, Any] = space) -> dict[str, float]:
        given = [{key: values[key] for key in over} for values in drawn]
        return importances(read_results(folder_of(make_study, tmp_path / name, tree(over), scores, given)))

    assert set(found("enough", different)) == set(space)
    assert found("few", [*different[:3], "pruned", "diverged"]) == {}
    assert found("flat", same) == {}
    assert found("one", different, {RATE: SPACE[RATE]}) == {}
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert found("without", different) == {}
