"""Studies made by real workers: only what is missing, whatever fails, is killed or is shared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import gptlab
from gptlab.errors import GptlabError, RunError
from gptlab.settings import to_toml
from gptlab.studies.claims import Claims
from gptlab.studies.opening import open_study
from gptlab.studies.results import read_results
from gptlab.studies.search import values_of
from gptlab.studies.settings import load_study

TEXT = "\n\n".join(f"The number {n} is {'even' if n % 2 == 0 else 'odd'}, and {n} + 1 = {n + 1}." for n in range(900))

RECIPE = {
    "name": "numbers",
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "context": 16, "dropout": 0.1},
    "tokenizer": {"train": 300},
    "data": {"sources": [{"path": "numbers.txt", "document": "block"}], "validation": {"share": 0.1}},
    "training": {"max_steps": 12, "batch_size": 8, "precision": "float32"},
    "validation": {"every_steps": 4},
    "checkpoints": {"every_steps": 2},
}  # fmt: skip

STUDY = {"name": "few", "recipe": "numbers.toml", "seeds": [1], "metric": "perplexity"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with text and a recipe, where the test is."""
    (tmp_path / "numbers.txt").write_text(TEXT)
    (tmp_path / "numbers.toml").write_text(to_toml(RECIPE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(here: Path, **study) -> Path:
    file = here / "study.toml"
    file.write_text(to_toml({**STUDY, **study}))
    return file


def statuses(folder: Path) -> dict[str, str]:
    return {result.item.name: result.status for result in read_results(folder).runs}


def test_only_what_is_missing_and_a_failure_stops_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms = {"good": {}, "diverges": {"optimizer.learning_rate": 1e9}, "fails": {"tokenizer.from": "./nowhere"}}
    file = write(here, arms=arms)
    made = gptlab.study(file)
    assert statuses(made.folder) == {"good-1": "finished", "diverges-1": "diverged", "fails-1": "failed"}
    failed = next(result for result in made.results.runs if result.item.arm == "fails")
    assert "nowhere" in failed.words
    said = capsys.readouterr().out
    assert "fails-1 failed" in said
    assert "nowhere" in said
    assert (made.folder / "report.html").exists()

    good = made.folder / "good-1"
    before = (good / "metrics.jsonl").read_bytes()
    assert "finished" in statuses(gptlab.study(file, "seeds=[1,2]").folder)["good-2"]
    assert (good / "metrics.jsonl").read_bytes() == before, "what there was is not made again"
    tries = {name: len(Claims(made.folder).all(name)) for name in ("good-1", "diverges-1", "fails-1")}
    assert tries == {"good-1": 1, "diverges-1": 1, "fails-1": 2}, "only what failed is tried again"


@pytest.mark.slow
def test_runs_start_from_those_that_come_first_and_from_those_beside_the_study(here: Path) -> None:
    gptlab.train("numbers.toml", name="mine")
    first = {"base": {"training.max_steps": 4}}
    arms = {"from-first": {"start": "base"}, "from-mine": {"start": "mine"}}
    (here / "tuned.toml").write_text(to_toml({
        **{key: value for key, value in RECIPE.items() if key not in ("model", "tokenizer")}, "start": "base",
        "model": {"dropout": 0.0},
    }))  # fmt: skip
    first["base"]["recipe"] = "numbers.toml"
    made = gptlab.study(write(here, recipe="tuned.toml", first=first, arms=arms))
    assert statuses(made.folder) == {"base": "finished", "from-first-1": "finished", "from-mine-1": "finished"}
    folders = {
        arm: Path(read.run.origin["start"]["folder"])
        for read in made.results.runs if (arm := read.item.arm) in arms
    }  # fmt: skip
    assert made.folder.absolute() / "base" in folders["from-first"].parents
    assert (here / "runs" / "mine").absolute() in folders["from-mine"].parents


def test_runs_of_another_study_are_refused(here: Path) -> None:
    file = write(here, arms={"a": {}})
    gptlab.study(file)
    with pytest.raises(RunError, match=r"few/a-1 is a run of another recipe:\n  optimizer.learning_rate: "):
        open_study(load_study(file, "optimizer.learning_rate=1e-3"), Path("runs"))
    assert "learning_rate" not in (here / "runs/few/study.toml").read_text(), "what there is stays as it is"


@pytest.mark.slow
def test_a_longer_length_continues_every_run(here: Path) -> None:
    file = write(here, arms={"a": {}})
    gptlab.study(file)
    made = gptlab.study(file, "training.max_steps=20")
    (result,) = made.results.runs
    assert (result.status, result.measures["steps"], len(result.claims)) == ("finished", 20, 2)


def test_a_shorter_length_is_refused_and_nothing_is_changed(here: Path) -> None:
    file = write(here, arms={"a": {}, "b": {"model.n_embd": 32}})
    folder = gptlab.study(file).folder
    files = [*folder.glob("*.toml"), *folder.glob("*/state.json")]
    before = [path.read_bytes() for path in files]
    with pytest.raises(RunError, match=r"finished with training.max_steps = 12, and 4 is asked for"):
        open_study(load_study(file, "training.max_steps=4"), Path("runs"))
    assert [path.read_bytes() for path in files] == before
    assert set(statuses(folder).values()) == {"finished"}


DYING = """#!{python}
import os, pathlib, runpy, signal, sys, threading, time

def die():
    mine, work = f'"process": {{os.getpid()}}', pathlib.Path("runs/few/work")
    while not any(mine in claim.read_text() for claim in work.glob("*.json")):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=die, daemon=True).start()
del sys.argv[1:3]
runpy.run_module("gptlab.studies.worker", run_name="__main__")
"""
"""A Python in which a worker is killed as soon as it has claimed its run, as where memory is short."""


def test_a_worker_that_keeps_dying_ends_as_a_failure(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = here / "python"
    python.write_text(DYING.format(python=sys.executable))
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    (result,) = gptlab.study(write(here, arms={"a": {}})).results.runs
    assert result.status == "failed"
    assert "killed" in result.words
    assert [claim.outcome for claim in result.claims] == ["killed"] * 3


def test_a_worker_that_cannot_begin_is_an_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(GptlabError, match=r"a-1: its worker ended before it had begun; .*a-1.log says why"):
        gptlab.study(write(here, arms={"a": {}}))


@pytest.mark.slow
def test_a_search_goes_on_with_more_trials_and_proves_its_best_anew(here: Path) -> None:
    space = {"optimizer.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}, "model.n_embd": [8, 16, 32]}
    file = write(here, search={"trials": 2, "sampler": "random", "confirm": [5], "space": space})
    first = gptlab.study(file)
    assert len(first.results.trials) == 2
    again = gptlab.study(file, "search.trials=5").results
    assert {result.status for result in again.runs} == {"finished"}
    best = min(again.trials, key=lambda result: result.score)
    proof = next(result for result in again.runs if result.item.arm == "best")
    assert values_of(proof, again.study) == values_of(best, again.study)
    moved = list(first.folder.glob("best-5.*"))
    assert len(moved) == (best.item.round >= 2), "what proved another one made room"
    longer = gptlab.study(file, "search.trials=5", "training.max_steps=16").results
    assert {result.measures["steps"] for result in longer.runs} == {16}
    with pytest.raises(RunError, match="ranked by another metric"):
        open_study(load_study(file, "metric=loss", "search.trials=5"), Path("runs"))


def start(here: Path, *options: str) -> subprocess.Popen[str]:
    """`gptlab study` in a process of its own, which Ctrl-C reaches."""
    command = [sys.executable, "-c", "from gptlab.cli import main; main()", "study", "study.toml", *options]
    return subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until(happens: Callable[[], object], seconds: float = 300) -> None:
    started = time.monotonic()
    while not happens():
        assert time.monotonic() - started < seconds, "it did not happen"
        time.sleep(0.02)


def step_of(run: Path) -> int:
    """How many steps a run has logged."""
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    return sum('"event": "step"' in line for line in lines)


@pytest.mark.slow
def test_killed_workers_and_two_commands_lose_nothing_and_do_nothing_twice(here: Path) -> None:
    """Two commands share one study; a worker and then a whole command are killed without warning. Every run is made
    once, and the one whose worker was killed has the weights that it has undisturbed, bit for bit."""
    many = {"training.max_steps": 400, "checkpoints.every_steps": 20}
    file = write(here, arms={"a": {}, "b": {"model.n_embd": 32}}, seeds=[1, 2], changes=many)
    folder = here / "runs" / "few"
    commands = [start(here, "--workers", "2"), start(here)]
    claims = Claims(folder)

    until(lambda: step_of(folder / "a-1") > 60)
    held = claims.held("a-1")
    assert held
    os.kill(held.process, signal.SIGKILL)
    until(lambda: (last := claims.last("a-1")) and last.number == 2)
    until(lambda: step_of(folder / "a-1") > 100)
    commands[0].kill()
    out = commands[1].communicate(timeout=900)[0]
    assert commands[1].returncode == 0, out

    assert set(statuses(folder).values()) == {"finished"}
    assert len(claims.all("a-1")) >= 2
    for result in read_results(folder).runs:
        steps = [line["step"] for line in result.metrics if line["event"] == "step"]
        assert steps == list(range(1, 401)), result.item.name
        assert [claim.outcome for claim in result.claims].count("finished") == 1
    undisturbed = gptlab.study(file, "seeds=[1]", name="undisturbed").folder
    weights = [at / "a-1" / "checkpoints" / "000400" / "model.safetensors" for at in (folder, undisturbed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
def test_asked_to_stop_all_runs_save_and_the_same_command_goes_on(here: Path) -> None:
    write(here, arms={"a": {}, "b": {}}, changes={"training.max_steps": 3000, "checkpoints.every_steps": 3000})
    folder = here / "runs" / "few"
    command = start(here, "--workers", "2")
    until(lambda: min(step_of(folder / "a-1"), step_of(folder / "b-1")) > 20)
    command.send_signal(signal.SIGTERM)
    out = command.communicate(timeout=300)[0]
    assert command.returncode == 130, out
    assert "the same command goes on" in out
    assert set(statuses(folder).values()) == {"interrupted"}
    for name in ("a-1", "b-1"):
        state = json.loads((folder / name / "state.json").read_text())
        assert state["status"] == "interrupted"
        assert (folder / name / "checkpoints" / f"{state['step']:06d}").is_dir(), "what it had done is saved"
    made = gptlab.study("study.toml", "training.max_steps=3000", "checkpoints.every_steps=3000")
    assert set(statuses(made.folder).values()) == {"finished"}
