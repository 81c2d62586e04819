"""What a study found: read from its own file, its claims and its run directories alone, finished or not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from gptlab import settings
from gptlab.run.run import RECIPE, STUDY, Run
from gptlab.settings import Tree, flatten
from gptlab.studies import plan
from gptlab.studies.claims import Claim, Claims
from gptlab.studies.plan import Item
from gptlab.studies.settings import StudySettings

Status = Literal["waiting", "running", "interrupted", "finished", "diverged", "pruned", "failed"]

ENDED: tuple[Status, ...] = ("finished", "diverged", "pruned")
"""Of a run that need not be made again."""

ORIGINS = ("versions", "device", "commit")
"""What of origin.json should be the same for all runs that are compared."""

DEATHS = 3
"""A run whose worker was killed so often, one time after the other, counts as failed: memory is short, most likely."""


@dataclass(frozen=True)
class RunResult:
    """One run of a study, as far as it is.

    status: waiting (not begun), running (held by a worker), interrupted (begun, held by nobody), finished, diverged
            (the loss was not finite), pruned (ended early by a search), failed
    words:  why it failed
    claims: who has worked at it, the first first
    """

    item: Item
    run: Run
    status: Status
    words: str
    claims: Sequence[Claim]
    study: StudySettings

    @property
    def begun(self) -> bool:
        return (self.run.folder / RECIPE).exists()

    @cached_property
    def recipe(self) -> Tree:
        """Resolved, by dotted keys; {} before it has begun."""
        return flatten(self.run.recipe) if self.begun else {}

    @cached_property
    def metrics(self) -> list[Tree]:
        """The lines of metrics.jsonl."""
        return self.run.metrics() if self.begun else []

    @cached_property
    def measures(self) -> dict[str, float]:
        """Every number that runs can be compared by; none before the run has ended, but for its cost.

        scores:        each number of evaluation.json at the study's `checkpoint` and `on`: loss, cross_entropy,
                       perplexity, perplexity_per_word, bits_per_byte, accuracy, matthews, f1, margin, …; of DPO beside
                       its start also win_rate and kl
        reward:        the mean reward of the answers that a reward model scored (of several evaluations the highest)
        training_loss: the mean over the whole run, as Hugging Face's Trainer gives it; last_training_loss: the last
                       line's
        best_step, steps, seconds, tokens, tokens_per_second, memory_bytes (the peak), parameters, trainable
        """
        scores = _scores(self.run, self.study) if self.status == "finished" else {}
        return scores | _cost(self)  # `tokens` are those learned from, not those scored

    @property
    def score(self) -> float | None:
        """The study's metric; None where it is not known, or not finite."""
        value = self.measures.get(self.study.metric) if self.status == "finished" else None
        return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Results:
    """A study with all its runs, in the order of the plan."""

    study: StudySettings
    folder: Path
    runs: Sequence[RunResult]

    @property
    def baseline(self) -> str:
        return plan.baseline(self.study)

    @cached_property
    def arms(self) -> dict[str, list[RunResult]]:
        """The arms that are compared, each with its runs, in the order of the seeds: of a search the baseline and the
        best on fresh seeds."""
        compared = [result for result in self.runs if result.item.stage == (2 if self.study.search else 1)]
        return {arm: [r for r in compared if r.item.arm == arm] for arm in dict.fromkeys(r.item.arm for r in compared)}

    @property
    def trials(self) -> list[RunResult]:
        """Of a search, its trials."""
        return [result for result in self.runs if result.item.stage == 1] if self.study.search else []

    def scores(self, arm: str, measure: str | None = None) -> dict[int, float]:
        """Seed → the metric (or another measure) of an arm's finished runs that have it."""
        found = {
            result.item.seed: result.measures.get(measure) if measure else result.score
            for result in self.arms.get(arm, []) if result.status == "finished"
        }  # fmt: skip
        return {seed: value for seed, value in found.items() if value is not None and math.isfinite(value)}

    def varied(self) -> list[str]:
        """The recipe's keys in which the arms (or trials) differ by the study's file."""
        if self.study.search:
            return list(self.study.search.space)
        arms = plan.arms(self.study).values()
        return list(dict.fromkeys(key for arm in arms for key in arm.changes))


def read_results(folder: Path, claims: Claims | None = None, before: Results | None = None) -> Results:
    """The study in `folder`, as far as it is. RecipeError where there is none.

    claims: of a process that looks again and again, and so sees whose heartbeat has stopped
    before: what it saw last; a run that had ended then is not read again
    """
    study = before.study if before else read_study(folder)
    claims = claims or Claims(folder)
    known = {result.item: result for result in before.runs if _is_over(result)} if before else {}
    return Results(
        study, folder, [known.get(item) or read_result(study, item, folder, claims) for item in plan.items(study)]
    )


def _is_over(result: RunResult) -> bool:
    """Whether nothing of it will change: its worker has also said so, and how long it took."""
    said = not result.claims or result.claims[-1].outcome is not None
    return result.status in ENDED and said


def read_study(folder: Path) -> StudySettings:
    """The study whose folder this is; RecipeError where it is none."""
    return settings.build(StudySettings, settings.read_toml(folder / STUDY), str(folder / STUDY))


def read_result(study: StudySettings, item: Item, folder: Path, claims: Claims) -> RunResult:
    """One run, as far as it is."""
    run, history = Run(folder / item.name), claims.all(item.name)
    last = history[-1] if history else None
    held = last is not None and claims.is_held(last)
    state = run.state.get("status")
    words = ""
    if state == "finished" and run.report_files.html.exists():
        status: Status = "finished"
    elif held:  # seen before the state: a run that ends meanwhile is not taken for interrupted
        status = "running"
    elif state in ("stopped", "pruned"):
        status = "pruned" if state == "pruned" else "diverged"
    elif last and (last.outcome == "failed" or _keeps_dying(history)):
        status, words = "failed", last.words
    else:
        status = "interrupted" if (run.folder / RECIPE).exists() else "waiting"
    return RunResult(item, run, status, words, history, study)


def _keeps_dying(history: Sequence[Claim]) -> bool:
    return [claim.outcome for claim in history[-DEATHS:]] == ["killed"] * DEATHS


def _scores(run: Run, study: StudySettings) -> dict[str, float]:
    tree = run.evaluation
    chosen: Tree = tree.get(study.checkpoint) or tree.get("best") or {}  # the best that is the last stands there once
    scores = _numbers(chosen.get(study.on, {}))
    against = tree.get("against_start", {})
    scores |= _numbers({key: value for key, value in against.items() if key in ("win_rate", "kl")})
    if "step" in chosen:
        scores["best_step"] = float(chosen["step"])
    if rewards := [line["mean"] for line in run.metrics("reward")]:
        scores["reward"] = max(rewards)
    return scores


def _cost(result: RunResult) -> dict[str, float]:
    steps = [line for line in result.metrics if line["event"] == "step"]
    if not steps:
        return {}
    origin, last = result.run.origin, steps[-1]
    seconds = result.run.state.get("elapsed_seconds") or last["seconds"]
    before = [0, *(line["step"] for line in steps)]
    spans = [line["step"] - start for line, start in zip(steps, before, strict=False)]
    losses = [line.get("cross_entropy", line["loss"]) for line in steps]
    return _numbers({
        "training_loss": sum(loss * span for loss, span in zip(losses, spans, strict=True)) / sum(spans),
        "last_training_loss": losses[-1],
        "steps": last["step"],
        "seconds": seconds,
        "tokens": last["tokens"],
        "tokens_per_second": last["tokens"] / seconds if seconds else None,
        "memory_bytes": max(line.get("memory_bytes", 0) for line in steps),
        "parameters": origin.get("parameters"),
        "trainable": origin.get("trainable", {}).get("trainable", origin.get("parameters")),
    })  # fmt: skip


def _numbers(tree: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in tree.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def best_trial(results: Results) -> RunResult | None:
    """The search's trial with the best metric; None where none has one."""
    scored = [result for result in results.trials if result.score is not None]
    return min(scored, key=lambda result: results.study.sign * (result.score or 0.0), default=None)
