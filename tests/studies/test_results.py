"""What is read of a study: which state each run is in, its scores and its cost, and what of them ranks the arms."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptlab.errors import RecipeError
from gptlab.run.run import Run
from gptlab.studies.claims import WORK, Claim, Claims
from gptlab.studies.results import RunResult, best_trial, read_result, read_results

MakeStudy = Callable[..., Path]

ARMS: dict[str, Any] = {"arms": {"plain": {}, "wide": {"model.n_embd": 64}}, "seeds": [1, 2, 3]}
STATES = ("running", "interrupted", "waiting", "finished", "diverged", "failed")


@pytest.fixture
def folder(tmp_path: Path, make_study: MakeStudy) -> Path:
    """A run in each of six states."""
    plain = {1: "running", 2: "interrupted"}
    return make_study(tmp_path, ARMS, {"plain": plain, "wide": {1: {"perplexity": 150.0}, 2: "diverged", 3: "failed"}})


def result_of(folder: Path, name: str) -> RunResult:
    return next(result for result in read_results(folder).runs if result.item.name == name)


def test_each_run_is_in_its_state(folder: Path) -> None:
    found = {result.item.name: result.status for result in read_results(folder).runs}
    names = ("plain-1", "plain-2", "plain-3", "wide-1", "wide-2", "wide-3")
    assert found == dict(zip(names, STATES, strict=True))
    assert result_of(folder, "wide-3").words == "DataError: books/: there is no such file"


def test_a_run_is_finished_when_its_report_is_there(folder: Path) -> None:
    """Its worker writes that last, and a study that goes on makes up for it."""
    (folder / "wide-1" / "report.html").unlink()
    assert result_of(folder, "wide-1").status == "interrupted"


def test_a_search_ends_a_run_early(tmp_path: Path, make_study: MakeStudy) -> None:
    assert result_of(make_study(tmp_path, ARMS, {"plain": {1: "pruned"}}), "plain-1").status == "pruned"


def test_a_run_that_ends_while_it_is_looked_at_is_not_taken_for_interrupted(folder: Path) -> None:
    """Between two looks at two files a worker may write both."""

    class Meanwhile(Claims):
        def is_held(self, claim: Claim) -> bool:
            work = Run(folder / claim.run)
            work.write_state({**work.state, "status": "finished"})
            work.report_files.html.write_text("", encoding="utf-8")
            file = self.file(claim)
            file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "outcome": "finished"}), "utf-8")
            return super().is_held(claim)

    before = result_of(folder, "plain-1")
    assert before.status == "running"
    assert read_result(before.study, before.item, folder, Meanwhile(folder)).status in ("running", "finished")
    assert result_of(folder, "plain-1").status == "finished"


def test_a_worker_that_is_killed_again_and_again_has_failed(folder: Path) -> None:
    claim = json.loads((folder / WORK / "plain-2.1.json").read_text(encoding="utf-8"))
    for number in (1, 2, 3):
        assert result_of(folder, "plain-2").status == "interrupted"
        killed = {**claim, "number": number, "outcome": "killed", "ended_at": 1.0, "words": "killed (SIGKILL)"}
        (folder / WORK / f"plain-2.{number}.json").write_text(json.dumps(killed), encoding="utf-8")
    result = result_of(folder, "plain-2")
    assert (result.status, result.words) == ("failed", "killed (SIGKILL)")


def test_what_had_ended_is_not_read_again(folder: Path) -> None:
    before = read_results(folder)
    after = read_results(folder, before=before)
    same = [new.item.name for old, new in zip(before.runs, after.runs, strict=True) if old is new]
    assert same == ["wide-1", "wide-2"]


def test_a_finished_run_has_its_scores_and_its_cost(tmp_path: Path, make_study: MakeStudy) -> None:
    score = {"perplexity": 150.0, "seconds": 80.0, "memory_bytes": 1000, "parameters": 77, "bits_per_byte": 1.7}
    result = result_of(make_study(tmp_path, ARMS, {"plain": {1: score}}), "plain-1")
    found = result.measures
    assert {key: found[key] for key in score} == score
    assert found["loss"] == pytest.approx(math.log(150.0))
    assert (found["best_step"], found["steps"], found["trainable"]) == (40, 40, 77)
    assert found["tokens_per_second"] == found["tokens"] / 80
    assert result.score == 150.0
    lines = result.run.metrics("step")
    assert found["training_loss"] == pytest.approx(sum(line["loss"] for line in lines) / len(lines))
    assert found["last_training_loss"] == lines[-1]["loss"]


def test_the_mean_of_the_training_loss_is_over_steps_however_seldom_they_are_logged(
    tmp_path: Path, make_study: MakeStudy
) -> None:
    """A line's loss stands for the steps since the line before, as Hugging Face's Trainer counts them. A student's is
    its cross-entropy, which others can be compared by."""
    common = {"event": "step", "tokens": 10, "seconds": 1.0, "memory_bytes": 5}
    lines = [
        {**common, "step": 1, "loss": 9.0},
        {**common, "step": 10, "loss": 5.0},
        {**common, "step": 12, "loss": 99.0, "cross_entropy": 4.0},
    ]
    result = result_of(make_study(tmp_path, ARMS, {"plain": {1: {"perplexity": 2.0, "lines": lines}}}), "plain-1")
    assert result.measures["training_loss"] == pytest.approx((9.0 + 9 * 5.0 + 2 * 4.0) / 12)
    assert result.measures["last_training_loss"] == 4.0


def test_tokens_are_those_learned_from_not_those_scored(tmp_path: Path, make_study: MakeStudy) -> None:
    result = result_of(make_study(tmp_path, ARMS, {"plain": {1: {"perplexity": 150.0, "tokens": 7.0}}}), "plain-1")
    assert result.measures["tokens"] == result.run.metrics("step")[-1]["tokens"] == 4096 * 40


def test_a_run_that_has_not_finished_has_a_cost_and_no_score(folder: Path) -> None:
    for name in ("plain-1", "wide-2"):
        result = result_of(folder, name)
        assert result.measures["seconds"] == 60.0
        assert "perplexity" not in result.measures
        assert result.score is None
    assert result_of(folder, "plain-3").measures == {}


def test_a_score_that_is_not_finite_is_none(tmp_path: Path, make_study: MakeStudy) -> None:
    folder = make_study(tmp_path, ARMS, {"plain": {1: {"perplexity": math.inf, "loss": 700.0}}})
    assert result_of(folder, "plain-1").score is None
    assert read_results(folder).scores("plain") == {}


@pytest.mark.parametrize(
    ("changes", "score"),
    [({}, 2.0), ({"checkpoint": "last"}, 3.0), ({"on": "test"}, 2.5), ({"checkpoint": "last", "on": "test"}, None)],
)
def test_the_study_says_whose_score_counts(
    tmp_path: Path, make_study: MakeStudy, changes: dict[str, Any], score: float | None
) -> None:
    folder = make_study(tmp_path, {**ARMS, **changes}, {"plain": {1: {"perplexity": 2.0}}})
    best = {"step": 10, "validation": {"perplexity": 2.0}, "test": {"perplexity": 2.5}}
    Run(folder / "plain-1").write_evaluation({"best": best, "last": {"step": 40, "validation": {"perplexity": 3.0}}})
    assert result_of(folder, "plain-1").score == score


def test_the_best_that_is_the_last_counts_as_the_last(tmp_path: Path, make_study: MakeStudy) -> None:
    folder = make_study(tmp_path, {**ARMS, "checkpoint": "last"}, {"plain": {1: {"perplexity": 2.0}}})
    assert result_of(folder, "plain-1").score == 2.0


def test_rewards_and_comparisons_with_the_start_are_measures(tmp_path: Path, make_study: MakeStudy) -> None:
    study = {**ARMS, "metric": "win_rate", "measures": ["reward", "kl"]}
    folder = make_study(tmp_path, study, {"plain": {1: {"loss": 0.5, "reward": 1.25}}})
    run = Run(folder / "plain-1")
    run.log({"event": "reward", "step": 40, "mean": 0.75, "low": 0.0, "high": 1.0})
    against = {"win_rate": 0.6, "win_rate_low": 0.5, "kl": 0.1, "start": "base"}
    run.write_evaluation({**run.evaluation, "against_start": against})
    result = result_of(folder, "plain-1")
    assert result.score == 0.6
    assert (result.measures["reward"], result.measures["kl"]) == (1.25, 0.1)


def test_arms_have_their_runs_by_seed(folder: Path) -> None:
    results = read_results(folder)
    assert {arm: [r.item.seed for r in runs] for arm, runs in results.arms.items()} == {
        "plain": [1, 2, 3], "wide": [1, 2, 3]
    }  # fmt: skip
    assert results.scores("wide") == {1: 150.0}
    assert results.scores("wide", "seconds") == {1: 60.0}
    assert results.scores("wide", "kindness") == {}
    assert results.scores("nobody") == {}
    assert (results.baseline, results.varied(), results.trials) == ("plain", ["model.n_embd"], [])


@pytest.mark.parametrize(("metric", "best"), [("perplexity", "trial-002"), ("accuracy", "trial-001")])
def test_a_search_has_trials_and_compares_its_best(
    tmp_path: Path, make_study: MakeStudy, metric: str, best: str
) -> None:
    space = {"optimizer.learning_rate": [1e-4, 1e-3, 1e-2]}
    study = {"search": {"trials": 4, "space": space, "confirm": [101]}, "seeds": [1], "metric": metric}
    scores = {
        "trial-001": {1: {"perplexity": 170.0, "accuracy": 0.9}},
        "trial-002": {1: {"perplexity": 140.0, "accuracy": 0.1}},
        "trial-003": {1: "pruned"},
        "best": {101: {"perplexity": 141.0, "accuracy": 0.2}},
    }
    drawn = {arm: {"optimizer.learning_rate": 1e-3} for arm in scores}
    results = read_results(make_study(tmp_path, study, scores, drawn))
    assert [result.item.arm for result in results.trials] == ["trial-001", "trial-002", "trial-003", "trial-004"]
    assert list(results.arms) == ["baseline", "best"]
    assert results.varied() == ["optimizer.learning_rate"]
    found = best_trial(results)
    assert found
    assert found.item.arm == best


def test_a_search_without_a_score_has_no_best(tmp_path: Path, make_study: MakeStudy) -> None:
    study = {"search": {"trials": 2, "space": {"model.n_layer": [1, 2]}}, "seeds": [1]}
    assert best_trial(read_results(make_study(tmp_path, study, {}))) is None


def test_a_folder_that_is_no_study_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"study\.toml"):
        read_results(tmp_path)


def test_reading_writes_nothing(folder: Path) -> None:
    def state() -> dict[str, int]:
        return {str(file): os.stat(file).st_mtime_ns for file in folder.rglob("*")}

    before = state()
    for result in read_results(folder).runs:
        assert result.measures is not None
    assert state() == before
