"""A row for each run there is: what it is, how far it is, and whether a process trains it at this moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import gptlab
from gptlab.errors import RunError
from gptlab.report.listing import RunRow, list_runs
from gptlab.run.run import Run

HOLD = """
import sys, time
from pathlib import Path
from gptlab.run.run import Run
with Run(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def hold() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """hold(folder) → a process that holds the run's lock."""
    made: list[subprocess.Popen[str]] = []

    def start(folder: Path) -> subprocess.Popen[str]:
        made.append(subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True))
        stdout = made[-1].stdout
        assert stdout
        assert stdout.readline() == "held\n"
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.communicate()


def created(when: str) -> str:
    return json.dumps({"created": when, "parameters": 1000})


def states(folder: Path) -> dict[str, str]:
    return {row.name: row.state for row in list_runs(folder)}


def test_a_finished_run_is_told_by_its_best_score_and_cost(make_run: Callable[..., Path], tmp_path: Path) -> None:
    recipe = 'name = "books"\n[model]\nkind = "gpt"\n[data]\nkind = "corpus"\n[objective]\nkind = "language"\n'
    folder = make_run(recipe=recipe)
    [row] = list_runs(tmp_path)
    scores = Run(folder).evaluation["best"]["validation"]
    assert row == RunRow(
        "books", folder, None, "finished", datetime(2025, 3, 1, 10, tzinfo=UTC), objective="language", data="corpus",
        model="gpt", parameters=13_311_360, trainable=13_311_360, step=40, total_steps=40, metric="perplexity",
        score=scores["perplexity"], seconds=250.0, memory_bytes=890_000_040,
    )  # fmt: skip


def test_a_classifier_is_told_by_what_its_best_is_chosen_by(
    classified: Callable[..., Path], cola: SimpleNamespace, tmp_path: Path
) -> None:
    classified()
    [row] = list_runs(tmp_path)
    assert (row.metric, row.score) == ("matthews", cola.best["matthews"])
    assert (row.parameters, row.trainable, row.start) == (125_030_400, 629_760, "runs/base")


@pytest.mark.parametrize(
    ("best_by", "best", "metric", "score"),
    [
        ("reward", {"step": 20, "reward": 1.25}, "reward", 1.25),
        ("validation_sampled", {"step": 20, "loss": 4.5}, "loss", 4.5),
        ("validation", None, None, None),
    ],
)
def test_before_it_has_been_evaluated_a_run_is_told_by_its_best_so_far(
    make_run: Callable[..., Path], tmp_path: Path, best_by: str, best: Any, metric: str | None, score: float | None
) -> None:
    recipe = f'name = "books"\n[validation]\nbest_by = "{best_by}"\n'
    state = json.dumps({"status": "interrupted", "step": 20, "total_steps": 80, "best": best})
    make_run(recipe=recipe, state=state, evaluation=None)
    [row] = list_runs(tmp_path)
    assert (row.metric, row.score) == (metric, score)


def test_a_run_is_as_far_as_its_metrics_say(make_run: Callable[..., Path], tmp_path: Path) -> None:
    """state.json is written when something is saved; lines are written all the time."""
    make_run(state=json.dumps({"status": "running", "step": 10, "total_steps": None, "elapsed_seconds": 5.0}))
    [row] = list_runs(tmp_path)
    assert (row.step, row.total_steps, row.seconds) == (40, None, 20.0)


def test_a_run_that_has_only_a_recipe_is_interrupted_and_begun_when_that_was_written(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    nothing = dict.fromkeys(("origin", "state", "evaluation", "metrics", "samples"))
    folder = make_run(**nothing)
    os.utime(folder / "recipe.toml", (86_400, 86_400))
    begun = datetime(1970, 1, 2, tzinfo=UTC)
    assert list_runs(tmp_path) == [RunRow("books", folder, None, "interrupted", begun, model="gpt")]
    assert not (folder / ".lock").exists()


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("running", "interrupted"),
        ("interrupted", "interrupted"),
        ("stopped", "stopped"),
        ("pruned", "pruned"),
        ("finished", "finished"),
    ],
)
def test_without_a_process_that_holds_it_a_run_is_what_it_says_but_running(
    make_run: Callable[..., Path], tmp_path: Path, status: str, state: str
) -> None:
    folder = make_run(state=json.dumps({"status": status}))
    (folder / ".lock").touch()  # may stay behind
    assert states(tmp_path) == {"books": state}


def test_a_run_is_running_while_a_process_holds_it_and_no_longer_after_a_kill(
    make_run: Callable[..., Path], tmp_path: Path, hold: Callable[[Path], subprocess.Popen[str]]
) -> None:
    folder = make_run(state=json.dumps({"status": "running"}))
    process = hold(folder)
    assert states(tmp_path) == {"books": "running"}
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert states(tmp_path) == {"books": "interrupted"}


def test_listing_does_not_take_the_lock_from_who_wants_to_train(make_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_run(state=json.dumps({"status": "running"}))
    (folder / ".lock").touch()
    list_runs(tmp_path)
    with Run(folder).lock():
        assert states(tmp_path) == {"books": "running"}


@pytest.mark.parametrize(("status", "state"), [("running", "running"), ("interrupted", "interrupted")])
def test_where_nobody_can_ask_for_the_lock_its_word_counts(
    make_run: Callable[..., Path], tmp_path: Path, status: str, state: str
) -> None:
    folder = make_run(state=json.dumps({"status": status}))
    (folder / ".lock").mkdir()
    assert states(tmp_path) == {"books": state}


def test_the_newest_comes_first_and_a_study_stands_together(make_run: Callable[..., Path], tmp_path: Path) -> None:
    study = tmp_path / "five"
    study.mkdir()
    (study / "study.toml").touch()
    make_run("old", origin=created("2025-01-01T00:00:00+00:00"))
    make_run("five/base-1", origin=created("2025-01-02T00:00:00+00:00"))
    make_run("new", origin=created("2025-01-04T00:00:00+02:00"))
    make_run("five/wide-1", origin=created("2025-01-05T00:00:00+00:00"))
    (tmp_path / "notes").mkdir()
    rows = list_runs(tmp_path)
    assert [(row.name, row.study) for row in rows] == [
        ("five/wide-1", "five"), ("five/base-1", "five"), ("new", None), ("old", None),
    ]  # fmt: skip
    assert rows[2].begun == datetime(2025, 1, 3, 22, tzinfo=UTC)
    assert [(row.name, row.study) for row in list_runs(study)] == [("wide-1", "five"), ("base-1", "five")]
    assert [row.name for row in list_runs(tmp_path / "old")] == ["old"]


@pytest.mark.parametrize(
    ("file", "content", "fault"),
    [
        ("recipe", "name = ", "is not valid TOML"),
        ("state", "{", "cannot be read"),
        ("state", '{"best": 3}', "its files are not as a run writes them"),
        ("origin", '{"created": "yesterday"}', "its files are not as a run writes them"),
        ("metrics", "{\n", "line 1: is not JSON"),
    ],
)
def test_a_damaged_run_is_listed_with_its_fault_beside_the_others(
    make_run: Callable[..., Path], tmp_path: Path, file: str, content: str, fault: str
) -> None:
    make_run("sound")
    bad = make_run("broken", **{file: content})
    rows = {row.name: row for row in list_runs(tmp_path)}
    assert rows["sound"].state == "finished"
    assert rows["broken"].state == "damaged"
    assert str(bad) in rows["broken"].fault
    assert fault in rows["broken"].fault


def test_no_folder_is_an_error_and_an_empty_one_has_no_runs(tmp_path: Path) -> None:
    assert gptlab.list_runs(tmp_path) == []
    with pytest.raises(RunError, match="there is no such folder"):
        gptlab.list_runs(tmp_path / "rusn")
