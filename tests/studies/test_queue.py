"""Which run comes next: stages, rounds, what failed, what the budget lets begin."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from gptlab.settings import build
from gptlab.studies.claims import WORK, Claim
from gptlab.studies.queue import expected_seconds, spent_seconds, waiting, within_budget
from gptlab.studies.results import read_results
from gptlab.studies.settings import StudySettings

TWO = {"seeds": [1, 2], "arms": {"a": {}, "b": {"model.n_embd": 64}}}
SEARCH = {
    "seeds": [1],
    "search": {"trials": 2, "confirm": [7], "space": {"optimizer.learning_rate": {"low": 1e-4, "high": 1e-2}}},
}


def names(folder: Path, workers: int = 1, again: dict[str, int] | None = None, **changes) -> list[str]:
    results = read_results(folder)
    results = dataclasses.replace(results, study=results.study.model_copy(update=changes))
    return [item.name for item in waiting(results, workers, again or {})]


def test_round_by_round_whatever_is_missing(make_study, tmp_path: Path) -> None:
    folder = make_study(tmp_path, TWO, {"a": {1: {}}, "b": {1: "interrupted"}})
    assert names(folder) == ["b-1", "a-2", "b-2"]


def test_what_has_ended_is_not_made_again(make_study, tmp_path: Path) -> None:
    folder = make_study(tmp_path, TWO, {"a": {1: {}, 2: "diverged"}, "b": {1: "failed", 2: {}}})
    assert names(folder) == []
    assert names(folder, again={"b-1": 1}) == ["b-1"], "a run that had failed before this call is tried once more"
    assert names(folder, again={"b-1": 0}) == [], "it has failed again"


def test_a_run_that_is_being_made_is_left_alone(make_study, tmp_path: Path) -> None:
    folder = make_study(tmp_path, TWO, {"a": {1: "running"}})
    assert names(folder) == ["b-1", "a-2", "b-2"]


def test_a_run_whose_worker_keeps_dying_has_failed(make_study, tmp_path: Path) -> None:
    folder = make_study(tmp_path, TWO, {"a": {1: "interrupted"}})
    for number in range(1, 4):
        assert "a-1" in names(folder)
        claim = Claim("a-1", number, "there", 1, 0.0, 0.0, 1.0, "killed", "its process was killed (SIGKILL)")
        (folder / WORK / f"a-1.{number}.json").write_text(json.dumps(dataclasses.asdict(claim)))
    assert "a-1" not in names(folder)
    failed = read_results(folder).runs[0]
    assert (failed.status, failed.words) == ("failed", "its process was killed (SIGKILL)")


def test_first_runs_come_first_and_the_others_need_them(make_study, tmp_path: Path) -> None:
    study = {**TWO, "first": {"base": {"training.max_steps": 3}}, "arms": {"a": {}, "b": {"model.n_embd": 64}}}
    for number, (state, then) in enumerate({
        "waiting": ["base"], "running": [], "failed": [], "diverged": [],
    }.items()):  # fmt: skip
        folder = make_study(tmp_path / str(number), study, {"base": {1337: state}})
        assert names(folder) == then, state
    folder = make_study(tmp_path / "done", study, {"base": {1337: {}}})
    assert names(folder) == ["a-1", "b-1", "a-2", "b-2"]
    both = {**study, "first": {"base": {"training.max_steps": 3}, "tuned": {"training.max_steps": 4}}}
    assert names(make_study(tmp_path / "both", both, {})) == ["base"], "one may begin with another"


def test_what_proves_a_search_waits_for_all_its_trials(make_study, tmp_path: Path) -> None:
    drawn = {name: {"optimizer.learning_rate": 1e-3} for name in ("trial-001", "trial-002", "best")}
    folder = make_study(tmp_path / "1", SEARCH, {"trial-001": {1: {}}, "trial-002": {1: "running"}}, drawn)
    assert names(folder) == []
    folder = make_study(tmp_path / "2", SEARCH, {"trial-001": {1: {}}, "trial-002": {1: "diverged"}}, drawn)
    assert names(folder) == ["baseline-7", "best-7"]


def test_a_budget_of_runs(make_study, tmp_path: Path) -> None:
    folder = make_study(tmp_path, {**TWO, "budget": {"runs": 3}}, {"a": {1: {}}})
    assert names(folder) == ["b-1", "a-2"]


@pytest.mark.parametrize(("minutes", "workers", "begins"), [(3.9, 1, False), (4.1, 1, True), (2.1, 2, True)])
def test_a_round_begins_where_it_ends_in_time(
    make_study, tmp_path: Path, minutes: float, workers: int, begins: bool
) -> None:
    """Two runs of a minute have been made, and the second round has two more."""
    study = {**TWO, "budget": {"minutes": minutes}}
    folder = make_study(tmp_path, study, {"a": {1: {"seconds": 60}}, "b": {1: {"seconds": 60}}})
    results = read_results(folder)
    assert spent_seconds(results.runs) == pytest.approx(120, abs=1)
    assert expected_seconds(results, results.runs[2].item) == pytest.approx(60, abs=1)
    assert names(folder, workers) == (["a-2", "b-2"] if begins else [])


def test_a_round_that_has_begun_is_ended_and_the_first_is_always_made(make_study, tmp_path: Path) -> None:
    study = {**TWO, "budget": {"minutes": 0.01}}
    folder = make_study(tmp_path / "1", study, {"a": {1: {}}})
    assert names(folder) == ["b-1"]
    folder = make_study(tmp_path / "2", study, {"a": {1: {}, 2: {}}, "b": {1: {}}})
    assert names(folder) == ["b-2"]


def test_a_search_keeps_time_for_its_proof(make_study, tmp_path: Path) -> None:
    """One trial of a minute is done. Another and the two proving runs are three more."""
    drawn = {"trial-001": {"optimizer.learning_rate": 1e-3}}
    for minutes, begins in ((3.9, ["baseline-7", "best-7"]), (4.1, ["trial-002-1"])):
        study = {**SEARCH, "budget": {"minutes": minutes}}
        folder = make_study(tmp_path / str(minutes), study, {"trial-001": {1: {"seconds": 60}}}, drawn)
        assert names(folder) == begins
        results = read_results(folder)
        assert within_budget(results, results.runs[-1].item, 1), "the proof's first round is always made"


def test_expected_before_anything_has_ended(make_study, tmp_path: Path) -> None:
    results = read_results(make_study(tmp_path, TWO, {}))
    assert expected_seconds(results, results.runs[0].item) is None
    assert build(StudySettings, results.study.model_dump(mode="json", exclude_none=True), "again") == results.study
