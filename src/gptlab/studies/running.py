"""Makes the runs of a study: starts workers, one for each run, until nothing is left; then the report."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gptlab.environment import BEFORE_TORCH
from gptlab.errors import GptlabError, Interrupted, RunError
from gptlab.studies.claims import WORK, Claims
from gptlab.studies.live import Screen, time_left
from gptlab.studies.opening import open_study, set_aside_old_best
from gptlab.studies.plan import Item
from gptlab.studies.queue import broken, waiting
from gptlab.studies.report import write_study_report
from gptlab.studies.results import ENDED, Results, read_results
from gptlab.studies.settings import StudySettings
from gptlab.studies.worker import BUSY
from gptlab.training.watch import stop_signals
from gptlab.words import duration

LOOK_SECONDS, PATIENCE = 1.0, 90
"""How often the folder is looked at, and how many times in a row it may not be readable."""


def run_study(
    study: StudySettings, *, runs: Path = Path("runs"), workers: int = 1, device: str = "auto", command: str = "",
    screen: Screen,
) -> Path:  # fmt: skip
    """Makes what is missing of a study in `runs/NAME`, `workers` runs at a time, and writes its report; returns the
    study's folder. The same call on another machine that sees the folder shares the work. `command` is what a person
    typed, for the report.

    A run that fails is said and does not stop the others; the next call tries it again. Interrupted after Ctrl-C or
    SIGTERM (all runs have saved); RecipeError and RunError, before anything is made, where a run cannot be, or where
    the folder has runs of another study.
    """
    folder = open_study(study, runs, command)
    claims = Claims(folder)
    results = read_results(folder, claims)
    failed = [result for result in results.runs if result.status == "failed"]
    crew = _Crew(folder, device, workers, screen, {result.item.name: len(result.claims) for result in failed})
    _begin(results, screen)
    try:
        with stop_signals(screen.say) as stop_asked:
            while not stop_asked():
                crew.look(claims)
                results = _look(folder, claims, results)
                next_items = [item for item in waiting(results, workers, crew.again) if item not in crew.items]
                if any(item.stage == 2 for item in next_items) and set_aside_old_best(results):
                    continue
                crew.start(next_items, results)
                screen.show(results, time_left(results, workers))
                others = any(r.status == "running" for r in results.runs)
                if not crew.workers and not others and not next_items:
                    break
                time.sleep(LOOK_SECONDS)
        crew.stop()
    except Exception:
        crew.stop()  # whatever went wrong here is no fault of the runs
        raise
    finally:
        crew.kill()
        screen.end()
    results = read_results(folder, claims)
    screen.say("writing the report")
    write_study_report(folder)
    if stop_asked():
        raise Interrupted("stopped, all runs have saved; the same command goes on")
    _end(results, screen)
    return folder


def _look(folder: Path, claims: Claims, before: Results) -> Results:
    """The study as it is now. A shared folder may be away for a moment; after a while that is an error."""
    for _ in range(PATIENCE):
        try:
            return read_results(folder, claims, before)
        except (OSError, RunError):
            time.sleep(LOOK_SECONDS)
    return read_results(folder, claims, before)


@dataclass
class _Crew:
    """The workers of this process, at most `size` at a time.

    again:   runs that had failed before, by the number of their claims
    workers: place → the run, its process, and the number of the claim that it follows
    """

    folder: Path
    device: str
    size: int
    screen: Screen
    again: dict[str, int]
    workers: dict[int, tuple[Item, subprocess.Popen[bytes], int]] = field(default_factory=dict)

    @property
    def items(self) -> list[Item]:
        return [item for item, _, _ in self.workers.values()]

    def start(self, items: Sequence[Item], results: Results) -> None:
        """Of what was seen to be free as much as there are places."""
        last = {result.item: result.claims[-1].number if result.claims else 0 for result in results.runs}
        free = [place for place in range(self.size) if place not in self.workers]
        for place, item in zip(free, items, strict=False):
            self.workers[place] = (item, self._start(item, place, last[item]), last[item])

    def _start(self, item: Item, place: int, after: int) -> subprocess.Popen[bytes]:
        with (self.folder / WORK / f"{item.name}.log").open("ab") as log:
            return subprocess.Popen(
                [
                    sys.executable, "-m", "gptlab.studies.worker", str(self.folder), item.name,
                    "--after", str(after), "--device", _device(self.device, place),
                ],
                stdin=subprocess.PIPE,  # its end tells the worker to save and go
                stdout=log, stderr=log, env=_environment(self.size),
                start_new_session=True,  # Ctrl-C is for this process, which asks the workers to save
            )  # fmt: skip

    def look(self, claims: Claims) -> None:
        """Takes leave of the workers that have ended. GptlabError where one could not even begin."""
        for place, (item, worker, after) in list(self.workers.items()):
            if worker.poll() is None:
                continue
            del self.workers[place]
            _hang_up(worker)
            last, code = claims.last(item.name), worker.returncode
            if last is None or last.number <= after:
                if code not in (0, BUSY):
                    log = self.folder / WORK / f"{item.name}.log"
                    raise GptlabError(f"{item.name}: its worker ended before it had begun; {log} says why")
            elif last.outcome is None and code != BUSY:
                how = f"killed by signal {-code}" if code < 0 else f"ended with code {code}"
                claims.bury(item.name, f"its process was {how}" if code < 0 else f"its process {how}")
                self.screen.say(f"{item.name}: its process {'was ' * (code < 0)}{how}; it goes on from its checkpoint")
            elif last.outcome == "failed":
                self.screen.say(f"{item.name} failed: {last.words}")

    def stop(self) -> None:
        """Asks every worker to save, and waits until it has."""
        for _, worker, _ in self.workers.values():
            _hang_up(worker)
        for _, worker, _ in self.workers.values():
            worker.wait()

    def kill(self) -> None:
        for _, worker, _ in self.workers.values():
            with suppress(OSError):
                worker.kill()
                worker.wait()


def _hang_up(worker: subprocess.Popen[bytes]) -> None:
    if worker.stdin:
        worker.stdin.close()


def _device(device: str, place: int) -> str:
    """Several workers of a machine with several GPUs have one each."""
    import torch

    return f"cuda:{place % torch.cuda.device_count()}" if device == "auto" and torch.cuda.is_available() else device


def _environment(workers: int) -> dict[str, str]:
    """Workers on one CPU divide its cores; each waiting for the other's threads, both would be slower."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = {"OMP_NUM_THREADS": str(max(1, cores // workers))} if workers > 1 else {}
    # Without the last a file of the user's, random.py say, would be imported in place of Python's.
    return {**BEFORE_TORCH, **threads, **os.environ, "PYTHONSAFEPATH": "1"}


def _begin(results: Results, screen: Screen) -> None:
    done = sum(result.status in ENDED for result in results.runs)
    there = f", {done} of them done already" if done else ""
    screen.say(f"{results.folder}: {len(results.runs)} runs{there}; what each says is in {results.folder / WORK}")


def _end(results: Results, screen: Screen) -> None:
    counts = Counter(result.status for result in results.runs)
    screen.say(", ".join(f"{count} {status}" for status, count in counts.items()))
    if counts.get("waiting") and (budget := results.study.budget).minutes is not None:
        screen.say(f"what is waiting does not fit into {duration(budget.minutes * 60)}")
    for result in broken(results, {}):
        screen.say(f"{result.item.name} was not made, and the others need it: {result.words}")
