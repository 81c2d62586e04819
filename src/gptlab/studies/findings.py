"""What a study found, in sentences, and what a reader must know before believing it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gptlab import words
from gptlab.report.table import text
from gptlab.studies.measures import count_of, difference_of, join_ends, name_of, span_of, text_of
from gptlab.studies.plan import BASELINE
from gptlab.studies.range_test import range_test, warnings
from gptlab.studies.results import ORIGINS, Results, best_trial
from gptlab.studies.rows import LEFT_OUT, states
from gptlab.studies.seed_noise import MOST_SEEDS
from gptlab.studies.statistics import Agreement, ArmScore, Difference, Verdict, differences, ranking
from gptlab.studies.tables import needed, p_value

FEW_SEEDS = 3
"""With fewer an interval is so wide that hardly any difference stands out."""


def summary(results: Results) -> str:
    """The study in one paragraph: what there is of it, who is best and how sure that is."""
    if _is_test_alone(results):
        return " ".join([_extent(results), *range_test_sentences(results)])
    scores = [score for score in ranking(results) if score.mean is not None]
    found = [_extent(results), *_best_trial(results)]
    if scores:
        found += [*_best(results, scores), *_others(results)]
    else:
        found.append(f"No run has a {name_of(results.study.metric)} yet.")
    return " ".join(found)


def agreement_sentence(agreement: Agreement | None) -> str | None:
    """How much of a publication's order is found here; None where nothing can be said of it."""
    if agreement is None:
        return None
    found = _pairs(agreement) if agreement.tested else []
    if agreement.spearman is not None:
        found.append(f"The rank correlation of what is reported and the means here is {agreement.spearman:.2f}.")
    return " ".join(found) or None


def _pairs(agreement: Agreement) -> list[str]:
    """Of which pairs of arms the order is that of the publication."""
    turned = agreement.pairs_reversed
    pairs = agreement.pairs_same + len(turned) + agreement.pairs_open
    if not pairs:
        return []
    names = f" ({_listed([f'{better} before {worse}' for better, worse in turned])})" if turned else ""
    return [
        f"Of the {count_of(pairs, 'pair')} of arms that differ there, {agreement.pairs_same} stand in the same order "
        f"here beyond seed noise, {len(turned)} the other way round{names}, and of {agreement.pairs_open} it cannot be "
        "told."
    ]


def range_test_sentences(results: Results) -> list[str]:
    """What the range test says of learning rates."""
    found = next((found for result in results.runs if (found := range_test(result))), None)
    if found is None:
        return []
    suggested = "The test suggests no rate: nothing was learned."
    if found.suggested is not None:
        suggested = f"A tenth of the rate with the lowest smoothed loss is {found.suggested:.2g}, a rate to begin with."
    diverges = f"From {found.diverges_at:.2g} on it diverges." if found.diverges_at else "It diverges nowhere."
    return [f"{suggested} {diverges}"]


def all_warnings(results: Results) -> list[str]:
    """What a reader must know before believing the rest."""
    diverged = (f"{sentence}." for sentence in warnings(results))
    return [*diverged, *_unmade(results), *_seeds(results), *_origins(results)]


def _extent(results: Results) -> str:
    study, found = results.study, states(results)
    what = f"compares {count_of(len(results.arms), 'arm')}"
    if study.search:
        what = f"searches in {count_of(len(results.trials), 'trial')} and then compares the best with the baseline,"
    if _is_test_alone(results):
        what, found = "is a learning rate range test alone,", [state for state in found if state != LEFT_OUT]
    extent = f"{study.name} {what} in {count_of(len(found), 'run')}"
    counts = {state: found.count(state) for state in dict.fromkeys(found)}
    if set(counts) == {"finished"}:
        return f"{extent}, {'all of ' if len(found) > 1 else ''}which finished."
    return f"{extent}: {', '.join(f'{number} {state}' for state, number in counts.items())}."


def _is_test_alone(results: Results) -> bool:
    """Whether the budget has room for the range test, and for no run behind it."""
    behind = (state for result, state in zip(results.runs, states(results), strict=True) if result.item.stage > 0)
    return results.study.range_test is not None and all(state == LEFT_OUT for state in behind)


def _best_trial(results: Results) -> Iterator[str]:
    """Of a search what its best trial was given."""
    trial = best_trial(results)
    if trial is not None:
        values = (f"{key} {text(key, trial.recipe[key])}" for key in results.varied() if key in trial.recipe)
        yield f"The best trial, {trial.item.arm}, has {', '.join(values)}."


def _best(results: Results, scores: Sequence[ArmScore]) -> Iterator[str]:
    best, base = scores[0], next((score for score in scores if score.arm == results.baseline), None)
    yield f"The best {name_of(results.study.metric)} is that of {_named(results, best)}, {_figure(results, best)}."
    if base is not None and base is not best:
        gap = next(difference for difference in differences(results) if difference.arm == best.arm)
        yield f"T{_named(results, base)[1:]} has {_figure(results, base)}. {_gap(results, gap)}"


def _named(results: Results, score: ArmScore) -> str:
    if score.arm != results.baseline:
        return "the best trial" if results.study.search else score.arm
    return "the baseline" if score.arm == BASELINE else f"the baseline ({score.arm})"


def _figure(results: Results, score: ArmScore) -> str:
    """`"122.75 (95 %: 120.10 to 125.40; 3 seeds)"`."""
    metric, seeds = results.study.metric, count_of(len(score.values), "seed")
    mean = text_of(metric, score.mean or 0.0)
    if score.low is None or score.high is None:
        return f"{mean} ({seeds})"
    return f"{mean} (95\u00a0%: {span_of(metric, score.low, score.high)}; {seeds})"


def _gap(results: Results, gap: Difference) -> str:
    metric = results.study.metric
    if gap.difference is None:
        return "The two have no seed in common, so they cannot be compared."
    size = difference_of(metric, gap.difference)
    if gap.verdict == "not known" or gap.low is None or gap.high is None or gap.adjusted_p is None:
        return f"The difference, {size}, is that of one seed: whether it is more than seed noise is not known."
    span = f"95\u00a0%: {join_ends(difference_of(metric, gap.low), difference_of(metric, gap.high))}"
    p = p_value(gap.adjusted_p)
    adjusted = f"adjusted p {p if p.startswith('<') else f'= {p}'}"
    if gap.seeds_needed is None:
        return f"The difference, {size} ({span}), stands out of seed noise ({adjusted})."
    return f"The difference, {size} ({span}), is within seed noise ({adjusted}); {_needed(gap.seeds_needed)}."


def _needed(seeds: int) -> str:
    if seeds >= MOST_SEEDS:
        return f"not even {words.number(MOST_SEEDS)} seeds would be likely to show it"
    return f"were it real, some {needed(seeds)} seeds would be needed to show it"


def _others(results: Results) -> Iterator[str]:
    """How many of the other arms are better and worse, where there are several."""
    found = differences(results)
    if len(found) < 2:
        return
    forms: dict[Verdict, str] = {
        "better": "better than the baseline", "worse": "worse", "within seed noise": "within seed noise of it",
        "not known": "not known yet",
    }  # fmt: skip
    arms = {form: [gap.arm for gap in found if gap.verdict == verdict] for verdict, form in forms.items()}
    parts = [f"{len(which)} {form} ({_listed(which)})" for form, which in arms.items() if which]
    yield f"Of the {len(found)} other arms: {'; '.join(parts)}."


def _unmade(results: Results) -> Iterator[str]:
    """Runs that failed, and those for which the budget had no room."""
    for result in results.runs:
        if result.status == "failed":
            yield f"{result.item.name} failed: {' '.join(result.words.split()) or 'it does not say why'}."
    budget, runs = results.study.budget, list(zip(states(results), results.runs, strict=True))
    named = {state: [result.item.name for each, result in runs if each == state] for state, _ in runs}
    if begun := [*named.get("running", []), *named.get("interrupted", [])]:
        yield f"{count_of(len(begun), 'run')} not finished: {_listed(begun)}."
    if waiting := named.get("waiting"):
        goes_on = "running" in named
        why = f" The budget is {words.duration(60 * budget.minutes)}." if budget.minutes and not goes_on else ""
        yield f"{count_of(len(waiting), 'run')} not made{' yet' * goes_on}: {_listed(waiting)}.{why}"
    if left_out := named.get(LEFT_OUT):
        yield f"The budget of {count_of(budget.runs or 0, 'run')} leaves out {_listed(left_out)}."


def _seeds(results: Results) -> Iterator[str]:
    """Of few seeds, and of those without a score; one arm is compared with nothing."""
    if len(results.arms) < 2:
        return
    seeds = {arm: len(runs) for arm, runs in results.arms.items()}
    most = max(seeds.values(), default=0)
    if most == 1:
        yield "Every arm has one seed: how much of a difference is chance cannot be said."
    elif most < FEW_SEEDS:
        yield f"Every arm has {most} seeds: intervals are so wide that hardly any difference can stand out."
    short = [
        arm for arm, runs in results.arms.items()
        if any(run.status == "finished" for run in runs) and len(results.scores(arm)) < seeds[arm]
    ]  # fmt: skip
    if short:
        yield f"Not all seeds have a score: {_listed(short)}."


def _origins(results: Results) -> Iterator[str]:
    """Runs that were made by different versions, or on different machines."""
    origins = [result.run.origin for result in results.runs if result.begun]
    for key in ORIGINS:
        found = {repr(origin.get(key)) for origin in origins}
        if len(found) > 1:
            what = {"versions": "versions of the lab or what it stands on", "device": "devices", "commit": "commits"}
            yield f"The runs were made with {len(found)} different {what[key]}; To repeat it, below, has them."


def _listed(names: Sequence[str], shown: int = 6) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
