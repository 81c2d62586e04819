"""Who holds a run: real processes that race, are killed, stopped and go on, and files as a network may show them."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from gptlab.studies import claims as module
from gptlab.studies.claims import WORK, Claim, Claims, Holding, this_machine

PATIENCE = 60
"""Seconds after which a process that says nothing is a failure; the machine may be busy."""

HOLDER = """
import sys
from contextlib import ExitStack
from pathlib import Path
from gptlab.studies import claims

folder, machine, *runs = sys.argv[1:]
claims.BEAT_SECONDS = 0.05
if machine:
    claims.this_machine = lambda: machine
print("ready", flush=True)
sys.stdin.readline()
with ExitStack() as held:
    found = {run: held.enter_context(claims.Claims(Path(folder)).take(run, lost=lambda: print("lost", flush=True)))
             for run in runs}
    print(*(run for run, holding in found.items() if holding), flush=True)
    sys.stdin.readline()
"""


class Worker:
    """A process that takes what it can of `runs` when it is told to `go`, and holds it until it ends."""

    def __init__(self, folder: Path, *runs: str, machine: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder), machine, *runs],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def line(self) -> str:
        found: list[str] = []
        assert self.process.stdout
        reader = threading.Thread(target=lambda: found.append(self.process.stdout.readline()), daemon=True)
        reader.start()
        reader.join(PATIENCE)
        assert found, "the worker says nothing"
        return found[0].strip()

    def go(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def take(self) -> list[str]:
        """What it holds now."""
        assert self.line() == "ready"
        self.go()
        return self.line().split()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """start(*runs, machine="") → a worker in tmp_path."""
    workers: list[Worker] = []

    def begin(*runs: str, machine: str = "") -> Worker:
        workers.append(Worker(tmp_path, *runs, machine=machine))
        return workers[-1]

    yield begin
    for worker in workers:
        worker.process.kill()
        worker.process.communicate()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(module, "STALE_SECONDS", 0.5)


def nothing() -> None:
    """Of a claim that nobody takes over."""


def claim_of(number: int = 1, run: str = "a-1", **changes: Any) -> Claim:
    """This process's."""
    ours = Claim(run, number, this_machine(), os.getpid(), psutil.Process().create_time(), time.time())
    return replace(ours, **changes)


def write(folder: Path, claim: Claim) -> Path:
    (folder / WORK).mkdir(exist_ok=True)
    file = folder / WORK / f"{claim.run}.{claim.number}.json"
    file.write_text(json.dumps(asdict(claim)), encoding="utf-8")
    return file


def wait(until: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not until():
        assert time.monotonic() < end, "it does not come about"
        time.sleep(0.01)


@contextmanager
def touching(file: Path) -> Iterator[None]:
    """A heart that beats in place of another machine's. Each beat shows another time, however coarse the clock is."""
    stopped = threading.Event()

    def beat() -> None:
        for beats in itertools.count():
            if stopped.wait(0.02):
                return
            os.utime(file, ns=(beats, beats))

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        yield
    finally:
        stopped.set()
        heart.join()


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / WORK).iterdir())


# Holding and ending


def test_a_run_that_nobody_took_is_free(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    assert claims.held("a-1") is None
    assert claims.last("a-1") is None
    assert claims.all("a-1") == []


def test_a_run_is_held_until_its_end_is_said(tmp_path: Path) -> None:
    claims, before = Claims(tmp_path), time.time()
    with claims.take("a-1", nothing) as holding:
        assert holding
        held = Claims(tmp_path).held("a-1")
        assert held == holding.claim
        assert (held.run, held.number, held.process, held.outcome, held.seconds) == ("a-1", 1, os.getpid(), None, 0)
        holding.end("failed", "DataError: no file\nnamed so")
    ended = claims.last("a-1")
    assert ended
    assert (ended.outcome, ended.words) == ("failed", "DataError: no file\nnamed so")
    assert ended.ended_at
    assert before <= ended.began_at <= ended.ended_at <= time.time()
    assert ended.seconds == ended.ended_at - ended.began_at
    assert claims.held("a-1") is None
    assert names_in(tmp_path) == ["a-1.1.json"], "nothing else is left behind"


def test_a_run_that_another_holds_is_not_taken(tmp_path: Path) -> None:
    """By the one that looked before the other took it, too: looking and taking are one."""
    with Claims(tmp_path).take("a-1", nothing) as first, Claims(tmp_path).take("a-1", nothing) as second:
        assert first
        assert second is None
    assert names_in(tmp_path) == ["a-1.1.json"]


def test_who_comes_after_has_the_next_number(tmp_path: Path) -> None:
    """Also beyond nine, where names are no longer in the order of numbers."""
    claims = Claims(tmp_path)
    for _ in range(12):
        with claims.take("a-1", nothing) as holding:
            assert holding
            holding.end("interrupted")
    assert [claim.number for claim in claims.all("a-1")] == list(range(1, 13))
    last = claims.last("a-1")
    assert last
    assert last.number == 12


def test_runs_whose_names_begin_alike_are_different(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    with ExitStack() as held:
        for run in ("a-1", "a-1.1", "a-1.1.json", "a-11"):
            assert held.enter_context(claims.take(run, nothing))
            assert [claim.run for claim in claims.all(run)] == [run]


def test_each_run_is_one_workers(tmp_path: Path, start: Callable[..., Worker]) -> None:
    """Four processes go through forty runs at once; each is held by one of them."""
    runs = [f"a-{seed}" for seed in range(40)]
    workers = [start(*runs) for _ in range(4)]
    assert [worker.line() for worker in workers] == ["ready"] * 4
    for worker in workers:
        worker.go()
    taken = [run for worker in workers for run in worker.line().split()]
    assert sorted(taken) == sorted(runs)
    assert len(names_in(tmp_path)) == len(runs)


# Holders that are gone


def test_a_killed_workers_run_is_free_at_once(tmp_path: Path, start: Callable[..., Worker]) -> None:
    """Even while its dead process has not been waited for."""
    worker, claims = start("a-1"), Claims(tmp_path)
    assert worker.take() == ["a-1"]
    assert claims.held("a-1")
    os.kill(worker.process.pid, signal.SIGKILL)
    wait(lambda: psutil.Process(worker.process.pid).status() == psutil.STATUS_ZOMBIE)
    assert claims.held("a-1") is None
    with claims.take("a-1", nothing) as holding:
        assert holding
        assert holding.claim.number == 2


def test_a_killed_workers_claim_is_ended_by_who_saw_it_die(tmp_path: Path, start: Callable[..., Worker]) -> None:
    worker, claims = start("a-1"), Claims(tmp_path)
    assert worker.take() == ["a-1"]
    worker.process.kill()
    worker.process.wait()
    claims.bury("a-1", "killed (SIGKILL)")
    last = claims.last("a-1")
    assert last
    assert (last.outcome, last.words) == ("killed", "killed (SIGKILL)")
    claims.bury("a-1", "again")
    assert claims.last("a-1") == last, "what has ended stays as it ended"


@pytest.mark.parametrize("alive", [claim_of(), claim_of(host="elsewhere", process=1)])
def test_a_claim_of_a_worker_that_is_alive_is_not_buried(tmp_path: Path, alive: Claim) -> None:
    """The worker that died was no longer the one that held the run."""
    write(tmp_path, alive)
    Claims(tmp_path).bury("a-1", "killed (SIGKILL)")
    assert Claims(tmp_path).last("a-1") == alive


def test_a_process_id_that_is_used_again_holds_nothing(tmp_path: Path, quick: None) -> None:
    """A process of that id lives, but began at another time."""
    write(tmp_path, claim_of(process_started=1.0))
    claims = Claims(tmp_path)
    wait(lambda: claims.held("a-1") is None)


def test_a_clock_that_was_set_lets_go_of_nothing(tmp_path: Path, quick: None) -> None:
    """When a process began is told by the clock as it stands; what beats is alive whatever that says."""
    file = write(tmp_path, claim_of(process_started=psutil.Process().create_time() - 3600))
    claims = Claims(tmp_path)
    with touching(file):
        end = time.monotonic() + 3 * module.STALE_SECONDS
        while time.monotonic() < end:
            assert claims.held("a-1")
            time.sleep(0.02)


def test_a_process_that_may_not_be_asked_for_is_judged_by_its_heart(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's, say."""

    def denied(self: psutil.Process) -> float:
        raise psutil.AccessDenied(self.pid)

    file = write(tmp_path, claim_of())
    monkeypatch.setattr(psutil.Process, "create_time", denied)
    claims = Claims(tmp_path)
    with touching(file):
        assert claims.held("a-1")
    wait(lambda: claims.held("a-1") is None)


# Other machines


def test_two_processes_of_this_machine_give_it_one_name() -> None:
    asked = "from gptlab.studies.claims import this_machine; print(this_machine())"
    answer = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout
    assert answer.strip() == this_machine()


def test_another_machines_worker_holds_a_run_while_its_claim_is_touched(tmp_path: Path, quick: None) -> None:
    file = write(tmp_path, claim_of(host="elsewhere", process=1, began_at=time.time() + 86400))
    claims = Claims(tmp_path)
    with touching(file):
        end = time.monotonic() + 3 * module.STALE_SECONDS
        while time.monotonic() < end:
            assert claims.held("a-1"), "whatever that machine's clock says"
            time.sleep(0.02)
    wait(lambda: claims.held("a-1") is None)
    with claims.take("a-1", nothing) as holding:
        assert holding
        assert holding.claim.number == 2


def test_who_looks_for_the_first_time_waits_before_it_takes(tmp_path: Path, quick: None) -> None:
    """An old time of a file says nothing: clocks differ, and this process has not yet seen the heart stop."""
    file = write(tmp_path, claim_of(host="elsewhere"))
    os.utime(file, (1.0, 1.0))
    claims = Claims(tmp_path)
    with claims.take("a-1", nothing) as holding:
        assert holding is None
    time.sleep(module.STALE_SECONDS)
    assert claims.held("a-1") is None


def test_what_has_ended_elsewhere_is_free_at_once(tmp_path: Path) -> None:
    write(tmp_path, claim_of(host="elsewhere", outcome="interrupted", ended_at=time.time()))
    assert Claims(tmp_path).held("a-1") is None


def test_a_worker_that_was_only_stopped_leaves_its_run_to_who_took_it(
    tmp_path: Path, start: Callable[..., Worker], quick: None
) -> None:
    """A laptop that was closed: its process stands still, another machine takes over, then it wakes up."""
    worker, claims = start("a-1", machine="a laptop"), Claims(tmp_path)
    assert worker.take() == ["a-1"]
    assert claims.held("a-1")
    os.kill(worker.process.pid, signal.SIGSTOP)
    wait(lambda: claims.held("a-1") is None)
    with claims.take("a-1", nothing) as holding:
        assert holding
        os.kill(worker.process.pid, signal.SIGCONT)
        assert worker.line() == "lost"
        held = claims.held("a-1")
        assert held
        assert held.number == 2
        touched = (tmp_path / WORK / "a-1.1.json").stat().st_mtime_ns
        time.sleep(10 * module.BEAT_SECONDS)
        assert (tmp_path / WORK / "a-1.1.json").stat().st_mtime_ns == touched, "it no longer says that it is alive"


def test_who_has_lost_a_run_does_not_end_it_for_the_other(tmp_path: Path, quick: None) -> None:
    told = threading.Event()
    claims = Claims(tmp_path)
    with claims.take("a-1", told.set) as holding:
        assert holding
        write(tmp_path, claim_of(2, host="elsewhere"))
        assert told.wait(PATIENCE)
        holding.end("finished")
    held = claims.held("a-1")
    assert held
    assert (held.number, held.outcome) == (2, None)


def test_a_holder_says_that_it_is_alive(tmp_path: Path, quick: None) -> None:
    with Claims(tmp_path).take("a-1", nothing) as holding:
        assert holding
        file = tmp_path / WORK / "a-1.1.json"
        for _ in range(3):
            os.utime(file, (1.0, 1.0))
            wait(lambda: file.stat().st_mtime > 1.0)
    os.utime(file, (1.0, 1.0))
    time.sleep(10 * module.BEAT_SECONDS)
    assert file.stat().st_mtime == 1.0, "after it has let go its heart stands still"


@pytest.mark.parametrize("call", ["utime", "scandir"])
def test_a_holder_outlives_a_network_that_is_away(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Whether touching fails, or looking for who came after."""
    failed = threading.Event()

    def away(*arguments: Any, **others: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            failed.set()
        raise OSError(errno.EIO, "the network is away")

    with Claims(tmp_path).take("a-1", nothing) as holding:
        assert holding
        file = tmp_path / WORK / "a-1.1.json"
        os.utime(file, (1.0, 1.0))
        with monkeypatch.context() as patched:
            patched.setattr(os, call, away)
            assert failed.wait(PATIENCE)
            time.sleep(10 * module.BEAT_SECONDS)
        wait(lambda: file.stat().st_mtime > 1.0)


def test_of_two_that_saw_the_same_worker_die_one_takes_over(tmp_path: Path) -> None:
    """Who has watched need not wait anew, and who comes second has seen what is no longer so."""
    write(tmp_path, claim_of(host="elsewhere"))
    with Claims(tmp_path).take("a-1", nothing, after=1) as first:
        assert first
        with Claims(tmp_path).take("a-1", nothing, after=1) as second:
            assert second is None
    with Claims(tmp_path).take("b-1", nothing, after=0) as first:
        assert first
        with Claims(tmp_path).take("b-1", nothing, after=0) as second:
            assert second is None


# Files


def test_a_file_system_without_links_has_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    claims = Claims(tmp_path)
    with claims.take("a-1", nothing) as holding, claims.take("a-1", nothing) as other:
        assert holding
        assert other is None
        assert claims.held("a-1") == holding.claim
        with pytest.raises(FileExistsError):
            claims._make(holding.claim)
    assert names_in(tmp_path) == ["a-1.1.json"]


def test_a_file_that_is_being_written_is_somebodys(tmp_path: Path, quick: None) -> None:
    """Where there are no links a claim appears empty and then grows. One that stays so was its worker's last deed."""
    half = write(tmp_path, claim_of())
    half.write_text(half.read_text(encoding="utf-8")[:20], encoding="utf-8")
    claims = Claims(tmp_path)
    with claims.take("a-1", nothing) as holding:
        assert holding is None
    wait(lambda: claims.held("a-1") is None)
    with claims.take("a-1", nothing) as holding:
        assert holding
        assert holding.claim.number == 2
        assert claims.held("a-1") == holding.claim


@pytest.mark.parametrize("text", ["", "[]", '{"run": "a-1"}', '{"run": "a-1", "colour": "red"}', "\udcff"])
def test_a_file_that_is_no_claim_keeps_a_run_from_nobody_forever(tmp_path: Path, quick: None, text: str) -> None:
    (tmp_path / WORK).mkdir()
    (tmp_path / WORK / "a-1.3.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    claims = Claims(tmp_path)
    wait(lambda: claims.held("a-1") is None)
    with claims.take("a-1", nothing) as holding:
        assert holding
        assert holding.claim.number == 4


def test_only_whole_claims_are_ever_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is complete before it has its name, so that no reader sees half of it."""
    seen: list[str] = []
    link = os.link

    def watched(source: Path, target: Path) -> None:
        seen.append(Path(source).read_text(encoding="utf-8"))
        link(source, target)

    monkeypatch.setattr(os, "link", watched)
    with Claims(tmp_path).take("a-1", nothing) as holding:
        assert isinstance(holding, Holding)
        assert seen == [(tmp_path / WORK / "a-1.1.json").read_text(encoding="utf-8")]
