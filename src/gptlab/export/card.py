"""The model card: README.md, with the fields that the hub reads and what a reader wants to know of a model.

Of a run's checkpoint it says what the run's report says (scores, samples, data, cost, recipe, versions); of any other
model, what it is and how to use it. It names no licence: that is for whoever publishes the weights.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gptlab import words
from gptlab.export.gguf import GGUF_FILE
from gptlab.export.source import Source
from gptlab.hub import is_hub_name
from gptlab.model.build import parameter_count
from gptlab.model.classifier import new_model
from gptlab.model.huggingface import read_shape
from gptlab.model.meta import without_memory
from gptlab.report import comparison_tables, markdown, pair_tables, tables, tuning_tables
from gptlab.report.facts import gather
from gptlab.report.table import Pairs, Table, pairs
from gptlab.run.run import Run
from gptlab.settings import Tree
from gptlab.text.dialogue import Message

if TYPE_CHECKING:
    from jinja2 import Environment

Kind = Literal["model", "adapter", "gguf"]

DIALOGUE = (Message("user", "Hello!"), Message("assistant", "Hello. What are you doing today?"))


def write_card(folder: Path, source: Source, kind: Kind, *, place: str) -> None:
    """Writes README.md into `folder`, where `source` has been exported to; `place` is what it will be loaded by."""
    shape = read_shape(source.base or source.folder)
    with without_memory():
        parameters = parameter_count(new_model(shape, source.labels))
    view = {
        **(_facts(source.run, source.folder) if source.run else {}),
        "name": place.rpartition("/")[2],
        "place": place,
        "kind": kind,
        "file": GGUF_FILE,
        "model": {"kind": "gpt", **asdict(shape)},
        "parameters": parameters,
        "task": source.task,
        "labels": source.labels,
        "base": source.base_name,
        "template": source.template,
        "dialogue": source.template.render(DIALOGUE) if source.template else None,
        "front_matter": _front_matter(source, kind),
    }
    templates = _templates()
    view["summary"] = re.sub(r"[ \n]+", " ", templates.get_template("summary.jinja").render(view)).strip()
    (folder / "README.md").write_text(templates.get_template("card.md.jinja").render(view), encoding="utf-8")


def _facts(run: Run, checkpoint: Path) -> dict[str, Any]:
    """What the run's files say, and the report's tables of it."""
    facts = gather(run)
    facts["origin"].get("start", {}).pop("folder", None)  # is elsewhere for every reader
    return {
        **facts,
        "exported_step": int(checkpoint.name),
        "tuning_pairs": tuning_tables.tuning(facts),
        "objective_pairs": pair_tables.objective(facts),
        "score_table": tables.scores(facts),
        "comparison_table": comparison_tables.table(facts),
        "comparison_sentences": comparison_tables.sentences(facts),
        "reward_table": tuning_tables.rewards(facts),
        "sampling_words": tables.sampling(facts),
        "source_table": tables.sources(facts),
        "data_pairs": tables.data(facts),
        "cost_pairs": tables.cost(facts),
        "origin_pairs": pairs(facts["origin"]),
    }


def _front_matter(source: Source, kind: Kind) -> dict[str, str | list[str]]:
    """The fields that the hub reads: https://huggingface.co/docs/hub/model-cards#model-card-metadata"""
    writes = source.task == "language"
    tags = {
        "gptlab": True, "gpt2": True, "conversational": writes and source.template is not None,
        "reward-model": source.task == "reward", "lora": kind == "adapter",
    }  # fmt: skip
    library = {"model": "transformers", "adapter": "peft", "gguf": "gguf"}
    base, datasets = _base_model(source), _datasets(source.run.recipe) if source.run else []
    return {
        "library_name": library[kind],
        "pipeline_tag": "text-generation" if writes else "text-classification",
        "tags": [tag for tag, fits in tags.items() if fits],
        **({"base_model": base} if base else {}),
        **({"datasets": datasets} if datasets else {}),
    }


def _base_model(source: Source) -> str | None:
    """The name on the hub of the model that this one began as, where it has one."""
    if source.base_name and is_hub_name(source.base_name):
        return source.base_name
    start = source.run.origin.get("start", {}) if source.run else {}
    # A name may mean a folder or a run here; what was downloaded lies in the hub's cache, under models--OWNER--NAME.
    cached = f"models--{start.get('name', '').replace('/', '--')}"
    return start["name"] if cached in Path(start.get("folder", "")).parts else None


def _datasets(recipe: Tree) -> list[str]:
    """The names of the data sets on the hub that the recipe reads."""
    data = recipe.get("data", {})
    parts = (data, data.get("validation") or {}, data.get("test") or {})
    names = [source.get("hub") for part in parts for source in part.get("sources") or ()]
    return list(dict.fromkeys(filter(None, names)))


def _templates() -> Environment:
    """The card's template and the report's, whose sentences it shares. What is not known is left out."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader

    templates = Environment(
        loader=ChoiceLoader([PackageLoader("gptlab.export"), PackageLoader("gptlab.report")]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    texts = (words.number, words.large, words.perplexity, words.duration, markdown.plain, markdown.code, markdown.block)
    templates.filters.update({function.__name__: function for function in texts})
    templates.filters.update({"table": _table, "pairs": _pair_table, "shell": shlex.quote})
    return templates


def _table(table: Table) -> str:
    """A table in Markdown; columns of numbers to the right."""
    rule = ["---:" if numeric else "---" for numeric in table.numeric]
    heads, *rows = ([markdown.plain(cell) for cell in row] for row in (table.heads, *table.rows))
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *rows))


def _pair_table(pairs: Pairs) -> str:
    """A table of two columns without heads."""
    return _table(Table(["", ""], [list(pair) for pair in pairs], [False, False]))
