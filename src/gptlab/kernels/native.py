"""C++ built on first use, in seconds, for this machine's own instruction set.

Each source is plain C++ over pointers: it includes no header of torch's and links nothing but OpenMP, whose
threads are then torch's own (both load libgomp.so.1, of which a process has one). The library is kept in the
user's cache under everything that it depends on, so another machine, compiler or version builds its own.
Where there is no compiler, or it fails, `library` gives None and `reason` says why: the caller's pure-torch
path does the same work. GPTLAB_KERNELS=torch asks for that.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from gptlab.hub import cache_folder

if TYPE_CHECKING:
    from torch import Tensor

FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-fopenmp")
"""No -ffast-math: infinities and NaNs must come out as torch gives them. No errno and no traps, or no loop over an
exponential is made a vector one."""

PATIENCE_SECONDS = 120

_torch_only: ContextVar[str] = ContextVar("torch_only", default="")


def library(name: str) -> ctypes.CDLL | None:
    """The library of `name`.cpp, built if need be; None where it cannot be had (see `reason`)."""
    return None if _torch_only.get() else _load(name)[0]


def reason(name: str) -> str:
    """Why there is no library of this name, in a few words; "" where there is one."""
    return _torch_only.get() or _load(name)[1]


@contextmanager
def torch_only(why: str) -> Iterator[None]:
    """Inside, no library is used, and `why` is the reason; an empty one changes nothing."""
    token = _torch_only.set(why or _torch_only.get())
    try:
        yield
    finally:
        _torch_only.reset(token)


@contextmanager
def kernels(names: Sequence[str], kept: str | None, say: Callable[[str], None]) -> Iterator[str]:
    """The choice of a run, for as long as it lasts: "C++" where these libraries are there, else "torch" and one line.

    They agree to rounding only, so a run goes on with what it began with: `kept` is an earlier choice. Without names
    (on a GPU) it is "torch", and nothing is said.
    """
    if not names:
        yield "torch"
        return
    with ThreadPoolExecutor() as builders:  # where they have to be built, side by side
        list(builders.map(_load, names))
    missing = next(filter(None, map(reason, names)), "") if kept != "torch" else "as this run began"
    if missing and kept != "torch":
        again = "; it began with them, so what follows is equal to rounding only" if kept == "C++" else ""
        say(f"the C++ kernels: {missing}; torch does their work, more slowly{again}")
    with torch_only(missing):
        yield "torch" if missing else "C++"


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where the tensor's elements begin; a null pointer for none."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


@functools.cache
def _load(name: str) -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("GPTLAB_KERNELS") == "torch":
        return None, "GPTLAB_KERNELS=torch"
    compiler = find_compiler()
    if compiler is None:
        return None, "no C++ compiler"
    try:
        return ctypes.CDLL(str(build(name, compiler, cache_folder() / "kernels"))), ""
    except subprocess.CalledProcessError as error:
        lines = str(error.stderr).strip().splitlines()
        return None, f"{compiler} failed: {lines[0] if lines else error}"
    except (OSError, TimeoutError, subprocess.TimeoutExpired) as error:
        return None, str(error)


def find_compiler() -> str | None:
    """The C++ compiler: $CXX, else the first of c++, g++, clang++ that there is."""
    if sys.platform == "win32":
        return None  # MSVC's flags and OpenMP are others; nobody has tried them here
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((path for path in map(shutil.which, names) if path), None)


def build(name: str, compiler: str, folder: Path) -> Path:
    """The built library of `name`.cpp, made if it is not there; of many processes one builds and all wait.

    OSError where the folder cannot be written, CalledProcessError where the compiler fails.
    """
    source = Path(str(resources.files("gptlab"))) / "kernels" / f"{name}.cpp"
    texts = [path.read_text(encoding="utf-8") for path in (source, *sorted(source.parent.glob("*.h")))]
    flags = (*FLAGS, *_machine_flags())
    key = hashlib.sha256(
        "\0".join([*texts, *flags, compiler, _version(compiler), _instructions()]).encode()
    ).hexdigest()[:16]
    target = folder / f"{name}-{key}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock"), timeout=PATIENCE_SECONDS):
        if not target.exists():
            # Built beside and renamed, so that what is there is always whole.
            with tempfile.TemporaryDirectory(dir=folder) as beside:
                built = Path(beside) / target.name
                command = [compiler, *flags, str(source), "-o", str(built)]
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
                built.replace(target)
    return target


def _machine_flags() -> tuple[str, ...]:
    if platform.machine() in ("x86_64", "AMD64"):
        # gcc takes half of AVX-512's width unless told; on a CPU without AVX-512 the second flag says nothing.
        return ("-march=native", "-mprefer-vector-width=512")
    return ("-mcpu=native",)


def _version(compiler: str) -> str:
    command = [compiler, "--version"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE_SECONDS).stdout


def _instructions() -> str:
    """What tells this CPU's instruction set from another's."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
