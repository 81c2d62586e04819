"""C++ built on first use, in seconds, for this machine's own instruction set.

Each source is plain C++ over pointers: it includes no header of torch's and links nothing but OpenMP. gcc is taken
first, because its threads are then torch's own (both load libgomp.so.1, of which a process has one); clang brings
libomp, a second set of threads beside them: the numbers are the same, and the sets disturb each other.
The library is kept in the user's cache under everything that it depends on, so another machine, compiler or version
builds its own. Where there is no compiler, or it fails, `library` gives None and `reason` says why: the caller's
pure-torch path does the same work. GPTLAB_KERNELS=torch asks for that, $CXX for a compiler.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from gptlab.errors import UserError
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


def required(name: str) -> ctypes.CDLL:
    """The library for an operator that has been called. `torch_only` does not count here: it decides what is chosen,
    and what went forward by a kernel goes backward by it. RuntimeError where the library cannot be had."""
    found, why = _load(name)
    if found is None:
        raise RuntimeError(f"no kernel {name}: {why}; ask for its library first")
    return found


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
    """The choice of a run, for as long as it lasts: "C++", or "torch" where none of these libraries is there.

    One line says which are missing; torch does their work. Both agree to rounding only, so a run goes on with what it
    began with: `kept` is an earlier choice. Without names (on a GPU) it is "torch", and nothing is said. UserError for
    a GPTLAB_KERNELS that means nothing.
    """
    torch_is_asked_for()
    if not names:
        yield "torch"
        return
    if kept == "torch":
        with torch_only("as this run began"):
            yield "torch"
        return
    with ThreadPoolExecutor() as builders:  # where they have to be built, side by side
        list(builders.map(_load, names))
    missing = {name: why for name in names if (why := reason(name))}
    none = len(missing) == len(names)
    if missing:
        which = "kernels" if none else f"kernels {', '.join(missing)}"
        again = "; it began with them, so what follows is equal to rounding only" if kept == "C++" else ""
        say(f"the C++ {which}: {next(iter(missing.values()))}; torch does their work, more slowly{again}")
    with torch_only(next(iter(missing.values())) if none else ""):
        yield "torch" if none else "C++"


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where the tensor's elements begin; a null pointer for none."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def torch_is_asked_for() -> bool:
    """Whether GPTLAB_KERNELS asks for torch alone; UserError where it asks for something that there is not."""
    asked = os.environ.get("GPTLAB_KERNELS", "")
    if asked not in ("", "torch"):
        raise UserError(f"GPTLAB_KERNELS={asked}: wanted torch, or nothing for the C++ kernels where they can be had")
    return asked == "torch"


@functools.cache
def _load(name: str) -> tuple[ctypes.CDLL | None, str]:
    if torch_is_asked_for():
        return None, "GPTLAB_KERNELS=torch"
    try:
        compiler = find_compiler()
        if compiler is None:
            return None, "no C++ compiler"
        return _open(lambda: build(name, compiler, cache_folder() / "kernels")), ""
    except subprocess.CalledProcessError as error:
        lines = str(error.stderr).strip().splitlines()
        source = "$CXX, " if os.environ.get("CXX") else ""
        return None, f"{source}{shlex.join(error.cmd[:1])} failed: {lines[0] if lines else error}"
    except (OSError, ValueError, TimeoutError, subprocess.TimeoutExpired) as error:
        return None, str(error)


def _open(built: Callable[[], Path]) -> ctypes.CDLL:
    """The library that `built` makes or finds; one that cannot be opened (a disk was full) is made once more."""
    library = built()
    try:
        return ctypes.CDLL(str(library))
    except OSError:
        library.unlink(missing_ok=True)
        return ctypes.CDLL(str(built()))


def find_compiler() -> tuple[str, ...] | None:
    """The C++ compiler's command: $CXX, which may have arguments, else the first there is of g++, c++ and clang++.

    ValueError where $CXX is no command.
    """
    if sys.platform == "win32":
        return None  # MSVC's flags and OpenMP are others; nobody has tried them here
    if wanted := os.environ.get("CXX"):
        try:
            name, *arguments = shlex.split(wanted) or [wanted]
        except ValueError as error:
            raise ValueError(f"$CXX is {wanted}: {error}") from error
        if (path := shutil.which(name)) is None:
            raise ValueError(f"$CXX is {wanted}, which is not there")
        return (path, *arguments)
    found = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    return None if found is None else (found,)


def build(name: str, compiler: Sequence[str], folder: Path) -> Path:
    """The built library of `name`.cpp, made if it is not there; of many processes one builds and all wait.

    OSError where the folder cannot be written, CalledProcessError where the compiler fails.
    """
    source = Path(str(resources.files("gptlab"))) / "kernels" / f"{name}.cpp"
    texts = [path.read_text(encoding="utf-8") for path in (source, *sorted(source.parent.glob("*.h")))]
    flags = (*FLAGS, *_machine_flags())
    with _asking:  # once, also where several are built side by side
        version = _version(tuple(compiler))
    key = hashlib.sha256("\0".join([*texts, *flags, *compiler, version, _instructions()]).encode()).hexdigest()[:16]
    target = folder / f"{name}-{key}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock"), timeout=PATIENCE_SECONDS):
        if not target.exists():
            # Built beside, flushed and renamed, so that what is there is whole, also after a loss of power.
            with tempfile.TemporaryDirectory(dir=folder) as beside:
                built = Path(beside) / target.name
                command = [*compiler, *flags, str(source), "-o", str(built)]
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
                with built.open("rb") as file:
                    os.fsync(file.fileno())
                built.replace(target)
    return target


def _machine_flags() -> tuple[str, ...]:
    if platform.machine() in ("x86_64", "AMD64"):
        # gcc takes half of AVX-512's width unless told; on a CPU without AVX-512 the second flag says nothing.
        return ("-march=native", "-mprefer-vector-width=512")
    return ("-mcpu=native",)


_asking = threading.Lock()


@functools.cache
def _version(compiler: tuple[str, ...]) -> str:
    command = [*compiler, "--version"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE_SECONDS).stdout


def _instructions() -> str:
    """What tells this CPU's instruction set from another's."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
