"""The runs in a folder, a row each: `gptlab runs`.

for row in gptlab.list_runs():
    print(row.name, row.state, row.metric, row.score)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from gptlab.errors import GptlabError, RunError
from gptlab.run.run import LOCK, RECIPE, STUDY, Run, run_names

State = Literal["running", "finished", "interrupted", "stopped", "pruned", "damaged"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class RunRow:
    """What a list says of a run; None what its files do not say (yet).

    name:      below the folder that is listed: "mini-gpt", "STUDY/ARM-1"
    study:     the study that it belongs to
    state:     running (a process holds its lock), finished, interrupted (begun, and nobody trains it), stopped (it
               stopped itself: the loss was not finite, say), pruned (a search ended it), damaged (`fault` says why)
    begun:     when, with its time zone; of a damaged run when its recipe was written
    objective, data, model: their kinds: "language", "corpus", "gpt"
    start:     the model that it tunes
    trainable: how many of its `parameters` are trained
    step, total_steps: optimizer steps done, and in all (unknown while a length in minutes is not yet steps)
    metric, score: of the best checkpoint on the validation set: perplexity, accuracy, or what the recipe chooses it by;
               before the run has been evaluated, the best so far
    seconds, memory_bytes: time trained and peak memory, over all sessions
    """

    name: str
    folder: Path
    study: str | None
    state: State
    begun: datetime
    fault: str = ""
    objective: str | None = None
    data: str | None = None
    model: str | None = None
    start: str | None = None
    parameters: int | None = None
    trainable: int | None = None
    step: int | None = None
    total_steps: int | None = None
    metric: str | None = None
    score: float | None = None
    seconds: float | None = None
    memory_bytes: int | None = None


def list_runs(folder: str | Path = "runs") -> list[RunRow]:
    """The runs in a folder, the newest first; a study's runs stand together, at the place of their newest.

    folder: a folder of runs and studies, a study's, or a single run's. RunError where there is none. A run that cannot
            be read is a row too, with its `fault`.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise RunError(f"{place}: there is no such folder; runs are made by gptlab train, in runs/ by default")
    if (place / RECIPE).is_file():
        return [_read(place, place.name, None)]
    if (place / STUDY).is_file():
        return _newest_first([_read(place / name, name, place.name) for name in run_names(place)])
    groups = [[_read(place / name, name, None)] for name in run_names(place)]
    for study in sorted(file.parent for file in place.glob(f"*/{STUDY}")):
        rows = [_read(study / name, f"{study.name}/{name}", study.name) for name in run_names(study)]
        groups += [_newest_first(rows)] if rows else []
    groups.sort(key=lambda rows: rows[0].begun, reverse=True)
    return [row for rows in groups for row in rows]


def _newest_first(rows: list[RunRow]) -> list[RunRow]:
    return sorted(rows, key=lambda row: row.begun, reverse=True)


def _read(folder: Path, name: str, study: str | None) -> RunRow:
    try:
        return _row(Run(folder), name, study)
    except (GptlabError, OSError) as error:
        fault = str(error)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # JSON, but not what a run writes
        fault = f"{folder}: its files are not as a run writes them ({type(error).__name__}: {error})"
    written = (folder / RECIPE).stat().st_mtime
    return RunRow(name, folder, study, "damaged", datetime.fromtimestamp(written, UTC), fault)


def _row(run: Run, name: str, study: str | None) -> RunRow:
    recipe, origin, state, steps = run.recipe, run.origin, run.state, run.metrics("step")
    last = steps[-1] if steps else {}  # state.json is written at saves alone
    best = run.evaluation.get("best", {}).get("validation", {})
    metric, score = _best(recipe.get("validation", {}).get("best_by"), {**(state.get("best") or {}), **best})
    parameters = origin.get("parameters")
    return RunRow(
        name, run.folder, study, _state(run, state.get("status")), _begun(run, origin.get("created")),
        objective=recipe.get("objective", {}).get("kind"),
        data=recipe.get("data", {}).get("kind"),
        model=recipe.get("model", {}).get("kind"),
        start=recipe.get("start"),
        parameters=parameters,
        trainable=origin.get("trainable", {}).get("trainable", parameters),
        step=_further(state.get("step"), last.get("step")),
        total_steps=state.get("total_steps"),
        metric=metric,
        score=score,
        seconds=_further(state.get("elapsed_seconds"), last.get("seconds")),
        memory_bytes=max((line["memory_bytes"] for line in steps if line.get("memory_bytes")), default=None),
    )  # fmt: skip


def _state(run: Run, status: str | None) -> State:
    if status == "finished":
        return "finished"
    if status == "pruned":
        return "pruned"
    if _is_held(run, status):
        return "running"
    return "stopped" if status == "stopped" else "interrupted"


def _is_held(run: Run, status: str | None) -> bool:
    """Whether a process trains it: state.json says "running" also after a kill, and a lock file may stay behind."""
    if not (run.folder / LOCK).exists():  # asking would make one
        return False
    try:
        with run.lock():
            return False
    except RunError:
        return True
    except OSError:  # a folder that this user may only read
        return status == "running"


def _begun(run: Run, created: str | None) -> datetime:
    if created is None:
        return datetime.fromtimestamp((run.folder / RECIPE).stat().st_mtime, UTC)
    return datetime.fromisoformat(created).astimezone(UTC)


def _best(by: str | None, scores: Mapping[str, Any]) -> tuple[str, float] | tuple[None, None]:
    """The name and the value of the score that says most: what the best was chosen by where that has a name of its own
    (`reward`, `matthews`), else what people compare."""
    for name in filter(None, (by, "perplexity", "accuracy", "loss")):
        if name in scores:
            return name, float(scores[name])
    return None, None


def _further(*counts: Any) -> Any:
    """The larger of those that are known."""
    return max((count for count in counts if count is not None), default=None)
