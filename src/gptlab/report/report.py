"""The report of a run: report.html (one file that opens offline), report.md, plots/.

    path = write_report(Run.open("runs/mini-gpt"))

Everything comes from the files of the run directory (docs/formats.md), so a report can be made again at any
time, also of a run that is still going or was stopped. facts.py finds what they say, the tables put it into
words, the templates into sentences.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from gptlab import words
from gptlab.report import class_tables, comparison_tables, markdown, pair_tables, tables, tuning_tables
from gptlab.report.facts import Facts, gather
from gptlab.report.table import pairs
from gptlab.run.files import write_text

if TYPE_CHECKING:
    from jinja2 import Environment

    from gptlab.run.run import Run


def write_report(run: Run) -> Path:
    """Writes report.html, report.md and plots/ into the run's folder; returns the path of report.html."""
    files, facts, templates = run.report_files, gather(run), make_templates("gptlab.report")
    view = {
        **facts,
        "figures": tables.key_figures(facts),
        "verdicts": [*class_tables.verdicts(facts), *pair_tables.verdicts(facts)],
        "tuning_pairs": tuning_tables.tuning(facts),
        "distillation_pairs": class_tables.distillation(facts),
        "objective_pairs": pair_tables.objective(facts),
        "score_table": tables.scores(facts),
        "answer_table": pair_tables.answers(facts),
        "calibration_table": pair_tables.calibration(facts),
        "comparison_table": comparison_tables.table(facts),
        "comparison_sentences": comparison_tables.sentences(facts),
        "class_table": class_tables.per_class(facts),
        "confusion_table": class_tables.confusion(facts),
        "reward_table": tuning_tables.rewards(facts),
        "source_table": tables.sources(facts),
        "class_count_table": class_tables.class_counts(facts),
        "data_pairs": tables.data(facts),
        "cost_pairs": tables.cost(facts),
        "origin_pairs": pairs(facts["origin"]),
        "sampling_words": tables.sampling(facts),
        "summary": re.sub(r"[ \n]+", " ", templates.get_template("summary.jinja").render(facts)).strip(),
        "plots": _plots(run, facts),
    }
    for path in (files.markdown, files.html):
        write_text(path, templates.get_template(f"{path.name}.jinja").render(view))
    return files.html


def _plots(run: Run, facts: Facts) -> dict[str, str]:
    from gptlab.report.class_plots import draw_class_plots
    from gptlab.report.pair_plots import draw_pair_plots
    from gptlab.report.plots import draw_plots

    metrics, folder = run.metrics(), run.report_files.plots
    if facts["classes"]:
        return draw_class_plots(metrics, folder, facts)
    if facts["preferences"]:
        return draw_pair_plots(metrics, folder, facts)
    unigram = None if facts["tuning"] else facts["unigram_perplexity"]  # a tuned model is held against its start
    return draw_plots(metrics, folder, unigram, facts["unit"])


def split_loop(text: str) -> tuple[str, str, str]:
    """(before, loop, after): the first stretch in which four characters or more stand three times or more in
    a row, as greedy writing ends up doing. Rules and indentation do not count; no loop: (text, "", "")."""
    for match in re.finditer(r"(.{4,200}?)\1{2,}", text, re.DOTALL):
        if any(character.isalpha() for character in match[1]):
            return text[: match.start()], match[0], text[match.end() :]
    return text, "", ""


def make_templates(*packages: str) -> Environment:
    """The templates of these packages, looked for in this order; in HTML everything is escaped, for samples hold any
    text."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in packages]),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    texts = (words.number, words.large, words.perplexity, words.duration, markdown.plain, markdown.code, markdown.block)
    templates.filters.update({function.__name__: function for function in (*texts, split_loop)})
    return templates
