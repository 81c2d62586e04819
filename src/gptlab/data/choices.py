"""Zero-shot tests: what a language model is asked without having been trained for it.

blimp:     67,000 pairs of sentences, only one of each acceptable (Warstadt et al., BLiMP, TACL 8, 2020)
lambada:   5,153 passages whose last word is to be predicted (Paperno et al., 2016; the text as OpenAI detokenised it)
hellaswag: 10,042 beginnings, each with four endings (Zellers et al., 2019; the validation set)

What follows what, to the space, is as lm-evaluation-harness 0.4.13 has it (lm_eval/tasks: blimp/_template_yaml,
lambada/lambada_openai.yaml, hellaswag/hellaswag.yaml and hellaswag/utils.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gptlab.data.choice_records import records_at
from gptlab.data.readers import read_lines
from gptlab.data.tables import Record, text_of
from gptlab.errors import DataError

Kind = Literal["blimp", "lambada", "hellaswag"]

DEFAULT_PLACES: dict[Kind, str] = {
    "blimp": "nyu-mll/blimp",
    "lambada": "EleutherAI/lambada_openai",
    "hellaswag": "Rowan/hellaswag",
}
"""Where each is on the hub."""

BLIMP_COLUMNS = ("sentence_good", "sentence_bad", "field", "linguistics_term", "UID")
HELLASWAG_COLUMNS = ("activity_label", "ctx_a", "ctx_b", "endings", "label")

ONE_NAME = {"s-selection": "argument_structure", "syntax/semantics": "syntax_semantics"}
"""BLiMP's paper has 12 phenomena, and counts the 13th term of its data among argument structure; one of its fields is
written in two ways."""

HELLASWAG_LINES = 6
ANSWERS = ("0", "1", "2", "3")


@dataclass(frozen=True)
class Item:
    """What went before, and what may follow.

    context:       "" where nothing went before
    continuations: each begins with the space that parts it from the context
    answer:        the place of the right one
    groups:        what the item belongs to: {"paradigms": "adjunct_island", …}
    """

    context: str
    continuations: tuple[str, ...]
    answer: int
    groups: Mapping[str, str] = field(default_factory=dict)


def read_choices(kind: Kind, place: str | Path | None = None) -> list[Item]:
    """The items of a test at `place`: a file, a folder, or OWNER/NAME on the hub; by default in DEFAULT_PLACES.

    DataError, with file and line where there is one: no such place, nothing in it, or not in the test's format;
    GptlabError where the hub cannot be reached.
    """
    return READERS[kind](DEFAULT_PLACES[kind] if place is None else place)


def read_blimp(place: str | Path) -> list[Item]:
    """Pairs, of each the acceptable sentence first; their groups are `fields`, `phenomena` and `paradigms`.

    Read are BLiMP.zip as it is published, its .jsonl files or a folder of them, and the hub, where each paradigm is a
    configuration with a file of its own: read as files, all 67 come at once.
    """
    return _all(place, map(_minimal_pair, records_at(place, BLIMP_COLUMNS, split="train", files="**/*.parquet")))


def read_lambada(place: str | Path) -> list[Item]:
    """Passages without their last word, which is what comes after the last space.

    Read are tables with a column `text`, and the hub.
    """
    return _all(place, map(_cloze, records_at(place, ["text"], split="test")))


def read_hellaswag(place: str | Path) -> list[Item]:
    """Beginnings and their four endings, without the marks of WikiHow.

    Read are the published .jsonl (rowanz/hellaswag, data/hellaswag_val.jsonl), the hub, and the text form that
    llama.cpp reads (klosax/hellaswag_text_data): six lines a task. That form does not say where a last, unfinished
    sentence begins, so it is not capitalised there, and scores differ slightly.
    """
    records = records_at(place, HELLASWAG_COLUMNS, split="validation", text=text_tasks)
    return _all(place, map(_four_endings, records))


READERS: dict[Kind, Callable[[str | Path], list[Item]]] = {
    "blimp": read_blimp,
    "lambada": read_lambada,
    "hellaswag": read_hellaswag,
}


def _minimal_pair(record: Record) -> Item:
    good, bad, area, term, paradigm = (_text(record, column) for column in BLIMP_COLUMNS)
    groups = {"fields": ONE_NAME.get(area, area), "phenomena": ONE_NAME.get(term, term), "paradigms": paradigm}
    return Item("", (f" {good}", f" {bad}"), 0, groups)


def _cloze(record: Record) -> Item:
    context, _, word = _text(record, "text").rpartition(" ")
    if not word:
        raise DataError(f"{record.where}: the text ends with a space; wanted the word that is to be predicted")
    return Item(context, (f" {word}",), 0)


def _four_endings(record: Record) -> Item:
    label, endings = str(record.values["label"]), record.values["endings"]
    if label not in ANSWERS:
        raise DataError(f"{record.where}: the label is {label!r}; wanted 0 to 3 (HellaSwag's test split has none)")
    if not isinstance(endings, list) or len(endings) != 4 or not all(isinstance(ending, str) for ending in endings):
        raise DataError(f"{record.where}: the endings are {str(endings)[:40]!r}; wanted a list of four texts")
    clean = [_without_marks(ending) for ending in endings]
    if "" in clean:
        raise DataError(f"{record.where}: ending {clean.index('')} is empty")
    before, unfinished = (text_of(record, column) or "" for column in ("ctx_a", "ctx_b"))
    context = f"{_text(record, 'activity_label')}: {before} {unfinished.capitalize()}"
    return Item(_without_marks(context), tuple(f" {ending}" for ending in clean), int(label))


def _without_marks(text: str) -> str:
    """As `preprocess` of the harness: "[title]" ends a sentence, other brackets are left out."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def text_tasks(path: Path) -> Iterator[Record]:
    """HellaSwag's text form as records: "activity: beginning", the right ending's number, four endings."""
    lines = list(read_lines(path, lambda position: None))
    for start in range(0, len(lines), HELLASWAG_LINES):
        (number, beginning), *rest = lines[start : start + HELLASWAG_LINES]
        label, *endings = [text.strip() for _, text in rest] or [""]
        activity, colon, before = beginning.partition(": ")
        if not colon or label not in ANSWERS or len(endings) != 4:
            raise DataError(
                f"{path}, line {number}: {beginning[:40]!r} begins no task of six lines: wanted an activity, a colon "
                "and a beginning; the number of the right ending, 0 to 3; and four endings"
            )
        values = {"activity_label": activity, "ctx_a": before, "ctx_b": "", "endings": endings, "label": label}
        yield Record(values, str(path), "line", number)


def _text(record: Record, column: str) -> str:
    """The text in a column, which must not be empty."""
    text = text_of(record, column)
    if not text or text.isspace():
        raise DataError(f"{record.where}: column {column!r} is empty")
    return text


def _all(place: str | Path, items: Iterable[Item]) -> list[Item]:
    found = list(items)
    if not found:
        raise DataError(f"{place}: there is nothing in it")
    return found
