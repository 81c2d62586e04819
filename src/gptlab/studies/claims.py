"""Who makes which run of a study: files in a folder that all workers share, on one machine or several.

A claim is `work/RUN.N.json`: host, process, when it began; at the end how it ended. Who makes the file holds the run,
for a file system lets only one make it. While the holder works it touches the file every few seconds; where that stops
(a kill, a power cut, a closed laptop) another worker makes RUN.N+1 and continues the run from its checkpoint. A holder
that was only slow sees the newer claim and leaves the run alone. So no clock of two machines is ever compared, nothing
is deleted, and the folder is a record of who did what.
"""

from __future__ import annotations

import functools
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import psutil

from gptlab.errors import RunError
from gptlab.run.files import read_tree, to_json, write_text

WORK, COMMAND = "work", "command.txt"
"""In a study's folder: the folder of its claims, and the command that a person typed last."""

BEAT_SECONDS, STALE_SECONDS = 5.0, 90.0
"""A holder touches its claim so often; one that was not touched for so long is nobody's. A folder on a network shows a
change late: NFS keeps attributes for 3 to 60 s by default (nfs(5), acregmin, acregmax)."""

Outcome = Literal["finished", "diverged", "pruned", "failed", "interrupted", "killed"]


@functools.cache
def this_machine() -> str:
    """A name for those processes that this one can see, and no others: two machines may both be "localhost", and two
    containers of one machine may share its name, yet see only their own processes."""
    try:
        seen = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux: all see all
        seen = ""
    return " ".join(filter(None, (socket.gethostname(), f"{uuid.getnode():x}", seen)))


@dataclass(frozen=True)
class Claim:
    """One worker's hold of one run.

    number:   1 for the first; each later one took over
    process:  its id on `host`, and `process_started` when that process began, for ids are used again
    began_at: by the clock of `host`, seconds since 1970; `ended_at` likewise, None while it is held
    outcome:  how it ended; "interrupted", "killed" and "failed" leave the run to be made
    words:    of a failure
    """

    run: str
    number: int
    host: str
    process: int
    process_started: float
    began_at: float
    ended_at: float | None = None
    outcome: Outcome | None = None
    words: str = ""

    @property
    def seconds(self) -> float:
        """How long it was held; 0 where it has not ended."""
        return self.ended_at - self.began_at if self.ended_at is not None else 0.0


@dataclass
class Claims:
    """The claims of a study, seen by one process. It watches the others' heartbeats by its own clock."""

    folder: Path
    _seen: dict[str, tuple[int, float]] = field(default_factory=dict)

    def all(self, run: str) -> list[Claim]:
        """A run's claims, the first first."""
        return [_read(file, run, number) for number, file in self._files(run)]

    def last(self, run: str) -> Claim | None:
        """The claim that counts: the highest number."""
        files = self._files(run)
        return _read(files[-1][1], run, files[-1][0]) if files else None

    def held(self, run: str) -> Claim | None:
        """The claim of a worker that is alive; None where the run is free."""
        claim = self.last(run)
        return claim if claim and self.is_held(claim) else None

    def is_held(self, claim: Claim) -> bool:
        """Whether the worker of a run's last claim is alive.

        A process of this machine is asked for; another machine's is taken for dead where its claim was not touched for
        STALE_SECONDS, as seen from here.
        """
        if claim.outcome is not None:
            return False
        alive = _is_alive(claim) if claim.host == this_machine() else None
        return self._beats(claim) if alive is None else alive

    @contextmanager
    def take(self, run: str, lost: Callable[[], None], after: int | None = None) -> Iterator[Holding | None]:
        """Holds `run` inside; yields None where another was faster.

        lost:  called, in another thread, where a worker that took this one for dead has taken the run
        after: the number of the claim that was seen to have ended, or whose worker to be dead (0: there was none); by
               default the last one, which must not be held. Only one can make the claim that follows it
        """
        if after is None:
            last = self.last(run)
            if last and self.is_held(last):
                yield None
                return
            after = last.number if last else 0
        claim = Claim(
            run, after + 1, this_machine(), os.getpid(),
            psutil.Process().create_time(), time.time(),
        )  # fmt: skip
        try:
            self._make(claim)
        except FileExistsError:
            yield None
            return
        holding = Holding(self, claim)
        heart = threading.Thread(target=holding.beat, args=(lost,), daemon=True)
        heart.start()
        try:
            yield holding
        finally:
            holding.stopped.set()
            heart.join()

    def bury(self, run: str, words: str) -> None:
        """Ends the claim of a worker that was seen to die, unless it was another's already."""
        claim = self.last(run)
        if claim and claim.outcome is None and claim.host == this_machine() and _is_alive(claim) is False:
            self._end(claim, "killed", words)

    def file(self, claim: Claim) -> Path:
        return self.folder / WORK / f"{claim.run}.{claim.number}.json"

    def _make(self, claim: Claim) -> None:
        """Makes the claim's file, whole; FileExistsError where it is there already."""
        (self.folder / WORK).mkdir(parents=True, exist_ok=True)
        beside = self.folder / WORK / f".{claim.run}.{claim.number}.{os.getpid()}.{socket.gethostname()}"
        write_text(beside, to_json(asdict(claim), indent=2) + "\n")
        try:
            os.link(beside, self.file(claim))  # it appears whole, and for one only
        except FileExistsError:
            raise
        except OSError:
            with self.file(claim).open("x", encoding="utf-8") as out:  # a file system without links
                out.write(to_json(asdict(claim), indent=2) + "\n")
        finally:
            beside.unlink(missing_ok=True)

    def _end(self, claim: Claim, outcome: Outcome, words: str) -> None:
        ended = replace(claim, ended_at=time.time(), outcome=outcome, words=words)
        write_text(self.file(claim), to_json(asdict(ended), indent=2) + "\n")

    def _files(self, run: str) -> list[tuple[int, Path]]:
        numbers = ((file.name[len(run) + 1 : -5], file) for file in (self.folder / WORK).glob(f"{run}.*.json"))
        return sorted((int(number), file) for number, file in numbers if number.isdecimal())

    def _beats(self, claim: Claim) -> bool:
        file = self.file(claim)
        try:
            touched = file.stat().st_mtime_ns
        except OSError:
            return False
        before, since = self._seen.get(file.name, (None, 0.0))
        if touched != before:
            since = time.monotonic()
            self._seen[file.name] = (touched, since)
        return time.monotonic() - since < STALE_SECONDS


@dataclass
class Holding:
    """A run that this process holds."""

    claims: Claims
    claim: Claim
    stopped: threading.Event = field(default_factory=threading.Event)

    def beat(self, lost: Callable[[], None]) -> None:
        """Touches the claim until it is stopped; calls `lost` once where a newer one is there."""
        while not self.stopped.wait(BEAT_SECONDS):
            try:
                last = self.claims.last(self.claim.run)
                os.utime(self.claims.file(self.claim))
            except OSError:  # the network is away; another may take over, and then it is seen when it is back
                continue
            if last and last.number > self.claim.number:
                lost()
                return

    def end(self, outcome: Outcome, words: str = "") -> None:
        """Says how it ended."""
        self.claims._end(self.claim, outcome, words)


def _read(file: Path, run: str, number: int) -> Claim:
    """A claim. What is no claim is being written at this moment, or was when its worker was killed: an unknown
    machine's, whose heart tells."""
    try:
        return Claim(**read_tree(file))
    except (RunError, TypeError):
        return Claim(run, number, host="", process=0, process_started=0.0, began_at=0.0)


def _is_alive(claim: Claim) -> bool | None:
    """Whether a process of this machine is there; None where it cannot be told: it may not be asked for, or it seems
    to have begun at another time (its id is used again, or the clock was set meanwhile)."""
    try:
        process = psutil.Process(claim.process)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return True if abs(process.create_time() - claim.process_started) < 1 else None
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return None
