"""The report's tables: from facts to words, the same for HTML and Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gptlab import words
from gptlab.report import class_tables, pair_tables, tuning_tables
from gptlab.report.table import Pairs, Table, label, make_table, pairs, put, step_name, text

WINDOW = ("context", "stride")


def key_figures(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, figure, remark) of the handful of numbers a reader looks for first."""
    cost = facts["cost"]
    epochs = put("{:.2f} epochs".format, cost["epochs"])
    rate = put("{} a second".format, _rate(cost)) if facts["classes"] or facts["preferences"] else None
    found = [
        *_scored_figures(facts),
        ("parameters", put(words.large, facts["parameters"]), tuning_tables.trained_in_words(facts)),
        (_seen(facts), put(words.large, cost["tokens"]), ", ".join(filter(None, [epochs, rate]))),
        ("training time", put(words.duration, cost["seconds"]), facts["device"] if cost["seconds"] else ""),
    ]
    return [(what, figure, str(remark or "")) for what, figure, remark in found if figure]


def _scored_figures(facts: Mapping[str, Any]) -> list[tuple[str, str | None, str]]:
    """Those that say how good it is at what it learns."""
    if facts["preferences"]:
        return pair_tables.key_figures(facts)
    return class_tables.key_figures(facts) if facts["classes"] else _language_figures(facts)


def _language_figures(facts: Mapping[str, Any]) -> list[tuple[str, str | None, str]]:
    best, test = facts["best"], facts["test"]
    unigram = None if facts["tuning"] else put(words.perplexity, facts["unigram_perplexity"])
    return [
        *tuning_tables.changes(facts),
        ("validation perplexity", _perplexity(best), f"best, step {words.number(best['step'])}" if best else ""),
        ("test perplexity", _perplexity(test), "the same checkpoint"),
        ("unigram model", unigram, "knows token frequencies alone"),
    ]


def scores(facts: Mapping[str, Any]) -> Table:
    """One row for each checkpoint and set of texts scored."""
    if facts["classes"]:
        return class_tables.scores(facts)
    if facts["preferences"]:
        return pair_tables.scores(facts)
    unit, dialogues = facts["unit"], facts["dialogues"]
    window = WINDOW[:1] if dialogues and not dialogues["pack"] else WINDOW  # a dialogue is a row of its own
    return make_table(facts["scores"], [
        ("model", step_name),
        ("on", lambda row: row["on"]),
        (f"nats per {unit}", lambda row: put("{:.4f}".format, row.get("nats"))),
        ("loss with the teacher's share", class_tables.mixed_loss),
        (f"perplexity per {unit}", lambda row: put(words.perplexity, row.get("perplexity"))),
        ("of the unigram model", lambda row: put(words.perplexity, row.get("unigram_perplexity"))),
        ("perplexity per word", lambda row: put(words.perplexity, row.get("perplexity_per_word"))),
        ("bits per byte", lambda row: put("{:.3f}".format, row.get("bits_per_byte"))),
        ("tokens scored", lambda row: put(words.number, row.get("tokens"))),
        (", ".join(window), lambda row: ", ".join(words.number(row[key]) for key in window if row.get(key))),
    ])  # fmt: skip


def sources(facts: Mapping[str, Any]) -> Table:
    """What each source gave."""
    if facts["dialogues"]:
        return tuning_tables.dialogue_sources(facts["sources"])
    if facts["classes"]:
        return class_tables.sources(facts["sources"])
    if facts["preferences"]:
        return pair_tables.sources(facts["sources"])
    keys = dict.fromkeys(key for row in facts["sources"] for key in row)
    heads = {"name": "source"}
    return make_table(facts["sources"], [(heads.get(key, label(key)), _value(key)) for key in keys])


def cost(facts: Mapping[str, Any]) -> Pairs:
    """What the training took."""
    cost, step, total = facts["cost"], facts["step"], facts["total_steps"]
    steps = words.number(step) + (f" of {words.number(total)}" if total and total != step else "") if step else None
    with_all = cost["seconds"] / step if cost["seconds"] and step else None
    found = [
        ("steps", steps),
        ("training time", put(words.duration, cost["seconds"])),
        ("seconds a step", put(words.number, cost["step_seconds"])),
        ("with validating, sampling, saving", put(words.number, with_all)),
        ("sessions", words.number(cost["sessions"]) if cost["sessions"] > 1 else None),
        (_seen(facts), put(words.number, cost["tokens"])),
        ("epochs", put("{:.2f}".format, cost["epochs"])),
        (f"{facts['unit']}s per second", _rate(cost)),
        ("peak memory", put(words.size, cost["memory_bytes"])),
        ("share of the machine's measured peak", put(words.share, cost["peak_share"])),
        ("precision", cost["precision"]),
        ("micro-batch", put(f"{{:,}} {'pairs' if facts['preferences'] else 'rows'}".format, cost["micro_batch_size"])),
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
    """How dialogues or pairs are read, the tokenizer, and the fingerprints by which a second preparation can be told
    from this one."""
    found = pairs({"tokenizer": facts["tokenizer"], "fingerprint": facts["fingerprints"]})
    return [*tuning_tables.reading(facts["dialogues"]), *pair_tables.reading(facts), *found]


def _seen(facts: Mapping[str, Any]) -> str:
    """What the run's tokens are called: of dialogues more are read than are learned."""
    return "tokens seen" if facts["unit"] == "token" else f"{facts['unit']}s learned from"


def _rate(cost: Mapping[str, Any]) -> str | None:
    """Items a second; of a few with a fraction."""
    return put(lambda rate: f"{rate:,.{0 if rate >= 10 else 1}f}", cost["tokens_per_second"])


def _value(key: str) -> Callable[[Mapping[str, Any]], str | None]:
    return lambda row: put(lambda value: text(key, value), row.get(key))


def _perplexity(row: Mapping[str, Any] | None) -> str | None:
    return put(words.perplexity, row.get("perplexity")) if row else None
