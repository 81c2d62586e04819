"""What a study says of itself while it runs: nothing, lines for a log, or one table where there is a terminal or a
notebook."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean
from typing import Any, TextIO

from gptlab.run.files import from_json
from gptlab.run.run import METRICS, Run
from gptlab.settings import Tree
from gptlab.studies.measures import count_of, name_of, text_of
from gptlab.studies.plan import TRIAL, Item
from gptlab.studies.queue import expected_seconds, spent_seconds
from gptlab.studies.results import ENDED, Results, RunResult, Status
from gptlab.training.progress import in_a_notebook
from gptlab.words import duration, printable, share

SUMMARY_SECONDS = 60
"""Where there is no terminal a summary is printed at most so often."""

ROWS = 25
"""With more runs than these the table has a row for each that is going, and folds the others."""

TAIL_BYTES = 16_384
"""So much of the end of metrics.jsonl is read: some sixty lines."""

WORDS = 60
"""Characters of why a run failed, in the table; the log and the report have all of it."""

TELLING = 0.02
"""So much of a run must be done before it tells how long it takes: its first steps are the slowest."""

Row = tuple[str, str, str, str]
"""Run, state, metric, time."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    total:      steps in all; None while a length in minutes is not yet steps
    loss:       of the last line of training; `validation` of the last evaluation; None before there is one
    seconds:    trained, over all sessions, by its own clock
    """

    step: int
    total: int | None
    loss: float | None
    validation: float | None
    seconds: float


def progress_of(result: RunResult) -> Progress | None:
    """How far a run is, by state.json and the end of metrics.jsonl alone; None before it has begun."""
    state = result.run.state
    if not state:
        return None
    lines = _tail(result.run)
    last = next((line for line in reversed(lines) if line["event"] == "step"), {})
    validated = next((line for line in reversed(lines) if line["event"].startswith("validation")), {})
    return Progress(
        step=max(state.get("step", 0), last.get("step", 0)),
        total=state.get("total_steps"),
        loss=last.get("cross_entropy", last.get("loss")),
        validation=validated.get("loss"),
        seconds=max(state.get("elapsed_seconds", 0.0), last.get("seconds", 0.0)),
    )


def _tail(run: Run) -> list[Tree]:
    """The last whole lines of metrics.jsonl; [] where there are none yet."""
    try:
        with (run.folder / METRICS).open("rb") as file:
            begin = max(0, file.seek(0, 2) - TAIL_BYTES)
            file.seek(begin)
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    records = []
    for line in lines[1 if begin else 0 : -1]:  # the first began before the tail; the last may be half written
        try:
            records.append(from_json(line))
        except ValueError:
            continue
    return records


def _done(result: RunResult, progress: Progress | None) -> float:
    """How much of a run, from 0 to 1: by steps, or by the clock where its length in minutes is not yet steps."""
    if progress is None:
        return 0.0
    if progress.total:
        return min(1.0, progress.step / progress.total)
    minutes = result.recipe.get("training.minutes")
    return min(1.0, progress.seconds / (60 * minutes)) if minutes else 0.0


def time_left(results: Results, workers: int) -> float | None:
    """Seconds until the study's last run ends; None while no run has ended and none is far enough to tell by.

    A run is expected to take as long as those that have ended (`expected_seconds`), or as those that are going seem to;
    what it has done already is taken off. A stage begins when the one before has ended. A run that failed, or that is
    beyond `budget.runs`, is not waited for, and beyond `budget.minutes` only what is going or of the first round.
    """
    budget = results.study.budget
    left = [result for result in results.runs[: budget.runs] if result.status not in (*ENDED, "failed")]
    going = {result.item: progress for result in left if (progress := progress_of(result))}
    done = {result.item: _done(result, going.get(result.item)) for result in left}
    seeming = [progress.seconds / done[item] for item, progress in going.items() if done[item] >= TELLING]
    seconds: dict[Item, float] = {}
    for item in done:
        whole = expected_seconds(results, item) or (fmean(seeming) if seeming else None)
        if whole is None:
            return None
        seconds[item] = whole * (1 - done[item])
    total = _one_after_the_other(seconds, workers)
    if budget.minutes is None:
        return total
    sure = {item: value for item, value in seconds.items() if item in going or item.round == 0}
    spent = spent_seconds(results.runs) + sum(progress.seconds for progress in going.values())
    return min(total, max(_one_after_the_other(sure, workers), 60 * budget.minutes - spent / workers))


def _one_after_the_other(seconds: Mapping[Item, float], workers: int) -> float:
    """How long runs take whose own seconds these are: stage by stage, a stage no shorter than its longest run."""
    stages: dict[int, list[float]] = {}
    for item, value in seconds.items():
        stages.setdefault(item.stage, []).append(value)
    return sum(max(sum(of_stage) / workers, *of_stage) for of_stage in stages.values())


class Screen:
    """Says nothing. Its subclasses print; the library itself never does."""

    def show(self, results: Results, left: float | None) -> None:
        """How the study stands; called about once a second. `left`: seconds, None where it is not known yet."""

    def say(self, text: str) -> None:
        """One sentence a person should read."""

    def end(self) -> None:
        """Nothing more comes."""


class LineScreen(Screen):
    """Plain lines, for logs and pipes: one where a run begins or ends, and now and then where the study stands. (Why a
    run failed is said by what starts the runs, whatever the screen.)"""

    def __init__(self, file: TextIO | None = None) -> None:
        self.file = file or sys.stdout
        self._before: dict[str, Status] | None = None
        self._told_at = 0.0

    def say(self, text: str) -> None:
        print(text, file=self.file, flush=True)

    def show(self, results: Results, left: float | None) -> None:
        before, self._before = self._before, {result.item.name: result.status for result in results.runs}
        if before is None or time.monotonic() - self._told_at > SUMMARY_SECONDS:
            self._told_at = time.monotonic()
            self.say(summary(results, left))
        for result in results.runs:
            if before is not None and result.status not in ("failed", before[result.item.name]):
                self.say(_changed(result))


class TerminalScreen(Screen):
    """A table that is kept up to date, as high as the terminal at most; what is said stands above it."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console()
        self._live: Any = None

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)

    def show(self, results: Results, left: float | None) -> None:
        from rich.live import Live

        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
        self._live.update(_rich_table(results, left, min(ROWS, self.console.height - 4)), refresh=True)

    def end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


class NotebookScreen(LineScreen):
    """A table in the cell's output, replaced as a whole (no widget, for those are not installed everywhere)."""

    def __init__(self) -> None:
        super().__init__()
        self._output: Any = None

    def show(self, results: Results, left: float | None) -> None:
        from IPython.display import HTML, display

        shown = HTML(_html_table(results, left))
        if self._output is None:
            self._output = display(shown, display_id=True)
        else:
            self._output.update(shown)


def make_screen() -> Screen:
    """A table on a terminal or in a notebook, else plain lines."""
    if in_a_notebook():
        return NotebookScreen()
    return TerminalScreen() if sys.stdout.isatty() else LineScreen()


def summary(results: Results, left: float | None) -> str:
    """As in "5 of 15 runs have ended (4 finished, 1 diverged), 2 are running, about 3 min left"."""
    statuses = [result.status for result in results.runs]
    ended = _counted(status for status in statuses if status in (*ENDED, "failed"))
    parts = [f"{sum(count for count, _ in ended)} of {len(statuses)} runs have ended"]
    if len(ended) > 1 or any(status != "finished" for _, status in ended):
        parts[0] += f" ({_listed(ended)})"
    if going := statuses.count("running"):
        parts.append(f"{going} {'is' if going == 1 else 'are'} running")
    if left:
        parts.append(f"about {duration(left)} left")
    return ", ".join(parts)


def rows(results: Results, at_most: int = ROWS) -> list[Row]:
    """The table: a row a run; with more than `at_most` one a run that is going, one for those that wait, and one an arm
    (or for all trials of a search) for those that have ended."""
    if len(results.runs) <= at_most:
        return [_row(result) for result in results.runs]
    waiting = [result.status for result in results.runs].count("waiting")
    ended: dict[str, list[RunResult]] = {}
    for result in results.runs:
        if result.status in (*ENDED, "failed"):
            ended.setdefault(_group(result), []).append(result)
    going = [_row(result) for result in results.runs if result.status in ("running", "interrupted")]
    folded = [_row(members[0]) if len(members) == 1 else _folded(name, members) for name, members in ended.items()]
    rest: list[Row] = [(count_of(waiting, "run"), "waiting", "", "")] if waiting else []
    return [*going, *rest, *folded]


def _group(result: RunResult) -> str:
    return f"{TRIAL}s" if result.study.search and result.item.stage == 1 else result.item.arm


def _folded(name: str, members: Sequence[RunResult]) -> Row:
    """Arms by their mean, trials of a search by their best."""
    scores = [result.score for result in members if result.score is not None]
    study, metric = members[0].study, ""
    if scores and members[0].item.arm == name:
        metric = f"mean {text_of(study.metric, fmean(scores))}"
    elif scores:
        metric = f"best {text_of(study.metric, min(scores) if study.less_is_better else max(scores))}"
    return name, _listed(_counted(result.status for result in members)), metric, duration(spent_seconds(members))


def _row(result: RunResult) -> Row:
    metric = "" if result.score is None else text_of(result.study.metric, result.score)
    progress = progress_of(result) if result.status in ("running", "interrupted") else None
    seconds = progress.seconds if progress else spent_seconds([result])
    return result.item.name, _state(result, progress), metric, duration(seconds) if seconds else ""


def _state(result: RunResult, progress: Progress | None) -> str:
    if result.status == "failed":
        return printable(f"failed: {result.words.partition(chr(10))[0]:.{WORDS}}")
    if progress is None:
        return result.status
    numbers = {"loss": progress.loss, "validation": progress.validation}
    known = [f"{name} {value:.3f}" for name, value in numbers.items() if value is not None]
    return ", ".join([f"{result.status} {share(_done(result, progress))}", *known])


def _changed(result: RunResult) -> str:
    """A line for a log: a run that began or ended."""
    name, status = result.item.name, result.status
    if status == "running":
        return f"{name}: {'continues' if len(result.claims) > 1 else 'begins'}"
    metric = (
        "" if result.score is None else f", {name_of(result.study.metric)} {text_of(result.study.metric, result.score)}"
    )
    seconds = spent_seconds([result])
    return f"{name}: {status}{metric}" + (f", {duration(seconds)}" if seconds else "")


def _counted(statuses: Iterable[Status]) -> list[tuple[int, Status]]:
    """How many of which state, in the order of `ENDED`."""
    found = list(statuses)
    return [(found.count(status), status) for status in (*ENDED, "failed") if status in found]


def _listed(counted: Sequence[tuple[int, Status]]) -> str:
    return ", ".join(f"{count} {status}" for count, status in counted)


def _columns(results: Results) -> Row:
    return "run", "state", name_of(results.study.metric), "time"


def _rich_table(results: Results, left: float | None, at_most: int) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(summary(results, left)), title_justify="left", box=None, pad_edge=False)
    for number, column in enumerate(_columns(results)):
        table.add_column(Text(column), justify="right" if number > 1 else "left", no_wrap=True)
    for row in rows(results, at_most):
        table.add_row(*map(Text, row))
    return table


def _html_table(results: Results, left: float | None) -> str:
    return f"<p>{escape(summary(results, left))}</p><table>{''.join(_html_rows(results))}</table>"


def _html_rows(results: Results) -> Iterator[str]:
    for tag, row in [("th", _columns(results)), *(("td", row) for row in rows(results))]:
        cells = "".join(f'<{tag} style="text-align: left">{escape(cell)}</{tag}>' for cell in row)
        yield f"<tr>{cells}</tr>"
