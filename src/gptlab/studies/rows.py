"""A study's tables as rows of plain values: what the CSV files have, and what a data frame is made of."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gptlab.run.files import write_text
from gptlab.studies.results import Results, RunResult
from gptlab.studies.statistics import differences, ranking

Row = dict[str, Any]

CURVES = ("step", "validation", "validation_sampled", "reward")
"""The lines of metrics.jsonl that are a point of a curve."""

LEFT_OUT = "left out by the budget"
"""The state of a run that waits and for which `budget.runs` has no room."""


def rows_of(results: Results) -> dict[str, list[Row]]:
    """Table → its rows: ranking, differences, runs, trials (of a search), curves, published."""
    return {
        "ranking": ranking_rows(results),
        "differences": difference_rows(results),
        "runs": run_rows(results.runs),
        "trials": run_rows(results.trials, results.varied()),
        "curves": curve_rows(results),
        "published": published_rows(results),
    }


def ranking_rows(results: Results) -> list[Row]:
    """A row an arm, the best first: `ArmScore` with the number of its seeds, then `mean_of` each of the study's further
    measures."""
    found = []
    for score in ranking(results):
        row = asdict(score)
        seeds = len(row.pop("values"))
        others = {measure: mean_of(results, score.arm, measure) for measure in results.study.measures}
        found.append({"arm": row.pop("arm"), "seeds": seeds, **row, **others})
    return found


def difference_rows(results: Results) -> list[Row]:
    """A row for each arm but the baseline: `Difference`."""
    return [asdict(difference) for difference in differences(results)]


def run_rows(runs: Sequence[RunResult], keys: Sequence[str] = ()) -> list[Row]:
    """A row a run, with all its measures, and what its recipe has at `keys`."""
    return [
        {
            "run": result.item.name, "arm": result.item.arm, "seed": result.item.seed, "status": result.status,
            **{key: result.recipe.get(key) for key in keys}, **result.measures, "sessions": len(result.claims),
            "words": result.words,
        }
        for result in runs
    ]  # fmt: skip


def curve_rows(results: Results) -> list[Row]:
    """Long form: a row for each logged line of each run, with its numbers."""
    return [
        {"run": result.item.name, "arm": result.item.arm, "seed": result.item.seed, "event": line["event"]}
        | {key: value for key, value in line.items() if isinstance(value, int | float)}
        for result in results.runs
        for line in result.metrics
        if line["event"] in CURVES
    ]


def published_rows(results: Results) -> list[Row]:
    """A row for each arm that the publication or the study has: what is reported, and the metric's mean here."""
    published = results.study.published
    if published is None:
        return []
    arms = dict.fromkeys([*published.values, *results.arms])
    return [
        {
            "arm": arm, **{f"reported {column}": value for column, value in published.values.get(arm, {}).items()},
            f"{results.study.metric} here": mean_of(results, arm),
        }
        for arm in arms
    ]  # fmt: skip


def states(results: Results) -> list[str]:
    """Of every run its status, or that it is left out."""
    most = len(results.runs) if results.study.budget.runs is None else results.study.budget.runs
    return [
        LEFT_OUT if number >= most and result.status == "waiting" else result.status
        for number, result in enumerate(results.runs)
    ]


def mean_of(results: Results, arm: str, measure: str | None = None) -> float | None:
    """The mean over an arm's seeds of the metric, or of another measure, but of memory the most, for all of it must be
    there; None where it is not known."""
    values = results.scores(arm, measure).values()
    if not values:
        return None
    return max(values) or None if measure == "memory_bytes" else sum(values) / len(values)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows with a head that has every key, in the order in which they first come; None is an empty cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    out = io.StringIO()
    table = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, out.getvalue())
