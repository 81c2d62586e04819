"""A kill at any moment, a disk that is full: what was there before is there still."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from gptlab.errors import CheckpointError
from gptlab.model.gpt import GPT
from gptlab.run.checkpoint import (
    TrainingState,
    load_state,
    remove_folder,
    repair_folders,
    save_checkpoint,
    verify_folder,
    write_folder,
)
from gptlab.text.tokenizer import Tokenizer

StateAt = Callable[[int], TrainingState]
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and resource limits")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def hidden(parent: Path) -> list[str]:
    return [path.name for path in parent.iterdir() if path.name.startswith(".")]


# Kills


def write_version(folder: Path, version: int) -> None:
    """A folder of several files that all say the same version."""

    def write(temporary: Path) -> None:
        (temporary / "inner").mkdir()
        for number in range(6):
            (temporary / ("inner" if number % 2 else ".") / f"{number}.bin").write_bytes(b"%012d" % version * 5_000)

    write_folder(folder, write)


def version_of(folder: Path) -> int:
    """The version of a folder that verifies; fails where files of two versions stand together."""
    verify_folder(folder)
    found = {content[:12] for name, content in contents(folder).items() if name != "manifest.json"}
    assert len(found) == 1
    return int(found.pop())


@posix
@pytest.mark.parametrize("keep", [1, 2])
def test_sigkill_at_any_moment_leaves_whole_folders(tmp_path: Path, keep: int) -> None:
    """keep = 1: one name, replaced again and again. keep = 2: new names, the one before the last removed."""
    newest, started = 1, time.perf_counter()
    write_version(tmp_path / f"{newest if keep == 2 else 0:06d}", newest)
    one_save = time.perf_counter() - started
    context = multiprocessing.get_context("fork")
    said, begun = context.Pipe(duplex=False)

    def save_for_ever() -> None:
        begun.send(None)
        for version in range(newest + 1, 1_000_000):
            write_version(tmp_path / f"{version if keep == 2 else 0:06d}", version)
            if keep == 2:
                remove_folder(tmp_path / f"{version - 2:06d}")

    generator = random.Random(keep)
    for _ in range(12):
        child = context.Process(target=save_for_ever)
        child.start()
        assert said.poll(60)  # a large process is forked in more time than a save takes
        said.recv()
        time.sleep(generator.random() * 8 * one_save)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        for visible in tmp_path.glob("[0-9]*"):
            version_of(visible)  # nothing is half there, even before anything is repaired
        repair_folders(tmp_path)
        assert hidden(tmp_path) == []
        versions = [version_of(visible) for visible in tmp_path.iterdir()]
        assert max(versions) >= newest
        newest = max(versions)
    assert newest > 1


# A full disk


@posix
def test_a_disk_that_takes_no_more_is_said_and_the_old_one_lives(tmp_path: Path) -> None:
    """The limit on a file's size stands for the disk: the write itself fails, half-way."""
    import resource

    folder = tmp_path / "000005"
    write_version(folder, 1)
    before = contents(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError) as caught:
            write_folder(folder, lambda temporary: (temporary / "big").write_bytes(bytes(1_000_000)) and None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = str(caught.value)
    assert message.startswith(f"{folder}: could not be written: File too large. It needs at least 100 kB, ")
    assert "are free there" in message
    assert "The checkpoints before it are untouched" in message
    assert contents(folder) == before
    assert hidden(folder.parent) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if sys.platform != "linux" or shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root can mount a small file system; the test above fills a disk without")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here ({done.stderr.decode().strip()})")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_found_before_and_while_writing(
    small_disk: Path, model: GPT, tokenizer: Tokenizer, state_at: StateAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = small_disk / "000001", small_disk / "000002"
    save_checkpoint(older, model, tokenizer, state_at(1))
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - 60_000))

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("nothing may be written where the space is known to be too small")

    state = state_at(2)
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "save", refuse)  # the model alone would fit
        with pytest.raises(CheckpointError, match="No space left on device") as caught:
            save_checkpoint(newer, model, tokenizer, state)
    assert f"{newer}: could not be written: No space left on device. It needs at least 1" in str(caught.value)
    assert "are free there" in str(caught.value)

    with pytest.raises(CheckpointError, match="No space left on device"):
        write_folder(newer, lambda temporary: (temporary / "big").write_bytes(bytes(100_000)) and None)
    assert not newer.exists()
    assert hidden(small_disk) == []
    verify_folder(older)
    assert load_state(older).step == 1
    (small_disk / "ballast").unlink()
    save_checkpoint(newer, model, tokenizer, state)
    assert load_file(newer / "random.safetensors").keys() == {"cpu"}
