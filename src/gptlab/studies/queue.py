"""Which run of a study comes next, and what the budget lets begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from gptlab.studies.plan import Item
from gptlab.studies.results import ENDED, Results, RunResult


def waiting(results: Results, workers: int, again: Mapping[str, int]) -> list[Item]:
    """The runs that may begin now, in order. `again`: failed runs that are tried anew, by the number of claims that
    had failed before."""
    if broken(results, again):
        return []
    for stage in sorted({_stage(result.item) for result in results.runs}):
        of_stage = [result for result in results.runs if _stage(result.item) == stage]
        free = [result for result in of_stage if _is_free(result, again)]
        affordable = [result.item for result in free if within_budget(results, result.item, workers)]
        if affordable:
            return affordable
        if any(result.status == "running" for result in of_stage):
            return []  # what comes after needs all of this stage
    return []


def _stage(item: Item) -> tuple[int, int]:
    """What must have ended before the next begins; each of the first runs is a stage of its own."""
    return item.stage, item.round if item.stage == 0 else 0


def _is_free(result: RunResult, again: Mapping[str, int]) -> bool:
    if result.status == "failed":
        return len(result.claims) <= again.get(result.item.name, 0)
    return result.status in ("waiting", "interrupted")


def broken(results: Results, again: Mapping[str, int]) -> list[RunResult]:
    """The first runs that failed, without which no other can be made."""
    return [
        result
        for result in results.runs
        if result.item.arm in results.study.first
        and (result.status == "diverged" or (result.status == "failed" and not _is_free(result, again)))
    ]


def within_budget(results: Results, item: Item, workers: int) -> bool:
    """Whether a run may begin: among the first `budget.runs`, and in a round that ends in time at the speed of the runs
    that have ended. The first round of a stage is always made, and one that has begun is ended."""
    budget = results.study.budget
    order = [result.item for result in results.runs]
    if budget.runs is not None and order.index(item) >= budget.runs:
        return False
    if budget.minutes is None or item.stage == 0 or item.round == 0:
        return True
    same = [r for r in results.runs if (r.item.stage, r.item.round) == (item.stage, item.round)]
    if any(result.status not in ("waiting", "failed") for result in same):
        return True
    left = [
        r for r in results.runs
        if r.item.stage == item.stage and r.item.round <= item.round and r.status not in (*ENDED, "running")
    ]  # fmt: skip
    reserved = [result for result in results.runs if result.item.stage > item.stage]
    ahead = sum(expected_seconds(results, result.item) or 0.0 for result in [*left, *reserved])
    going = sum(expected_seconds(results, r.item) or 0.0 for r in results.runs if r.status == "running")
    return (spent_seconds(results.runs) + going + ahead) / workers <= budget.minutes * 60


def spent_seconds(runs: Sequence[RunResult]) -> float:
    """What all workers together have spent on these runs."""
    return sum(claim.seconds for result in runs for claim in result.claims)


def expected_seconds(results: Results, item: Item) -> float | None:
    """How long a run will take, from those that have ended: the same arm's, else all of its stage; None before one
    has."""
    ended = [result for result in results.runs if result.status == "finished"]
    alike = [r for r in ended if r.item.arm == item.arm] or [r for r in ended if r.item.stage == item.stage] or ended
    return fmean(spent_seconds([result]) for result in alike) if alike else None
