"""What two runs differ in: what differs is there, with what came of it, and what is equal is not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest

import gptlab
from gptlab.errors import RunError
from gptlab.report.diff import SECTIONS, Entry, diff_runs
from gptlab.run.run import Run

RECIPE = """name = "%s"
seed = %d
[optimizer]
learning_rate = %g
[[data.sources]]
path = "%s"
"""


def test_equal_runs_do_not_differ(make_run: Callable[..., Path], tmp_path: Path) -> None:
    make_run("a")
    make_run("b")
    found = diff_runs("a", tmp_path / "b", runs=tmp_path)
    assert (found.a, found.b) == (tmp_path / "a", tmp_path / "b")
    assert not any(getattr(found, section) for section in SECTIONS)


def test_the_recipe_is_compared_by_dotted_keys_without_its_name(make_run: Callable[..., Path]) -> None:
    a = make_run("a", recipe=RECIPE % ("a", 1, 1e-3, "books"))
    b = make_run("b", recipe=RECIPE % ("b", 1, 3e-4, "letters") + "share = 0.5\n[lora]\nrank = 8\n")
    assert diff_runs(a, b).recipe == [
        Entry("optimizer.learning_rate", 1e-3, 3e-4),
        Entry("data.sources.0.path", "books", "letters"),
        Entry("data.sources.0.share", None, 0.5),
        Entry("lora.rank", None, 8),
    ]


def test_data_weights_and_machine_are_compared(make_run: Callable[..., Path]) -> None:
    a = make_run("a")
    origin = deepcopy(Run(a).origin)
    origin["data"]["fingerprints"]["train"] = "90:def"
    origin["data"]["table"][0]["documents"] = 70
    origin["data"]["table"].append({"name": "letters", "split": "train", "documents": 3})
    origin["start"] = {"name": "base", "fingerprint": "0123456789abcdef"}
    origin |= {"commit": "1111111", "versions": {**origin["versions"], "torch": "2.14.0"}, "command": "other words"}
    found = diff_runs(a, make_run("b", origin=json.dumps(origin)))
    assert found.data == [
        Entry("fingerprints.train", "100:abc", "90:def"),
        Entry("sources.books (train).documents", 71, 70),
        Entry("sources.letters (train).documents", None, 3),
    ]
    assert found.model == [Entry("start.fingerprint", None, "0123456789abcdef")]
    assert found.machine == [Entry("versions.torch", "2.13.0", "2.14.0"), Entry("commit", "3f1c9e2", "1111111")]


def test_scores_and_cost_have_their_differences(make_run: Callable[..., Path]) -> None:
    a = make_run("a")
    evaluation, state = Run(a).evaluation, {**Run(a).state, "elapsed_seconds": 200.0}
    evaluation["best"]["validation"]["perplexity"] += 2.5
    evaluation["best"]["test"]["loss"] = math.nan
    found = diff_runs(a, make_run("b", evaluation=json.dumps(evaluation), state=json.dumps(state)))
    perplexity, loss = found.scores
    assert perplexity.key == "validation.perplexity"
    assert perplexity.difference == pytest.approx(2.5)
    assert (loss.key, loss.a, loss.difference) == ("test.loss", 4.0, None)
    tokens = 40 * 4096
    assert found.cost == [
        Entry("seconds", 250.0, 200.0, -50.0),
        Entry("tokens_per_second", tokens / 250, tokens / 200, tokens / 200 - tokens / 250),
    ]


def test_a_score_that_is_nan_in_both_does_not_differ(make_run: Callable[..., Path]) -> None:
    a = make_run("a")
    evaluation = Run(a).evaluation
    evaluation["best"]["validation"]["loss"] = "NaN"
    both = [make_run(name, evaluation=json.dumps(evaluation)) for name in ("b", "c")]
    assert diff_runs(*both).scores == []


def test_intervals_and_tables_are_no_scores_of_their_own(
    classified: Callable[..., Path], make_run: Callable[..., Path], cola: SimpleNamespace
) -> None:
    a = classified()
    files = {file.name.partition(".")[0]: file.read_text(encoding="utf-8") for file in a.iterdir()}
    evaluation = deepcopy(cola.evaluation)
    evaluation["best"]["validation"] |= {"accuracy": 0.75, "accuracy_low": 0.72, "confusion": [[129, 193], [68, 653]]}
    b = make_run("b", **{**files, "evaluation": json.dumps(evaluation)})
    assert diff_runs(a, b).scores == [Entry("validation.accuracy", 0.7411, 0.75, 0.75 - 0.7411)]


def test_what_a_comparison_with_its_start_gave_is_a_score(make_run: Callable[..., Path]) -> None:
    a = make_run("a")
    against = {"win_rate": 0.6, "win_rate_low": 0.4, "kl": 0.02, "prompts": 40, "start": "base"}
    b = make_run("b", evaluation=json.dumps({**Run(a).evaluation, "against_start": against}))
    keys = [entry.key for entry in diff_runs(a, b).scores]
    assert keys == ["against_start.win_rate", "against_start.kl", "against_start.prompts"]


def test_a_run_that_is_not_finished_is_compared_by_what_it_has(make_run: Callable[..., Path]) -> None:
    a, b = make_run("a"), make_run("b", evaluation=None, state=json.dumps({"status": "interrupted", "step": 20}))
    found = diff_runs(a, b)
    assert Entry("steps", 40, 20, -20) in found.cost
    assert {"validation.perplexity", "validation, a sample.perplexity"} <= {entry.key for entry in found.scores}


def test_what_is_no_run_is_an_error_with_the_nearest_name(make_run: Callable[..., Path], tmp_path: Path) -> None:
    make_run("books")
    with pytest.raises(RunError, match=r"boosk.*did you mean 'books'"):
        gptlab.diff_runs("books", "boosk", runs=tmp_path)


def test_a_damaged_run_is_an_error(make_run: Callable[..., Path]) -> None:
    with pytest.raises(RunError, match=r"state\.json: cannot be read"):
        diff_runs(make_run("a"), make_run("b", state="{"))
