"""A table of text, made of facts by columns that say how each is written.

A column in which nothing is known is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptlab import words
from gptlab.settings import flatten

Pairs = list[tuple[str, str]]
"""(what, value) in words."""

Column = tuple[str, Callable[[Mapping[str, Any]], str | None]]

NUMBERS = re.compile(r"(<\s)?[-+\d.,/\s∞]*(\s%| bytes| [kMGT]?B)?(\s\[[-\d., ]+\]| \([\d.]+\s%\))?")
"""A number with its unit, and behind it its interval or share; or what it lies below."""


@dataclass(frozen=True)
class Table:
    """Heads and rows of text; `numeric` says of each column whether it holds numbers."""

    heads: list[str]
    rows: list[list[str]]
    numeric: list[bool]


def make_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> Table:
    """A row of text for each of `rows`."""
    filled = [(head, cells) for head, text in columns if any(cells := [text(row) or "" for row in rows])]
    numeric = [all(NUMBERS.fullmatch(cell) for cell in cells) for _, cells in filled]
    return Table(
        [head for head, _ in filled], [list(row) for row in zip(*(c for _, c in filled), strict=True)], numeric
    )


def pairs(tree: Mapping[str, Any]) -> Pairs:
    """All there is in a tree of plain values."""
    known = ((key, value) for key, value in flatten(tree).items() if value not in (None, "", []))
    return [(label(key), text(key, value)) for key, value in known]


def text(key: str, value: Any) -> str:
    """A value in the words that fit its key."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and key.endswith("bytes"):
        return words.size(value)
    if isinstance(value, int | float):
        return f"{value:.4g}" if abs(value) < 1000 else words.number(value)
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def label(key: str) -> str:
    """`"tokenizer.vocab_size"` → `"tokenizer: vocab size"`."""
    return key.replace("_", " ").replace(".", ": ")


def put(text: Callable[[Any], str], value: Any) -> str | None:
    """The value in words; None stays None."""
    return None if value is None else text(value)


def step_name(row: Mapping[str, Any]) -> str:
    """Which model a row's scores are of: "best, step 500"."""
    return ", step ".join(filter(None, [row["model"], put(words.number, row.get("step"))]))


def left_out(row: Mapping[str, Any], reasons: Mapping[str, str]) -> str:
    """What of a source is not as it was or not there: its counts, by `reasons` (key → words), and what was bad in it,
    by cause; with the first places where they are known."""
    found = [(row[key], what, row.get(f"{key}_at", ())) for key, what in reasons.items() if row.get(key)]
    found += [(count, f"bad: {cause}", row["bad_at"][cause]) for cause, count in row.get("bad", {}).items()]
    return "; ".join(f"{words.number(count)} {what}{_places(places, count)}" for count, what, places in found)


def _places(places: Sequence[str], count: int) -> str:
    return f" ({', '.join([*places, *(['…'] if len(places) < count else [])])})" if places else ""
