"""The mirror: what the run has is there too, a failing drive ends nothing, and a lost run comes back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gptlab.run.checkpoint import load_state, verify_folder
from gptlab.run.run import Run

Save = Callable[..., Path]
RECIPE = {"name": "a", "training": {"max_steps": 5}}
ORIGIN = {"command": "gptlab train a"}


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    (tmp_path / "drive").mkdir()
    return tmp_path / "drive"


@pytest.fixture
def mirrored(tmp_path: Path, drive: Path) -> Run:
    return Run.create(tmp_path / "runs" / "a", RECIPE, ORIGIN, mirror=drive, warn=pytest.fail)


def test_the_mirror_holds_what_the_run_holds(mirrored: Run, drive: Path, save: Save) -> None:
    for step in range(1, 6):
        mirrored.log({"event": "step", "step": step})
        mirrored.log_samples([{"step": step, "text": "x"}])
        save(mirrored, step, best=step == 2)
        mirrored.write_state({"step": step})
        assert files(drive / "a") == files(mirrored.folder)
    copy = Run.open(drive / "a")
    assert copy.steps() == [2, 4, 5]
    for step in copy.steps():
        verify_folder(copy.checkpoint(step))


def test_a_run_whose_folder_is_gone_comes_back(mirrored: Run, drive: Path, save: Save) -> None:
    for step in range(1, 5):
        mirrored.log({"event": "step", "step": step})
        save(mirrored, step, best=step == 1)
    before = files(mirrored.folder)
    assert Run.restore(mirrored.folder, drive) is None  # nothing is missing
    shutil.rmtree(mirrored.folder)
    again = Run.restore(mirrored.folder, drive, warn=pytest.fail)
    assert again is not None
    assert files(again.folder) == before
    assert load_state(again.newest_valid(pytest.fail)).step == 4
    save(again, 5)
    assert files(drive / "a") == files(again.folder)  # it is mirrored as before


def test_restoring_starts_again_where_it_was_killed(mirrored: Run, drive: Path, save: Save) -> None:
    for step in (1, 2):
        save(mirrored, step)
    before = files(mirrored.folder)
    (mirrored.folder / "recipe.toml").unlink()
    shutil.rmtree(mirrored.folder / "checkpoints/000001")
    os.truncate(mirrored.folder / "checkpoints/000002/model.safetensors", 1000)
    (mirrored.folder / "checkpoints/000002/manifest.json").unlink()
    assert Run.restore(mirrored.folder, drive) is not None
    assert files(mirrored.folder) == before


def test_what_is_damaged_in_the_mirror_is_not_restored(mirrored: Run, drive: Path, save: Save) -> None:
    for step in (1, 2):
        save(mirrored, step)
    shutil.rmtree(mirrored.folder)
    damaged = drive / "a/checkpoints/000002/model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    said: list[str] = []
    again = Run.restore(mirrored.folder, drive, warn=said.append)
    assert again is not None
    assert again.steps() == [1]
    assert "000002/model.safetensors: is not what was written" in said[0]


def test_nothing_to_restore(tmp_path: Path, drive: Path) -> None:
    assert Run.restore(tmp_path / "runs/b", drive) is None
    assert not (tmp_path / "runs/b").exists()


def test_a_mirror_that_fails_is_a_warning_and_catches_up(tmp_path: Path, drive: Path, save: Save) -> None:
    said: list[str] = []
    run = Run.create(tmp_path / "runs" / "a", RECIPE, ORIGIN, mirror=drive, warn=said.append)
    save(run, 1)
    drive.rename(tmp_path / "unmounted")
    save(run, 2)
    run.write_state({"step": 2})
    assert len(said) == 1  # said once, not at every write
    assert f"the run goes on without: {drive} is not there (is the drive mounted?)" in said[0]
    assert not drive.exists()  # nothing is written where the drive should be
    (tmp_path / "unmounted").rename(drive)
    save(run, 3)
    assert len(said) == 1  # said once, not at every write
    assert files(drive / "a") == files(run.folder)


def test_a_mirror_keeps_what_it_has_until_the_new_one_has_arrived(mirrored: Run, drive: Path, save: Save) -> None:
    said: list[str] = []
    save(mirrored, 1, keep=1)
    mirrored = Run.open(mirrored.folder, mirror=drive, warn=said.append)
    shutil.rmtree(drive / "a/checkpoints/000001")
    (drive / "a/checkpoints/000001").write_text("no folder can be written here")
    (drive / "a/checkpoints/.000002.writing").write_text("nor here")
    save(mirrored, 2, keep=1)
    assert len(said) == 1
    assert (drive / "a/checkpoints/000001").exists()
    assert mirrored.steps() == [2]
