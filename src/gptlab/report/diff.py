"""What two runs differ in, and what came of it: `gptlab runs diff A B`.

diff = gptlab.diff_runs("mini-gpt", "mini-gpt-2")
[entry.key for entry in diff.recipe]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.report.facts import Facts, gather
from gptlab.run.run import Run
from gptlab.settings import Tree, flatten_all

SECTIONS = ("recipe", "data", "model", "machine", "scores", "cost")
"""The sections of a `RunDiff`, causes before effects."""

MODELS = ("start", "teacher", "reference")
"""What a run may begin with or ask; a recipe has their names, which may stand for other weights than before."""

COST = ("seconds", "tokens", "epochs", "tokens_per_second", "memory_bytes")

SAID_ELSEWHERE = ("nats", "seconds", "step")
"""What stands beside the scores and is none."""


@dataclass(frozen=True)
class Entry:
    """A key in which two runs differ; None where a run does not have it. `difference`: b − a, of scores and cost."""

    key: str
    a: Any
    b: Any
    difference: float | None = None


@dataclass(frozen=True)
class RunDiff:
    """In what the runs in the folders `a` and `b` differ; what is equal in both stands nowhere.

    recipe:  by dotted keys (all but the name)
    data:    fingerprints, what each source gave, the tokenizer
    model:   how many parameters, how many of them trained, the weights of a start, a teacher, a reference
    machine: versions, commit, device, precision, micro-batch
    scores:  of the best checkpoint, as far as the run is: "validation.perplexity"
    cost:    steps, seconds, tokens, epochs, tokens a second, peak memory in bytes
    """

    a: Path
    b: Path
    recipe: list[Entry]
    data: list[Entry]
    model: list[Entry]
    machine: list[Entry]
    scores: list[Entry]
    cost: list[Entry]


def diff_runs(a: str | Path, b: str | Path, runs: str | Path = "runs") -> RunDiff:
    """What two runs differ in: each a folder, or a name under `runs`. RunError where one is no run, or its files cannot
    be read."""
    first, second = (_open(name, Path(runs)) for name in (a, b))
    before, after = (_sections(run) for run in (first, second))
    found = {name: _entries(before[name], after[name], measured=name in ("scores", "cost")) for name in SECTIONS}
    return RunDiff(first.folder, second.folder, **found)


def _open(name: str | Path, runs: Path) -> Run:
    folder = Path(name).expanduser()
    return Run.open(folder if folder.is_dir() else runs / folder)


def _sections(run: Run) -> dict[str, Tree]:
    """What is compared of a run, by dotted keys."""
    facts, origin = gather(run), run.origin
    named = run.recipe.get("model", {})
    return {
        "recipe": flatten_all({key: value for key, value in run.recipe.items() if key != "name"}),
        "data": flatten_all({
            "fingerprints": facts["fingerprints"],
            "sources": {f"{row['name']} ({row['split']})": _counts(row) for row in facts["sources"]},
            "labels": origin.get("labels"),
            "tokenizer": facts["tokenizer"],
            "template": origin.get("data", {}).get("template"),
        }),
        "model": flatten_all({
            "parameters": facts["parameters"],
            "trainable": origin.get("trainable"),
            "shape": {key: value for key, value in origin.get("shape", {}).items() if key not in named},
            **{role: {"fingerprint": origin.get(role, {}).get("fingerprint")} for role in MODELS},
        }),
        "machine": flatten_all({
            "device": facts["device"],
            "precision": facts["cost"]["precision"],
            "micro_batch_size": facts["cost"]["micro_batch_size"],
            "versions": origin.get("versions"),
            "commit": origin.get("commit"),
        }),
        "scores": _scores(run, facts),
        "cost": {"steps": facts["step"], **{key: facts["cost"][key] for key in COST}},
    }  # fmt: skip


def _counts(source: Mapping[str, Any]) -> Tree:
    return {key: value for key, value in source.items() if key not in ("name", "split")}


def _scores(run: Run, facts: Facts) -> Tree:
    """The numbers of the best checkpoint on each set, without the ends of their intervals."""
    found: Tree = {"best_step": facts["best_step"]}
    for row in facts["scores"]:
        if row["model"] == "best":
            found |= {f"{row['on']}.{key}": value for key, value in row.items() if _is_score(key, value)}
    against = run.evaluation.get("against_start", {})
    return found | {f"against_start.{key}": value for key, value in against.items() if _is_score(key, value)}


def _is_score(key: str, value: Any) -> bool:
    return _is_number(value) and key not in SAID_ELSEWHERE and not key.endswith(("_low", "_high"))


def _entries(before: Tree, after: Tree, *, measured: bool) -> list[Entry]:
    found = []
    for key in dict.fromkeys([*before, *after]):
        a, b = before.get(key), after.get(key)
        if a != b and not (a != a and b != b):  # NaN is like NaN
            found.append(Entry(key, a, b, _difference(a, b) if measured else None))
    return found


def _difference(a: Any, b: Any) -> float | None:
    if not (_is_number(a) and _is_number(b)) or not math.isfinite(b - a):
        return None
    gap: float = b - a
    return gap


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
