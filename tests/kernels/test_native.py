"""Kernels are built once, by one process, for this machine; and where they cannot be, torch does their work."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gptlab.errors import UserError
from gptlab.kernels import native

COMMAND = native.find_compiler() or ()
COMPILER = shlex.join(COMMAND)
needs_compiler = pytest.mark.skipif(not COMMAND, reason="this machine has no C++ compiler")


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    """What was loaded is remembered for the life of the process; here every test begins anew."""
    monkeypatch.delenv("GPTLAB_KERNELS", raising=False)
    native._load.cache_clear()
    yield
    native._load.cache_clear()


def counting_compiler(folder: Path, body: str) -> Path:
    """A compiler that writes a line into `folder`/calls each time it compiles, and then does `body`; how often its
    version is asked stands in `folder`/versions."""
    script = folder / "counted-c++"
    script.write_text(
        f'#!/bin/sh\ncase "$1" in --version) echo asked >> {folder}/versions; exec {COMPILER} --version;; esac\n'
        f"echo called >> {folder}/calls\n{body}\n"
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
    first = native.build("softmax", COMMAND, tmp_path)
    assert native.build("softmax", (*COMMAND, "-DOTHER"), tmp_path) != first
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-DOTHER"))
    assert native.build("softmax", COMMAND, tmp_path) != first


def test_without_a_compiler_torch_does_the_work(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    assert native.library("softmax") is None
    assert native.reason("softmax") == "no C++ compiler"
    with pytest.raises(RuntimeError, match=r"no kernel softmax: no C\+\+ compiler"):
        native.required("softmax")


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ("no-such-compiler -m64", "$CXX is no-such-compiler -m64, which is not there"),
        ("'g++", "$CXX is 'g++: No closing quotation"),
    ],
)
def test_a_compiler_that_is_named_and_not_there_is_named(monkeypatch, wanted, why):
    monkeypatch.setenv("CXX", wanted)
    assert native.library("softmax") is None
    assert native.reason("softmax") == why


def test_gcc_comes_first(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(native.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert native.find_compiler() == ("/usr/bin/g++",)


@needs_compiler
def test_the_compiler_may_have_arguments(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path))
    wrapper = tmp_path / "wrapper"  # as ccache is
    wrapper.write_text(f'#!/bin/sh\nshift\necho "$1" >> {tmp_path}/arguments\nexec {COMPILER} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CXX", f"{wrapper} g++ -DARGUMENT")
    assert native.library("softmax") is not None
    assert (tmp_path / "arguments").read_text() == "-DARGUMENT\n" * 2  # its version, and a source


@needs_compiler
def test_its_version_is_asked_once(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", str(counting_compiler(tmp_path, f'exec {COMPILER} "$@"')))
    with native.kernels(("softmax", "gelu"), None, print) as chosen:
        assert chosen == "C++"
    assert (tmp_path / "calls").read_text() == "called\n" * 2
    assert (tmp_path / "versions").read_text() == "asked\n"


@needs_compiler
@pytest.mark.parametrize("damage", [b"", b"no library", None], ids=["empty", "text", "half"])
def test_a_damaged_library_is_built_once_more(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", str(counting_compiler(tmp_path, f'exec {COMPILER} "$@"')))
    library = native.build("softmax", native.find_compiler() or (), tmp_path / "kernels")
    library.write_bytes(library.read_bytes()[:40] if damage is None else damage)
    assert native.library("softmax") is not None
    assert (tmp_path / "calls").read_text() == "called\n" * 2


@needs_compiler
def test_a_compiler_that_makes_no_library_is_tried_twice_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path))
    last = 'for last; do :; done; echo no library > "$last"'
    monkeypatch.setenv("CXX", str(counting_compiler(tmp_path, last)))
    assert native.library("softmax") is None
    assert "softmax" in native.reason("softmax")
    assert (tmp_path / "calls").read_text() == "called\n" * 2


@needs_compiler
def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", str(counting_compiler(tmp_path, "echo no disk left >&2; exit 1")))
    assert native.library("softmax") is None
    assert native.reason("softmax").startswith("$CXX, ")
    assert native.reason("softmax").endswith("counted-c++ failed: no disk left")
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


@pytest.mark.parametrize("names", [(), ("softmax",)])
def test_what_the_user_asks_for_must_be_there(monkeypatch, names):
    monkeypatch.setenv("GPTLAB_KERNELS", "Torch")
    with pytest.raises(UserError, match="GPTLAB_KERNELS=Torch: wanted torch, or nothing"):
        native.library("softmax")
    with pytest.raises(UserError, match="GPTLAB_KERNELS"), native.kernels(names, None, print):
        pass
    monkeypatch.setenv("GPTLAB_KERNELS", "")
    assert "GPTLAB_KERNELS" not in native.reason("softmax")


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
        assert said[0].startswith("the C++ kernels: $CXX is no-such-compiler, which is not there")
        assert ("it began with them" in said[0]) == (kept == "C++")

    @needs_compiler
    def test_one_that_is_missing_leaves_the_others(self, tmp_path, monkeypatch):
        monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path))
        body = f'case "$*" in *gelu.cpp*) echo too old >&2; exit 1;; esac; exec {COMPILER} "$@"'
        monkeypatch.setenv("CXX", str(counting_compiler(tmp_path, body)))
        said: list[str] = []
        with native.kernels(("softmax", "gelu"), None, said.append) as chosen:
            assert chosen == "C++"
            assert native.library("softmax") is not None
            assert native.library("gelu") is None
        assert len(said) == 1
        assert said[0].startswith("the C++ kernels gelu: ")
        assert "too old" in said[0]
