"""The process of one variant: it waits for its turn, works a round, and says how long that took.

A variant has a process of its own so that its peak memory is its own and its environment and threads are what its
users have. Processes are started afresh (multiprocessing's spawn), so nothing of the parent's is in them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import psutil

THREADS = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")
"""How libraries are told how many threads to use, before they are imported: torch and CTranslate2; tokenizers."""


@dataclass(frozen=True)
class Work:
    """What a variant does.

    step:   does the work once; returns its seconds where it knows them better than the clock around it
    amount: how much of the benchmark's unit a step is (tokens, megabytes)
    facts:  asked once, after the last round: figures that are no times
    cuda:   the work is queued on a GPU, and is waited for
    """

    step: Callable[[], float | None]
    amount: float = 1.0
    facts: Callable[[], dict[str, Any]] = dict
    cuda: bool = False


class Reading(NamedTuple):
    """One round: its seconds by the clock, the processor's seconds over all cores, the work done."""

    seconds: float
    cpu_seconds: float
    amount: float


class Failed(Exception):
    """What went wrong in a variant's process: its traceback."""


class Worker:
    """A variant's process, as its parent sees it."""

    def __init__(
        self, make: Callable[..., Work], arguments: Mapping[str, Any], environment: Mapping[str, str], threads: int
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, dict(arguments), threads))
        with _environment({**environment, **dict.fromkeys(THREADS, str(threads))}):
            self._process.start()
        theirs.close()  # so that reading ends when the process does
        self._system_process = psutil.Process(self._process.pid)

    def ask(self, what: str, *arguments: Any) -> Any:
        """Has the process do something and waits for it. Failed with the traceback where it could not."""
        try:
            self._pipe.send((what, *arguments))
            worked, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise Failed(f"its process ended with {self._process.exitcode} (-9: the memory was not enough)") from None
        if not worked:
            raise Failed(answer)
        return answer

    def cpu_seconds(self) -> float:
        """Processor time it has used so far, its children's included."""
        total = 0.0
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in (self._system_process, *self._system_process.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = process.cpu_times()
                    total += times.user + times.system
        return total

    def stop(self) -> None:
        """Ends the process: it sees the pipe closed, and is killed where it does not."""
        self._pipe.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(pipe: Connection, make: Callable[..., Work], arguments: dict[str, Any], threads: int) -> None:
    """Answers each request with (True, answer) or (False, traceback), until the pipe is closed."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    desk = _Desk(make, arguments)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # the table alone is printed
        while True:
            try:
                what, *rest = pipe.recv()
            except EOFError:
                return
            try:
                answer = (True, getattr(desk, what)(*rest))
            except Exception:
                answer = (False, traceback.format_exc())
            pipe.send(answer)


class _Desk:
    """What a worker can be asked, by name."""

    def __init__(self, make: Callable[..., Work], arguments: dict[str, Any]) -> None:
        self._make, self._arguments = make, arguments

    def warm_up(self, steps: int) -> None:
        """Makes the model or whatever it is, and does the steps in which libraries load and compile."""
        self._work = self._make(**self._arguments)
        self.round(steps)

    def round(self, steps: int) -> Reading:
        """Some steps, timed together."""
        work = self._work
        if work.cuda:
            work.step()  # its memory was given back after the last round and is asked for again
            _synchronize()
        cpu, start = time.process_time(), time.perf_counter()
        own = [work.step() for _ in range(steps)]
        if work.cuda:
            _synchronize()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        if work.cuda:
            _give_back()
        return Reading(sum(s for s in own if s is not None) or seconds, cpu, work.amount * steps)

    def figures(self) -> tuple[int, dict[str, Any]]:
        """The most memory so far, in bytes (resident in this process, or of the GPU allocated by torch); its facts."""
        if self._work.cuda:
            import torch

            peak = torch.cuda.max_memory_allocated()
        else:
            peak = _peak_resident()
        return peak, self._work.facts()


def _peak_resident() -> int:
    """As gptlab.device.peak_memory, which would first import torch into processes that have none."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # not there on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _synchronize() -> None:
    import torch

    torch.cuda.synchronize()


def _give_back() -> None:
    """Unused GPU memory, which torch keeps, for the next variant."""
    import torch

    torch.cuda.empty_cache()


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """This environment for as long as a process is being started."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
