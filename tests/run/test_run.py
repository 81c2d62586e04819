"""A run directory: what is written is read back, what is damaged is passed over, what is mirrored comes back."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gptlab.errors import CheckpointError, RunError
from gptlab.run.checkpoint import has_state, load_state
from gptlab.run.files import write_text
from gptlab.run.run import Run

Save = Callable[..., Path]
RECIPE = {"name": "a", "training": {"max_steps": 5}, "data": {"sources": [{"path": "b.txt"}]}}
ORIGIN = {"command": "gptlab train a", "versions": {"torch": "2.13"}}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "runs" / "a", RECIPE, ORIGIN)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_new_run_opens_again(run: Run) -> None:
    again = Run.open(run.folder)
    assert (again.name, again.recipe, again.origin) == ("a", RECIPE, ORIGIN)
    assert (again.state, again.evaluation, again.metrics(), again.samples(), again.steps()) == ({}, {}, [], [], [])


def test_a_run_is_never_created_over_another(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is a run already"):
        Run.create(run.folder, RECIPE, ORIGIN)
    with pytest.raises(RunError, match=rf"{run.folder}: there is a run already"):
        Run.create(tmp_path / "elsewhere" / "a", RECIPE, ORIGIN, mirror=run.folder.parent)


def test_what_is_no_run_is_refused_with_the_nearest_name(run: Run) -> None:
    Run.create(run.folder.parent / "mini-gpt", RECIPE, ORIGIN)
    with pytest.raises(RunError, match=r"mini-gtp: there is no such run \(did you mean 'mini-gpt'\?\)"):
        Run.open(run.folder.parent / "mini-gtp")
    (run.folder.parent / "empty").mkdir()
    with pytest.raises(RunError, match=r"empty: has no recipe\.toml, so it is no run"):
        Run.open(run.folder.parent / "empty")


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RunError, match="cannot be made: Not a directory"):
        Run.create(tmp_path / "runs" / "a", RECIPE, ORIGIN)


def test_state_recipe_and_evaluation_are_replaced(run: Run) -> None:
    run.write_state({"step": 1, "best": math.inf})
    run.write_state({"step": 2, "best": math.inf, "note": "Zürich"})
    assert run.state == {"step": 2, "best": math.inf, "note": "Zürich"}
    run.write_evaluation({"validation": {"loss": 3.25}})
    assert run.evaluation == {"validation": {"loss": 3.25}}
    assert run.recipe == RECIPE
    run.write_recipe({"name": "longer"})
    assert run.recipe == Run.open(run.folder).recipe == {"name": "longer"}
    assert {path.name for path in run.folder.iterdir()} == {
        "recipe.toml", "origin.json", "state.json", "evaluation.json", "checkpoints",
    }  # fmt: skip


# Lines


def test_lines_come_back_and_are_json_whatever_the_numbers(run: Run) -> None:
    run.log({"event": "start", "step": 0, "device": "CPU"})
    run.log({"event": "step", "step": 1, "loss": math.nan, "parts": [math.inf, -math.inf, 0.1]})
    for line in (run.folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # NaN is no JSON
    assert [record["event"] for record in run.metrics()] == ["start", "step"]
    (record,) = run.metrics("step")
    assert math.isnan(record["loss"])
    assert record["parts"] == [math.inf, -math.inf, 0.1]


def test_samples_are_text_even_where_they_look_like_numbers(run: Run) -> None:
    samples = [{"step": 1, "prompt": "1/0 =", "text": "NaN", "stopped": "eos"}, {"step": 1, "text": "a\nb\u2028c\x85"}]
    run.log_samples(samples)
    run.log_samples(samples)
    assert run.samples() == samples * 2


def test_a_torn_last_line_is_left_out_and_any_other_is_an_error(run: Run) -> None:
    run.log({"event": "step", "step": 1})
    run.log({"event": "step", "step": 2, "text": "ü"})
    file = run.folder / "metrics.jsonl"
    for length in range(1, 12):
        os.truncate(file, file.stat().st_size - 1)
        assert [record["step"] for record in run.metrics()] == [1], length
    file.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2: is not JSON"):
        run.metrics()


def test_a_line_torn_inside_a_character_is_left_out(run: Run) -> None:
    run.log({"step": 1})
    with (run.folder / "metrics.jsonl").open("ab") as file:
        file.write('{"step": 2, "text": "ü'.encode()[:-1])
    assert run.metrics() == [{"step": 1}]


def test_cut_goes_back_to_a_step(run: Run) -> None:
    for step in range(6):
        run.log({"event": "step", "step": step, "loss": math.nan})
        run.log_samples([{"step": step, "text": "x"}, {"step": step, "text": "NaN"}])
    os.truncate(run.folder / "metrics.jsonl", (run.folder / "metrics.jsonl").stat().st_size - 3)
    run.cut(3)
    run.log({"event": "step", "step": 4, "loss": 1.0})
    assert [record["step"] for record in run.metrics()] == [0, 1, 2, 3, 4]
    assert math.isnan(run.metrics()[0]["loss"])
    assert [sample["step"] for sample in run.samples()] == [0, 0, 1, 1, 2, 2, 3, 3]
    run.cut(-1)
    assert (run.metrics(), run.samples()) == ([], [])


# Checkpoints


def test_the_newest_and_the_best_are_kept(run: Run, save: Save) -> None:
    for step in range(1, 7):
        assert save(run, step, best=step == 2) == run.folder / "checkpoints" / f"{step:06d}"
    assert run.steps() == [2, 5, 6]
    assert [has_state(run.folder / "checkpoints" / f"{step:06d}") for step in (2, 5, 6)] == [False, True, True]
    assert run.checkpoint() == run.checkpoint("best") == run.folder / "checkpoints/000002"
    assert run.checkpoint("last") == run.checkpoint(6) == run.folder / "checkpoints/000006"
    save(run, 7, best=True)
    assert run.steps() == [6, 7]  # what was the best is an old one like any other


def test_only_one_is_kept_where_one_is_asked_for(run: Run, save: Save) -> None:
    for step in (10, 20, 1_000_000, 1_000_001):
        save(run, step, keep=1)
    assert run.steps() == [1_000_001]


def test_a_checkpoint_that_is_not_there_is_said_with_those_that_are(run: Run, save: Save) -> None:
    with pytest.raises(RunError, match="has no checkpoint yet; there is none"):
        run.checkpoint()
    save(run, 3)
    assert run.checkpoint() == run.checkpoint("last")
    with pytest.raises(RunError, match="has no checkpoint 'best'; there is 3"):
        run.checkpoint("best")
    with pytest.raises(RunError, match="has no checkpoint 4; there is 3"):
        run.checkpoint(4)
    save(run, 5)
    flip(run.folder / "checkpoints/000005/model.safetensors")
    with pytest.raises(CheckpointError, match=r"checkpoint 5 is damaged: .*model\.safetensors: is not.*; there is 3"):
        run.checkpoint()


def truncated(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1000)


def half_deleted(folder: Path) -> None:
    (folder / "optimizer.safetensors").unlink()
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (truncated, r"model\.safetensors: has 1,000 bytes"),
        (lambda folder: flip(folder / "optimizer.safetensors"), r"optimizer\.safetensors: is not what was written"),
        (half_deleted, r"\.(json|safetensors): is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), r"has no manifest\.json"),
        (lambda folder: flip(folder / "manifest.json"), r"manifest\.json: is damaged|is not what was|is missing|bytes"),
    ],
    ids=["truncated", "flipped-bit", "half-deleted", "no-manifest", "flipped-manifest"],
)
def test_a_damaged_newest_is_passed_over_and_said(run: Run, save: Save, damage: Callable, why: str) -> None:
    save(run, 1)
    older = save(run, 2)
    damage(save(run, 3))
    said: list[str] = []
    assert run.newest_valid(said.append) == older
    assert load_state(older).step == 2
    assert len(said) == 1
    assert said[0].startswith("checkpoint 3 is passed over: ")
    assert re.search(why, said[0])


def test_going_on_behind_a_damaged_one_never_prunes_what_is_valid(run: Run, save: Save) -> None:
    """The trap: a damaged newer folder counted as the newest, and the one just written removed as old."""
    save(run, 10, keep=1)
    truncated(save(run, 20, keep=2))
    assert run.newest_valid(lambda _: None) == run.folder / "checkpoints/000010"
    written = save(run, 12, keep=1)
    assert run.steps() == [12]
    assert run.newest_valid(pytest.fail) == written


def test_a_best_without_its_optimizer_is_not_continued(run: Run, save: Save) -> None:
    save(run, 1, keep=1, best=True)
    truncated(save(run, 2, keep=1))
    said: list[str] = []
    assert run.newest_valid(said.append) is None
    assert said[1] == "checkpoint 1 is passed over: it keeps no optimizer state"
    save(run, 1, keep=1)
    assert run.newest_valid(said.append) == run.folder / "checkpoints/000001"


def test_what_a_killed_save_left_is_cleared_away(run: Run, save: Save) -> None:
    folder = save(run, 1)
    shutil.copytree(folder, folder.with_name(".000002.writing"))
    assert run.steps() == [1]
    assert run.newest_valid(pytest.fail) == folder
    assert [path.name for path in folder.parent.iterdir()] == ["000001"]


# Lock


def test_one_process_trains_at_a_time_and_a_kill_lets_go(run: Run) -> None:
    context = multiprocessing.get_context("fork")
    held, never = context.Event(), context.Event()

    def hold() -> None:
        with Run.open(run.folder).lock():
            held.set()
            never.wait()

    child = context.Process(target=hold)
    child.start()
    assert held.wait(10)
    with pytest.raises(RunError, match="is being trained by another process"), run.lock():
        pytest.fail("the lock is held by another")
    child.kill()
    child.join()
    with run.lock():
        pass
    with run.lock():
        assert run.state == {}


def test_two_processes_may_write_one_file(tmp_path: Path) -> None:
    """As when two commands end a study at the same moment: every write ends, and what is there is whole."""
    file, texts = tmp_path / "report.html", ["a" * 50_000, "b" * 50_000]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda n: write_text(file, texts[n % 2]), range(200)))
    assert file.read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
