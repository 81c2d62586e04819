"""What follows a run gets the lines of its metrics, each step once; and it never stops a run."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gptlab.errors import RecipeError, TrainingStopped, UserError
from gptlab.run.run import Run
from gptlab.settings import build, plain
from gptlab.training import tracking
from gptlab.training.assemble import train_recipe
from gptlab.training.progress import LineProgress
from gptlab.training.recipe import Recipe
from gptlab.training.tracking import SERVICES, Tracker, TrackingSettings, check_services, open_trackers
from gptlab.training.tracking_services import identity, numbers_of

TEXT = "\n\n".join(f"The number {n} is {'even' if n % 2 == 0 else 'odd'}, and {n} + 1 = {n + 1}." for n in range(300))
TENSORBOARD = TrackingSettings(services=("tensorboard",))

Points = dict[str, dict[int, float]]
"""Tag → step → value."""


class Notebook:
    """A service that writes down what it is told."""

    def __init__(self, *, replaces: bool = False) -> None:
        self.replaces = replaces
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.ends: list[str] = []

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.lines.append((step, dict(numbers)))

    def end(self, status: str) -> None:
        self.ends.append(status)


class Broken(Notebook):
    """One whose network is away from its second line on."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        super().log(step, numbers)
        if len(self.lines) > 1:
            raise ConnectionError("no route to host")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))
    Path("numbers.txt").write_text(TEXT)
    return tmp_path


def recipe(steps: int = 8, **changes: Any) -> Recipe:
    tree = {
        "name": "numbers",
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "context": 16},
        "tokenizer": {"train": 300},
        "data": {"sources": [{"path": "numbers.txt", "document": "block"}], "validation": {"share": 0.1}},
        "training": {"max_steps": steps, "batch_size": 4, "precision": "float32"},
        "schedule": {"kind": "constant", "warmup_steps": 0},
        "validation": {"every_steps": 4, "sampled_rows": 5},
        **changes,
    }
    return build(Recipe, tree, "test")


def new_run(folder: Path) -> Run:
    return Run.create(folder, plain(recipe()), {"created": "2026-01-02T03:04:05+00:00"})


def line(step: int, loss: float) -> dict[str, Any]:
    return {"event": "step", "step": step, "loss": loss}


def points_in(folder: Path) -> Points:
    """What TensorBoard reads from event files; each step of a tag must be there once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    found: Points = {}
    for tag in events.Tags()["scalars"]:
        scalars = events.Scalars(tag)
        found[tag] = {scalar.step: scalar.value for scalar in scalars}
        assert len(found[tag]) == len(scalars), tag
    return found


def points_of(run: Run) -> Points:
    """The same from metrics.jsonl."""
    found: Points = {}
    for record in run.metrics():
        for tag, value in numbers_of(record).items():
            found.setdefault(tag, {})[record["step"]] = value
    return found


def assert_same(found: Points, wanted: Points) -> None:
    """Equal as far as float32, which event files have, can say."""
    assert found.keys() == wanted.keys()
    for tag, values in wanted.items():
        assert found[tag] == pytest.approx(values, rel=1e-6, nan_ok=True), tag


# Settings


def test_nothing_follows_a_run_that_does_not_ask_for_it() -> None:
    assert recipe().tracking.services == ()
    asked = recipe(tracking={"services": ["wandb", "tensorboard"], "project": "mine"}).tracking
    assert (asked.services, asked.project) == (("wandb", "tensorboard"), "mine")


def test_an_unknown_service_is_named() -> None:
    with pytest.raises(RecipeError, match=r"tracking\.services.*'tensorboards'"):
        recipe(tracking={"services": ["tensorboards"]})


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize("with_folder", [False, True], ids=["nothing", "a folder of that name"])
def test_a_service_that_is_missing_is_named_with_the_pip_command(
    name: str, with_folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, name, raising=False)
    if with_folder:  # wandb writes ./wandb, which Python takes for a package
        (tmp_path / name).mkdir()
    wanted = "'gptlab[tensorboard]'" if name == "tensorboard" else name
    with pytest.raises(
        UserError, match=rf"tracking\.services = {name} needs: pip install {wanted}".replace("[t", r"\[t")
    ):
        check_services(TrackingSettings(services=(name,)))


def test_it_is_missed_before_anything_is_made(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = recipe(tracking={"services": ["mlflow"]})
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install mlflow"):
        train_recipe(asked)
    assert not (place / "runs").exists()


# Lines


def test_points_are_the_numbers_of_what_makes_curves() -> None:
    assert numbers_of({"event": "step", "step": 3, "loss": 2.5, "tokens": 96}) == {
        "training/loss": 2.5, "training/tokens": 96.0,
    }  # fmt: skip
    reward = {"event": "reward", "step": 3, "mean": -0.5, "best": {"score": 1.0}, "truncated": None, "ended": True}
    assert numbers_of(reward) == {"reward/mean": -0.5}
    assert math.isinf(numbers_of({"event": "validation", "step": 3, "perplexity": math.inf})["validation/perplexity"])
    assert numbers_of({"event": "start", "step": 0, "total_steps": 9}) == {}
    assert numbers_of({"event": "note", "step": 0, "text": "no"}) == {}


def test_a_service_that_fails_is_told_once_and_the_others_go_on() -> None:
    said: list[str] = []
    whole, broken = Notebook(), Broken()
    tracker = Tracker(say=said.append)
    for name, service in {"broken": broken, "whole": whole}.items():
        tracker.add(name, lambda service=service: service)
    tracker.add("closed", lambda: 1 / 0)
    for step in range(1, 6):
        tracker.log(line(step, 1.0))
    tracker.end("finished")
    assert [step for step, _ in whole.lines] == [1, 2, 3, 4, 5]
    assert [step for step, _ in broken.lines] == [1, 2]
    assert (whole.ends, broken.ends) == (["finished"], [])
    assert len(said) == 2
    assert "closed failed" in said[0]
    assert "ZeroDivisionError" in said[0]
    assert "broken failed" in said[1]
    assert "no route to host" in said[1]


def test_lines_that_come_again_after_a_cut_are_sent_again_only_to_what_replaces_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path / "numbers")
    kept, replaced = Notebook(), Notebook(replaces=True)
    monkeypatch.setitem(SERVICES, "wandb", lambda project, run, first_step: kept)
    monkeypatch.setitem(SERVICES, "mlflow", lambda project, run, first_step: replaced)
    for step in range(1, 8):
        run.log(line(step, 1.0))
    tracker = open_trackers(TrackingSettings(services=("wandb", "mlflow")), run, 4)
    run.cut(4)
    for step in range(5, 10):
        tracker.log(line(step, 2.0))
    tracker.log({"event": "validation", "step": 7, "loss": 3.0})  # was not there before the kill
    assert kept.lines[:2] == [(8, {"training/loss": 2.0}), (9, {"training/loss": 2.0})]
    assert kept.lines[2] == (7, {"validation/loss": 3.0})
    assert [step for step, _ in replaced.lines] == [5, 6, 7, 8, 9, 7]


@pytest.mark.parametrize("status", ["finished", "interrupted", "stopped", "pruned", "running"])
def test_a_session_ends_as_its_run_did(status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, notebook = new_run(tmp_path / "numbers"), Notebook()
    monkeypatch.setitem(SERVICES, "wandb", lambda project, run, first_step: notebook)
    with suppress(MemoryError), open_trackers(TrackingSettings(services=("wandb",)), run, 0) as tracker:
        run.write_state({"status": status})
        raise MemoryError
    assert notebook.ends == ["failed" if status == "running" else status]
    tracker.log(line(1, 1.0))
    assert notebook.lines == []


def test_a_run_keeps_its_identity_and_one_that_starts_over_has_another(tmp_path: Path) -> None:
    first = new_run(tmp_path / "numbers")
    other = Run.create(tmp_path / "again" / "numbers", plain(recipe()), {"created": "2026-01-02T03:04:06+00:00"})
    assert identity(first) == identity(Run.open(first.folder))
    assert identity(first) != identity(other)
    assert identity(first).startswith("numbers-")


# TensorBoard


def test_tensorboard_has_each_step_once_after_a_kill(tmp_path: Path) -> None:
    run = new_run(tmp_path / "numbers")
    killed = open_trackers(TENSORBOARD, run, 0)  # never ended, as after a kill
    for step in range(1, 11):
        run.log(line(step, 1.0))
        killed.log(line(step, 1.0))
    with open_trackers(TENSORBOARD, run, 6) as tracker:
        run.cut(6)
        for step in range(7, 14):
            run.log(line(step, 2.0))
            tracker.log(line(step, 2.0))
    assert points_in(run.folder / "tensorboard") == {
        "training/loss": dict.fromkeys(range(1, 7), 1.0) | dict.fromkeys(range(7, 14), 2.0)
    }


def test_tensorboard_shows_what_a_run_writes_also_of_the_time_before_it_was_asked_for(place: Path) -> None:
    run = train_recipe(recipe(8))
    assert not (run.folder / "tensorboard").exists()
    run = train_recipe(recipe(12, tracking={"services": ["tensorboard"]}))
    run = train_recipe(recipe(16, tracking={"services": ["tensorboard"]}))
    wanted = points_of(run)
    assert len(wanted["training/loss"]) == 16
    assert {4, 8, 12, 16} <= wanted["validation_sampled/loss"].keys()
    assert_same(points_in(run.folder / "tensorboard"), wanted)


# Runs


def test_a_service_that_fails_neither_stops_a_run_nor_changes_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Broken()
    monkeypatch.setitem(SERVICES, "tensorboard", lambda project, run, first_step: broken)
    run = train_recipe(recipe(name="followed", tracking={"services": ["tensorboard"]}), progress=LineProgress())
    assert capsys.readouterr().out.count("tensorboard failed") == 1
    assert (run.state["status"], broken.ends) == ("finished", [])
    alone = train_recipe(recipe())
    losses = [[record["loss"] for record in each.metrics("step")] for each in (run, alone)]
    assert losses[0] == losses[1]


def test_a_run_that_stops_itself_says_so_to_what_follows_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = Notebook()
    monkeypatch.setitem(SERVICES, "tensorboard", lambda project, run, first_step: notebook)
    optimizer = {"kind": "adamw", "learning_rate": 1e30, "gradient_clip": 0.0}
    with pytest.raises(TrainingStopped):
        train_recipe(recipe(tracking={"services": ["tensorboard"]}, optimizer=optimizer))
    assert notebook.ends == ["stopped"]
    assert notebook.lines
