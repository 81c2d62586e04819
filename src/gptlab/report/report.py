"""The report of a run: report.html (one file that opens offline), report.md, plots/.

    path = write_report(Run.open("runs/mini-gpt"))

Everything comes from the files of the run directory (docs/formats.md), so a report can be made again at any
time, also of a run that is still going or was stopped. `gather` finds the facts; the templates say them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlab import words
from gptlab.report import markdown, tables
from gptlab.run.files import write_text
from gptlab.settings import to_toml

if TYPE_CHECKING:
    from jinja2 import Environment

    from gptlab.run.run import Run

SHOWN_SAMPLES = 8
"""Of each prompt at most so many texts, evenly over the run; samples.jsonl has all."""

Facts = dict[str, Any]
Record = dict[str, Any]


def write_report(run: Run) -> Path:
    """Writes report.html, report.md and plots/ into the run's folder; returns the path of report.html."""
    from gptlab.report.plots import draw_plots

    files, facts, templates = run.report_files, gather(run), _templates()
    view = {
        **facts,
        "figures": tables.key_figures(facts),
        "score_table": tables.scores(facts),
        "source_table": tables.sources(facts),
        "data_pairs": tables.data(facts),
        "cost_pairs": tables.cost(facts),
        "origin_pairs": tables.pairs(facts["origin"]),
        "sampling_words": tables.sampling(facts),
        "summary": re.sub(r"[ \n]+", " ", templates.get_template("summary.jinja").render(facts)).strip(),
        "plots": draw_plots(run.metrics(), files.plots, facts["unigram_perplexity"]),
    }
    for path in (files.markdown, files.html):
        write_text(path, templates.get_template(f"{path.name}.jinja").render(view))
    return files.html


def gather(run: Run) -> Facts:
    """What the run's files say, as plain values; what they do not say is None or empty."""
    origin, state, metrics = run.origin, run.state, run.metrics()
    data, samples = origin.get("data", {}), run.recipe.get("samples", {})
    steps = [line for line in metrics if line["event"] == "step"]
    scores = list(_scored(run.evaluation)) or _validated(metrics)
    best = _row(scores, "best", "validation")
    return {
        "name": run.name,
        "status": state.get("status"),
        "step": state.get("step") or _last(steps, "step"),
        "total_steps": state.get("total_steps"),
        "model": run.recipe.get("model", {}),
        "parameters": origin.get("parameters"),
        "scores": scores,
        "best": best,
        "test": _row(scores, "best", "test"),
        "unigram_perplexity": best and best.get("unigram_perplexity"),
        "cost": _cost(steps, state, metrics),
        "samples": list(_samples(run.samples())),
        "sampling": {key: value for key, value in samples.items() if key != "prompts"},
        "sources": data.get("table", []),
        "tokenizer": data.get("tokenizer", {}),
        "fingerprints": data.get("fingerprints", {}),
        "notes": [line for line in metrics if line["event"] == "note"],
        "recipe": to_toml(run.recipe),
        "command": _last([line for line in metrics if line["event"] == "start"], "command") or origin.get("command"),
        "device": origin.get("device"),
        "origin": {key: value for key, value in origin.items() if key not in ("command", "data")},
    }


def split_loop(text: str) -> tuple[str, str, str]:
    """(before, loop, after): the first stretch in which four characters or more stand three times or more in
    a row, as greedy writing ends up doing. Rules and indentation do not count; no loop: (text, "", "")."""
    for match in re.finditer(r"(.{4,200}?)\1{2,}", text, re.DOTALL):
        if any(character.isalpha() for character in match[1]):
            return text[: match.start()], match[0], text[match.end() :]
    return text, "", ""


def _scored(tree: Mapping[str, Any], path: tuple[str, ...] = (), outer: Record | None = None) -> Iterator[Record]:
    """The sets of scores in evaluation.json ("best" → "validation" → {...}), each with what is said further out."""
    known = {**(outer or {}), **{key: value for key, value in tree.items() if not isinstance(value, Mapping)}}
    if "perplexity" in tree:
        yield {**known, "model": path[0], "on": path[-1]}
        return
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _scored(value, (*path, key), known)


def _validated(metrics: Sequence[Record]) -> list[Record]:
    """The best and the last validation of a run that has not been evaluated."""
    for event, on in (("validation", "validation"), ("validation_sampled", "validation, a sample")):
        lines = [line for line in metrics if line["event"] == event and math.isfinite(line["loss"])]
        if lines:
            best, last = min(lines, key=lambda line: line["loss"]), lines[-1]
            rows = [{**best, "model": "best", "on": on}, {**last, "model": "last", "on": on}]
            return rows if last["step"] != best["step"] else rows[:1]
    return []


def _row(scores: Sequence[Record], model: str, on: str) -> Record | None:
    return next((row for row in scores if row["model"] == model and row["on"].startswith(on)), None)


def _cost(steps: Sequence[Record], state: Mapping[str, Any], metrics: Sequence[Record]) -> Facts:
    seconds = state.get("elapsed_seconds") or _last(steps, "seconds")
    tokens = _last(steps, "tokens")
    started = [line for line in metrics if line["event"] == "start"]
    shares = [line["peak_share"] for line in steps if line.get("peak_share")]
    return {
        "seconds": seconds,
        "sessions": len(started),
        "tokens": tokens,
        "epochs": _last(steps, "epoch"),
        "tokens_per_second": tokens / seconds if tokens and seconds else None,
        "memory_bytes": max((line["memory_bytes"] for line in steps if line.get("memory_bytes")), default=None),
        "peak_share": sum(shares) / len(shares) if shares else None,
        "precision": _last(started, "precision"),
        "micro_batch_size": _last(started, "micro_batch_size"),
    }


def _samples(samples: Sequence[Record]) -> Iterator[Facts]:
    """Prompt by prompt the texts that were written, the latest first."""
    for prompt in dict.fromkeys(sample["prompt"] for sample in samples):
        texts = [sample for sample in samples if sample["prompt"] == prompt]
        last, shown = len(texts) - 1, min(SHOWN_SAMPLES, len(texts))
        places = sorted({round(last * n / max(1, shown - 1)) for n in range(shown)} | {last}, reverse=True)
        yield {"prompt": prompt, "texts": [texts[place] for place in places]}


def _last(lines: Sequence[Record], key: str) -> Any:
    return next((line[key] for line in reversed(lines) if line.get(key) is not None), None)


def _templates() -> Environment:
    """The templates beside this file; in HTML everything is escaped, for samples hold any text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("gptlab.report"),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    texts = (words.number, words.large, words.perplexity, words.duration, markdown.plain, markdown.code, markdown.block)
    templates.filters.update({function.__name__: function for function in (*texts, split_loop)})
    return templates
