"""Kernels are built once, by one process, for this machine; and where they cannot be, torch does their work."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gptlab.kernels import native

COMPILER = native.find_compiler()
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="this machine has no C++ compiler")


@pytest.fixture(autouse=True)
def _forget():
    """What was loaded is remembered for the life of the process; here every test begins anew."""
    native._load.cache_clear()
    yield
    native._load.cache_clear()


def counting_compiler(folder: Path, body: str) -> Path:
    """A compiler that writes a line into `folder`/calls each time it compiles, and then does `body`."""
    script = folder / "counted-c++"
    script.write_text(
        f'#!/bin/sh\ncase "$1" in --version) exec {COMPILER} --version;; esac\necho called >> {folder}/calls\n{body}\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


@needs_compiler
def test_a_library_is_built_once_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", str(counting_compiler(tmp_path, f'exec {COMPILER} "$@"')))
    assert native.library("softmax") is not None
    native._load.cache_clear()
    assert native.library("softmax") is not None
    assert (tmp_path / "calls").read_text() == "called\n"
    assert [path.suffix for path in (tmp_path / "kernels").iterdir() if path.suffix != ".lock"] == [".so"]


@needs_compiler
def test_of_many_processes_one_builds(tmp_path):
    compiler = counting_compiler(tmp_path, f'sleep 1; exec {COMPILER} "$@"')
    code = "from gptlab.kernels import native; assert native.library('softmax') is not None, native.reason('softmax')"
    environment = os.environ | {"GPTLAB_CACHE": str(tmp_path), "CXX": str(compiler)}
    processes = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(4)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0, 0]
    assert (tmp_path / "calls").read_text() == "called\n"


@needs_compiler
def test_another_compiler_or_source_builds_its_own(tmp_path, monkeypatch):
    first = native.build("softmax", str(COMPILER), tmp_path)
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-DOTHER"))
    assert native.build("softmax", str(COMPILER), tmp_path) != first


def test_without_a_compiler_torch_does_the_work(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert native.library("softmax") is None
    assert native.reason("softmax") == "no C++ compiler"


@needs_compiler
def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", str(counting_compiler(tmp_path, "echo no disk left >&2; exit 1")))
    assert native.library("softmax") is None
    assert "failed: no disk left" in native.reason("softmax")
    assert not list((tmp_path / "kernels").glob("*.so"))


@needs_compiler
def test_a_cache_that_is_a_file_is_no_crash(tmp_path, monkeypatch):
    (tmp_path / "kernels").write_text("")
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path))
    assert native.library("softmax") is None
    assert native.reason("softmax")


def test_the_user_can_ask_for_torch(monkeypatch):
    monkeypatch.setenv("GPTLAB_KERNELS", "torch")
    assert native.library("softmax") is None
    assert native.reason("softmax") == "GPTLAB_KERNELS=torch"


class TestKernels:
    """What a run decides once and keeps."""

    def test_a_gpu_has_none(self):
        said: list[str] = []
        with native.kernels((), None, said.append) as chosen:
            assert chosen == "torch"
        assert not said

    @needs_compiler
    def test_a_new_run_takes_them(self):
        said: list[str] = []
        with native.kernels(("softmax",), None, said.append) as chosen:
            assert chosen == "C++"
            assert native.library("softmax") is not None
        assert not said

    @needs_compiler
    def test_a_run_that_began_with_torch_goes_on_with_it(self):
        said: list[str] = []
        with native.kernels(("softmax",), "torch", said.append) as chosen:
            assert chosen == "torch"
            assert native.library("softmax") is None
        assert native.library("softmax") is not None
        assert not said

    @pytest.mark.parametrize("kept", [None, "C++"])
    def test_where_they_are_missing_one_line_says_so(self, monkeypatch, kept):
        monkeypatch.setenv("CXX", "no-such-compiler")
        said: list[str] = []
        with native.kernels(("softmax",), kept, said.append) as chosen:
            assert chosen == "torch"
        assert len(said) == 1
        assert "no C++ compiler" in said[0]
        assert ("it began with them" in said[0]) == (kept == "C++")
