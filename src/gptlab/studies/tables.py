"""A study's tables in words, the same for HTML and Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from gptlab import words
from gptlab.report.intervals import SHARES
from gptlab.report.table import Table, make_table, put, text
from gptlab.settings import Tree
from gptlab.studies import plan
from gptlab.studies.measures import difference_of, join_ends, name_of, span_of, spread_of, text_of
from gptlab.studies.results import Results, RunResult
from gptlab.studies.rows import difference_rows, mean_of, ranking_rows, states
from gptlab.studies.seed_noise import MOST_SEEDS
from gptlab.studies.settings import PublishedSettings
from gptlab.studies.statistics import Agreement, Effect

COST = ("seconds", "tokens_per_second", "tokens", "steps", "parameters", "trainable", "memory_bytes")
"""What the table of the cost has, and that of the ranking has not again."""

LONGEST = 60
"""Characters of a setting: a list of sources, say, is cut."""


def ranking_table(results: Results) -> Table:
    """The arms, the best first; what a run takes stands in the table of the cost."""
    metric = results.study.metric
    measures = [key for key in results.study.measures if key not in (metric, *COST)]
    rows = [{**row, "rank": rank} for rank, row in enumerate(ranking_rows(results), 1)]
    return make_table(rows, [
        ("arm", lambda row: _marked(results, row["arm"])),
        ("rank", lambda row: put(str, row["rank"] if row["mean"] is not None else None)),
        (name_of(metric), lambda row: put(lambda mean: text_of(metric, mean), row["mean"])),
        ("95\u00a0% interval", lambda row: put(lambda low: span_of(metric, low, row["high"]), row["low"])),
        ("standard deviation", lambda row: put(lambda value: spread_of(metric, value), row["deviation"])),
        ("seeds", lambda row: f"{row['seeds']} of {len(results.arms[row['arm']])}"),
        *((name_of(key), _mean(results, key)) for key in measures),
        ("diverged", lambda row: put(str, row["diverged"] or None)),
        ("failed", lambda row: put(str, row["failed"] or None)),
    ])  # fmt: skip


def difference_table(results: Results) -> Table:
    """Each arm less the baseline."""
    metric = results.study.metric

    def gap(key: str, row: Mapping[str, Any]) -> str | None:
        return put(lambda value: difference_of(metric, value), row[key])

    return make_table(difference_rows(results), [
        ("arm", lambda row: row["arm"]),
        (f"difference in {name_of(metric)}", lambda row: gap("difference", row)),
        ("95\u00a0% interval", lambda row: put(lambda low: join_ends(low, gap("high", row) or ""), gap("low", row))),
        ("p", lambda row: put(p_value, row["p"])),
        ("p, adjusted", lambda row: put(p_value, row["adjusted_p"])),
        ("pairs of seeds", lambda row: str(row["seeds"])),
        ("verdict", lambda row: row["verdict"]),
        ("seeds needed", lambda row: put(needed, row["seeds_needed"])),
    ])  # fmt: skip


def cost_table(results: Results) -> Table:
    """What a run of each arm takes, in the mean over its seeds, of memory the most; without what the ranking is by."""
    adapted = any(run.measures.get("trainable") != run.measures.get("parameters") for run in results.runs)
    left_out = (results.study.metric, *(() if adapted else ("trainable",)))
    columns = [(name_of(key), _mean(results, key)) for key in COST if key not in left_out]
    rows = [{"arm": arm} for arm in results.arms if results.scores(arm, "seconds")]
    return make_table(rows, [("arm", lambda row: row["arm"]), *columns])


def published_table(results: Results) -> Table:
    """Each reported column, the study's metric first; then those beside which what was found here stands, since that is
    a measure of the runs too; then the others."""
    study, published = results.study, results.study.published
    if published is None:
        return make_table([], [])
    columns = dict.fromkeys(column for values in published.values.values() for column in values)
    known = {column: _measure_beside(results, published, column) for column in columns}
    found: list[Any] = [("arm", lambda row: row["arm"])]
    if study.metric not in known.values():
        found.append(_here(results, study.metric))
    for column in sorted(columns, key=lambda column: (column != published.metric, known[column] is None)):
        measure = known[column]
        found.append((f"reported: {column}", lambda row, c=column, m=measure: put(partial(_reported, m), row.get(c))))
        if measure is not None:
            found.append(_here(results, measure))
    arms = dict.fromkeys([*published.values, *results.arms])
    return make_table([{"arm": arm, **published.values.get(arm, {})} for arm in arms], found)


def rank_table(agreement: Agreement | None) -> Table:
    """The order there and here."""
    rows = sorted((row._asdict() for row in agreement.rows), key=lambda row: row["rank_there"]) if agreement else []
    return make_table(rows, [
        ("arm", lambda row: row["arm"]),
        ("rank there", lambda row: str(row["rank_there"])),
        ("rank here", lambda row: str(row["rank_here"])),
    ])  # fmt: skip


def effect_table(effect: Effect, metric: str) -> Table:
    """The metric at each value of a key."""
    return make_table([level._asdict() for level in effect.levels], [
        ("value", lambda row: text("", row["value"])),
        (name_of(metric), lambda row: text_of(metric, row["mean"])),
        ("95\u00a0% interval", lambda row: put(lambda low: span_of(metric, low, row["high"]), row["low"])),
        ("runs", lambda row: str(row["runs"])),
    ])  # fmt: skip


def setting_table(results: Results) -> Table:
    """What the arms differ in: the study's keys, and all else in which their recipes do (what follows from them)."""
    recipes = {arm: _recipe(results, arm) for arm in results.arms}
    known = plan.arms(results.study)
    keys = dict.fromkeys(["recipe", "variant", *results.varied(), *_differing([r for r in recipes.values() if r])])
    rows = [
        {"arm": arm, **({"recipe": known[arm].recipe, "variant": known[arm].variant} if arm in known else {}), **recipe}
        for arm, recipe in recipes.items()
    ]
    columns = [
        (key, lambda row, key=key: put(lambda value: words.cut(text(key, value), LONGEST), row.get(key)))
        for key in keys
    ]
    return make_table(rows, [("arm", lambda row: row["arm"]), *columns])


def trial_table(results: Results) -> Table:
    """Of a search its trials, the best first, then those without a score."""
    metric = results.study.metric
    worst = float("inf")
    sign = results.study.sign
    trials = sorted(results.trials, key=lambda trial: worst if trial.score is None else sign * trial.score)
    rows = [{"result": trial, **trial.recipe} for trial in trials if trial.begun]
    return make_table(rows, [
        ("trial", lambda row: row["result"].item.arm.rpartition("-")[2]),
        (name_of(metric), lambda row: put(lambda value: text_of(metric, value), row["result"].score)),
        *((key, lambda row, key=key: put(lambda value: text(key, value), row.get(key))) for key in results.varied()),
        ("state", lambda row: row["result"].status),
        ("steps", lambda row: _measure(row["result"], "steps")),
        (name_of("seconds"), lambda row: _measure(row["result"], "seconds")),
    ])  # fmt: skip


def run_table(results: Results) -> Table:
    """Every run of the study, in the order of the plan."""
    metric = results.study.metric
    rows = [{"result": result, "state": state} for result, state in zip(results.runs, states(results), strict=True)]
    return make_table(rows, [
        ("run", lambda row: row["result"].item.name),
        ("seed", lambda row: str(row["result"].item.seed)),
        ("state", lambda row: ": ".join(filter(None, [row["state"], row["result"].words]))),
        (name_of(metric), lambda row: put(lambda value: text_of(metric, value), row["result"].score)),
        *((name_of(key), lambda row, key=key: _measure(row["result"], key)) for key in ("steps", "seconds")),
        (name_of("memory_bytes"), lambda row: _measure(row["result"], "memory_bytes")),
        ("sessions", lambda row: put(str, len(row["result"].claims) or None)),
    ])  # fmt: skip


def p_value(p: float) -> str:
    """Three decimals; what is smaller says so."""
    return f"{p:.3f}" if p >= 0.001 else "<\u00a00.001"


def needed(seeds: int) -> str:
    return f"{words.number(seeds)} or more" if seeds >= MOST_SEEDS else words.number(seeds)


def _marked(results: Results, arm: str) -> str:
    """The arm's name, the baseline's marked as such."""
    return f"{arm} (baseline)" if arm == results.baseline != plan.BASELINE else arm


def _mean(results: Results, measure: str) -> Any:
    """The column of a measure's mean."""
    return lambda row: put(lambda value: text_of(measure, value), _mean_or_none(results, row["arm"], measure))


def _mean_or_none(results: Results, arm: str, measure: str) -> float | None:
    return mean_of(results, arm, None if measure == results.study.metric else measure)


def _measure(result: RunResult, measure: str) -> str | None:
    return put(lambda value: text_of(measure, value), result.measures.get(measure))


def _measure_beside(results: Results, published: PublishedSettings, column: str) -> str | None:
    """The measure of the runs beside which a reported column stands; None where it is none."""
    if column == published.metric:
        return results.study.metric
    named = published.measures.get(column)
    return named or (column if any(column in result.measures for result in results.runs) else None)


def _here(results: Results, measure: str) -> tuple[str, Any]:
    """The column of what was found here."""
    return f"here: {name_of(measure)}", _mean(results, measure)


def _reported(measure: str | None, value: float | int | str) -> str:
    """As it is published, to the last digit; a share in per cent, as ours beside it."""
    if isinstance(value, str):
        return value
    return f"{100 * value:.10g}\u00a0%" if measure in SHARES else f"{value:,}"


def _recipe(results: Results, arm: str) -> Tree:
    """An arm's resolved recipe, by dotted keys; before a run of it has begun what the study's file says."""
    begun = next((result for result in results.arms[arm] if result.begun), None)
    known = plan.arms(results.study)
    return begun.recipe if begun else dict(known[arm].changes) if arm in known else {}


def _differing(recipes: list[Tree]) -> list[str]:
    keys = dict.fromkeys(key for recipe in recipes for key in recipe if key not in ("name", "seed"))
    return [key for key in keys if len({repr(recipe.get(key)) for recipe in recipes}) > 1]
