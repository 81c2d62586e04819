"""The report's tables: from facts to words, the same for HTML and Markdown.

A column in which nothing is known is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptlab import words
from gptlab.settings import flatten

WINDOW = ("context", "stride")

Pairs = list[tuple[str, str]]
"""(what, value) in words."""

Column = tuple[str, Callable[[Mapping[str, Any]], str | None]]


@dataclass(frozen=True)
class Table:
    """Heads and rows of text; `numeric` says of each column whether it holds numbers."""

    heads: list[str]
    rows: list[list[str]]
    numeric: list[bool]


def key_figures(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, figure, remark) of the handful of numbers a reader looks for first."""
    best, test, cost = facts["best"], facts["test"], facts["cost"]
    found = [
        ("validation perplexity", _perplexity(best), f"best, step {words.number(best['step'])}" if best else ""),
        ("test perplexity", _perplexity(test), "the same checkpoint"),
        (
            "unigram model",
            _put(words.perplexity, facts["unigram_perplexity"]),
            "knows token frequencies alone",
        ),
        ("parameters", _put(words.large, facts["parameters"]), ""),
        ("tokens seen", _put(words.large, cost["tokens"]), _put("{:.2f} epochs".format, cost["epochs"]) or ""),
        ("training time", _put(words.duration, cost["seconds"]), facts["device"] if cost["seconds"] else ""),
    ]
    return [(what, figure, str(remark or "")) for what, figure, remark in found if figure]


def scores(facts: Mapping[str, Any]) -> Table:
    """One row for each checkpoint and set of texts scored."""
    return _table(facts["scores"], [
        ("model", lambda row: ", step ".join(filter(None, [row["model"], _put(words.number, row.get("step"))]))),
        ("on", lambda row: row["on"]),
        ("nats per token", lambda row: _put("{:.4f}".format, row.get("loss"))),
        ("perplexity per token", lambda row: _put(words.perplexity, row.get("perplexity"))),
        ("of the unigram model", lambda row: _put(words.perplexity, row.get("unigram_perplexity"))),
        ("perplexity per word", lambda row: _put(words.perplexity, row.get("perplexity_per_word"))),
        ("bits per byte", lambda row: _put("{:.3f}".format, row.get("bits_per_byte"))),
        ("tokens scored", lambda row: _put(words.number, row.get("tokens"))),
        ("context, stride", lambda row: ", ".join(words.number(row[key]) for key in WINDOW if row.get(key))),
    ])  # fmt: skip


def sources(facts: Mapping[str, Any]) -> Table:
    """What each source gave, whatever was counted of it."""
    keys = dict.fromkeys(key for row in facts["sources"] for key in row)
    heads = {"name": "source"}
    return _table(facts["sources"], [(heads.get(key, _label(key)), _value(key)) for key in keys])


def cost(facts: Mapping[str, Any]) -> Pairs:
    """What the training took."""
    cost, step, total = facts["cost"], facts["step"], facts["total_steps"]
    steps = words.number(step) + (f" of {words.number(total)}" if total and total != step else "") if step else None
    found = [
        ("steps", steps),
        ("training time", _put(words.duration, cost["seconds"])),
        ("sessions", words.number(cost["sessions"]) if cost["sessions"] > 1 else None),
        ("tokens seen", _put(words.number, cost["tokens"])),
        ("epochs", _put("{:.2f}".format, cost["epochs"])),
        ("tokens per second", _put(lambda rate: words.number(round(rate)), cost["tokens_per_second"])),
        ("peak memory", _put(words.size, cost["memory_bytes"])),
        ("share of the machine's measured peak", _put(words.share, cost["peak_share"])),
        ("precision", cost["precision"]),
        ("micro-batch", _put("{:,} rows".format, cost["micro_batch_size"])),
    ]
    return [(what, value) for what, value in found if value]


def sampling(facts: Mapping[str, Any]) -> str:
    """How the samples were drawn: "temperature 0.8, top-k 40, at most 40 tokens"; what changes nothing is left out."""
    kept = {key: value for key, value in facts["sampling"].items() if (key, value) not in (("top_k", 0), ("top_p", 1))}
    forms = {
        "temperature": "temperature {}",
        "top_k": "top-k {}",
        "top_p": "top-p {}",
        "max_new_tokens": "at most {} tokens",
    }
    return ", ".join(form.format(kept[key]) for key, form in forms.items() if key in kept)


def data(facts: Mapping[str, Any]) -> Pairs:
    """The tokenizer, and the fingerprints by which a second preparation can be told from this one."""
    return pairs({"tokenizer": facts["tokenizer"], "fingerprint": facts["fingerprints"]})


def pairs(tree: Mapping[str, Any]) -> Pairs:
    """All there is in a tree of plain values."""
    known = ((key, value) for key, value in flatten(tree).items() if value not in (None, "", []))
    return [(_label(key), _text(key, value)) for key, value in known]


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> Table:
    filled = [(head, cells) for head, text in columns if any(cells := [text(row) or "" for row in rows])]
    numeric = [all(not cell or cell[0].isdigit() or cell == "∞" for cell in cells) for _, cells in filled]
    return Table(
        [head for head, _ in filled], [list(row) for row in zip(*(c for _, c in filled), strict=True)], numeric
    )


def _value(key: str) -> Callable[[Mapping[str, Any]], str | None]:
    return lambda row: _put(lambda value: _text(key, value), row.get(key))


def _text(key: str, value: Any) -> str:
    """A value in the words that fit its key."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and key.endswith("bytes"):
        return words.size(value)
    if isinstance(value, int | float):
        return f"{value:.4g}" if abs(value) < 1000 else words.number(value)
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _label(key: str) -> str:
    """`"tokenizer.vocab_size"` → `"tokenizer: vocab size"`."""
    return key.replace("_", " ").replace(".", ": ")


def _put(text: Callable[[Any], str], value: Any) -> str | None:
    return None if value is None else text(value)


def _perplexity(row: Mapping[str, Any] | None) -> str | None:
    return _put(words.perplexity, row.get("perplexity")) if row else None
