"""The report of a study: report.html (one file that opens offline), report.md, plots/, tables/*.csv.

    path = write_study_report(Path("runs/mini-gpt-five"))

Everything comes from the study's folder: its file, its claims, its run directories. So it can be made again at any
time, also of a study that is still going, and on another machine.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gptlab import words
from gptlab.report.report import make_templates
from gptlab.report.table import Pairs, label, text
from gptlab.run.files import write_text
from gptlab.run.run import STUDY
from gptlab.settings import flatten, to_toml
from gptlab.studies import findings, tables
from gptlab.studies.claims import COMMAND
from gptlab.studies.measures import count_of, name_of
from gptlab.studies.results import ORIGINS, Results, read_results
from gptlab.studies.rows import LEFT_OUT, rows_of, states, write_csv
from gptlab.studies.samples import side_by_side
from gptlab.studies.statistics import Effect, agreement, effects

REPORT, MARKDOWN, PLOTS, TABLES = "report.html", "report.md", "plots", "tables"
"""The report's places in the study's folder."""

IMAGES = (".svg", ".png")

CAPTIONS = {
    "comparison": "The arms, the best first: each seed, the mean, its 95\u00a0% interval; dotted, the baseline's mean",
    "cost": "What is reached over the time that it takes",
    "memory": "The most memory that a run of each arm held",
    "importance": "How much of the metric's variance each key explains",
    "history": "Trial by trial, and the best so far",
    "range_test": "The loss while the learning rate rises by the same factor at every step",
}


def write_study_report(folder: Path) -> Path:
    """Writes report.html, report.md, plots/ and tables/ into a study's folder; returns the path of report.html.

    RecipeError where the folder is no study's.
    """
    from gptlab.studies.curve_plots import curve_captions
    from gptlab.studies.plots import draw_study_plots

    results = read_results(folder)
    rows_by_name = {name: rows for name, rows in rows_of(results).items() if rows}
    for name, rows in rows_by_name.items():
        write_csv(folder / TABLES / f"{name}.csv", rows)
    plots = draw_study_plots(results, folder / PLOTS)
    _remove_others(folder / TABLES, [f"{name}.csv" for name in rows_by_name], [".csv"])
    _remove_others(folder / PLOTS, [f"{name}{kind}" for name in plots for kind in IMAGES], IMAGES)
    view = {**_view(results), "plots": plots, "table_files": [f"{TABLES}/{name}.csv" for name in rows_by_name]}
    templates = make_templates("gptlab.studies", "gptlab.report")
    templates.globals["caption"] = partial(_caption, curve_captions(results))
    for name in (MARKDOWN, REPORT):
        write_text(folder / name, templates.get_template(f"study.{name.partition('.')[2]}.jinja").render(view))
    return folder / REPORT


def _remove_others(folder: Path, written: Sequence[str], kinds: Sequence[str]) -> None:
    """Removes what an earlier report wrote of these kinds and this one did not."""
    for path in folder.glob("*"):
        if path.suffix in kinds and path.name not in written:
            path.unlink()


def _caption(of_curves: Mapping[str, str], plot: str) -> str:
    """What a figure shows, in a sentence."""
    kind, _, of = plot.partition("-")
    if kind == "curve" and of:
        return f"{of}: {of_curves[kind]}"
    if kind == "effect" and of:
        return f"{of}: the metric at each value"
    return {**CAPTIONS, **of_curves}.get(plot, label(plot))


def _view(results: Results) -> dict[str, Any]:
    """What the templates say."""
    study, found, effect_list = results.study, agreement(results), effects(results)
    return {
        "study": study,
        "status": _status(results),
        "metric": name_of(study.metric),
        "better": "lower" if study.less_is_better else "higher",
        "summary": findings.summary(results),
        "warnings": findings.all_warnings(results),
        "figures": _figures(results),
        "ranking_table": tables.ranking_table(results),
        "difference_table": tables.difference_table(results),
        "effects": [(effect, tables.effect_table(effect, study.metric)) for effect in effect_list],
        "importance_words": _importances(effect_list),
        "published_table": tables.published_table(results),
        "rank_table": tables.rank_table(found),
        "agreement": findings.agreement_sentence(found),
        "range_sentences": findings.range_test_sentences(results),
        "trial_table": tables.trial_table(results),
        "cost_table": tables.cost_table(results),
        "samples": side_by_side(results),
        "setting_table": tables.setting_table(results),
        "run_table": tables.run_table(results),
        "run_links": [_link(results.folder, result.item.name) for result in results.runs],
        "base_pairs": _base(results),
        "commands": _commands(results.folder),
        "run_commands": [f"{alone} --fresh" for result in results.runs if (alone := result.run.origin.get("command"))],
        "origin_pairs": _origins(results),
        "study_file": (results.folder / STUDY).read_text(encoding="utf-8"),
        "baseline_recipe": next((to_toml(r.run.recipe) for r in results.arms[results.baseline] if r.begun), None),
    }


def _status(results: Results) -> str:
    found = set(states(results))
    if "running" in found:
        return "running"
    return "finished" if not found & {"waiting", "interrupted"} else "not finished"


def _commands(folder: Path) -> list[tuple[str, str]]:
    """(what it does, command)."""
    typed = (folder / COMMAND).read_text(encoding="utf-8").strip() if (folder / COMMAND).exists() else ""
    command = ["gptlab", "study", str(folder)]
    return [
        *([("It was made by", typed)] if typed else []),
        ("This goes on with it, or makes nothing where all is there", shlex.join(command)),
        ("This makes all of it anew, beside it", shlex.join([*command, "--name", f"{folder.resolve().name}-again"])),
    ]


def _figures(results: Results) -> list[tuple[str, str, str]]:
    """(what, figure, remark) of what a reader looks for first, besides the ranking."""
    done = sum(result.status == "finished" for result in results.runs)
    spent = sum(result.measures.get("seconds", 0.0) for result in results.runs)
    tokens = sum(result.measures.get("tokens", 0.0) for result in results.runs)
    peak = max((result.measures.get("memory_bytes", 0.0) for result in results.runs), default=0.0)
    planned = sum(state != LEFT_OUT for state in states(results))
    remark = f"of {words.number(planned)}" if done < planned else "all"
    return [
        ("runs finished", words.number(done), remark),
        ("training time of all runs", words.duration(spent), f"{words.large(tokens)} tokens"),
        ("peak memory", words.size(peak), "of one run"),
    ][: 3 if spent else 1]


def _importances(found: list[Effect]) -> str | None:
    """How much each key matters; None where that is not known."""
    known = [f"{effect.key} {words.share(effect.importance)}" for effect in found if effect.importance is not None]
    return ", ".join(known) or None


def _base(results: Results) -> Pairs:
    """What all runs have in common."""
    study = results.study
    changes = "; ".join(f"{key} = {text(key, value)}" for key, value in study.changes.items())
    found = [
        ("recipe", study.recipe), ("variant", study.variant or ""), ("changed for every run", changes),
        ("data", ", ".join(study.data)), ("seeds", ", ".join(map(str, study.seeds))), ("baseline", results.baseline),
        ("compared by", f"{name_of(study.metric)} of the {study.checkpoint} checkpoint on the {study.on} set"),
    ]  # fmt: skip
    return [(what, value) for what, value in found if value]


def _origins(results: Results) -> Pairs:
    """Versions, device and commit; where runs differ in one all of it, with how many runs have which."""
    found: dict[str, dict[str, int]] = {}
    for result in results.runs:
        origin = flatten({key: result.run.origin.get(key) for key in ORIGINS})
        for key, value in origin.items():
            if value:
                counts = found.setdefault(key, {})
                counts[str(value)] = counts.get(str(value), 0) + 1
    return [(label(key), _counted(counts)) for key, counts in found.items()]


def _counted(counts: Mapping[str, int]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{value} ({count_of(number, 'run')})" for value, number in counts.items())


def _link(folder: Path, run: str) -> str | None:
    """A run's own report, as seen from the study's."""
    return quote(f"{run}/{REPORT}") if (folder / run / REPORT).exists() else None
