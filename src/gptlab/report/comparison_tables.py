"""What came of DPO: the answers beside those of the model that it started as, and how far it has gone from that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gptlab import words
from gptlab.report.intervals import interval, joined, percent, with_interval
from gptlab.report.table import Table, make_table

LENGTHENED = 0.1
"""Answers that have grown by more than this share are said to have."""


def key_figures(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, figure, remark): how often the new answer is the better one, and how long both are."""
    if not (found := _comparison(facts)):
        return []
    tokens, figures = found["answer_tokens"], []
    if found["win_rate"] is not None:
        remark = joined(interval(found, "win_rate"), f"of {words.number(found['prompts'])} prompts")
        figures.append(("win rate against its start", percent(found["win_rate"]), remark))
    return [*figures, ("tokens of an answer", f"{tokens['before']:.1f} → {tokens['after']:.1f}", _grown(tokens) or "")]


def verdicts(facts: Mapping[str, Any]) -> list[str]:
    """A sentence where the judge finds the answers no better than the start's."""
    found = _comparison(facts)
    if not found or found["win_rate"] is None or found["win_rate_low"] > 0.5:
        return []
    rate = f"win rate {percent(found['win_rate'])}, {interval(found, 'win_rate')}"
    return [f"By its judge it {_against_start(found)} ({rate})."]


def sentences(facts: Mapping[str, Any]) -> list[str]:
    """What the table below them comes to."""
    found = _comparison(facts)
    return list(_sentences(found)) if found else []


def table(facts: Mapping[str, Any]) -> Table:
    """What the start and the model score on the same prompts and the same text."""
    found = _comparison(facts)
    return make_table(list(_rows(found)) if found else [], [
        ("", lambda row: row["what"]),
        ("start", lambda row: row.get("before")),
        ("after DPO", lambda row: row.get("after")),
        ("difference", lambda row: row.get("difference")),
    ])  # fmt: skip


def _comparison(facts: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return facts["preferences"] and facts["preferences"]["comparison"]


def _sentences(comparison: Mapping[str, Any]) -> Iterator[str]:
    tokens, prompts = comparison["answer_tokens"], words.number(comparison["prompts"])
    if comparison["win_rate"] is not None:
        ties = f"ties, which count half: {words.number(comparison['ties'])}" if comparison["ties"] else None
        remark = joined(interval(comparison, "win_rate"), ties)
        yield (
            f"A reward model prefers its answer to its start's on {percent(comparison['win_rate'])} of {prompts} "
            f"prompts ({remark}): by this judge it {_against_start(comparison)}."
        )
    if tokens["after"] > (1 + LENGTHENED) * tokens["before"] > 0:
        yield (
            f"DPO lengthens: its answers have {tokens['after']:.1f} tokens in the mean, its start's "
            f"{tokens['before']:.1f} ({_grown(tokens)}), and a reward model may like an answer for its length alone."
        )


def _rows(comparison: Mapping[str, Any]) -> Iterator[dict[str, str | None]]:
    reward, other = comparison["reward"], comparison["other_text"]
    tokens, ended = comparison["answer_tokens"], comparison["ended"]
    if reward:
        scores = {**reward, "difference_low": reward["low"], "difference_high": reward["high"]}
        columns = {when: with_interval(scores, when) for when in ("before", "after", "difference")}
        yield {"what": f"mean reward by {reward['model']} [95\u00a0%]", **columns}
    yield {
        "what": "tokens of an answer",
        "before": f"{tokens['before']:.1f}",
        "after": f"{tokens['after']:.1f}",
        "difference": _grown(tokens),
    }
    yield {
        "what": "answers that end by themselves",
        "before": words.share(ended["before"]),
        "after": words.share(ended["after"]),
    }
    if other:
        perplexity = other["perplexity"]
        yield {
            "what": f"perplexity of other text: {other['name']}, {words.number(other['tokens'])} tokens",
            "before": words.perplexity(perplexity["before"]),
            "after": words.perplexity(perplexity["after"]),
            "difference": _grown(perplexity),
        }
    yield {"what": "KL from its start, nats a token", "after": f"{comparison['kl']:.4f}"}


def _against_start(comparison: Mapping[str, Any]) -> str:
    """What the win rate's interval says, to stand after "it"."""
    if comparison["win_rate_low"] > 0.5:
        return "is better than its start"
    if comparison["win_rate_high"] < 0.5:
        return "is worse than its start"
    return "cannot be told apart from its start, for the interval includes 50\u00a0%"


def _grown(values: Mapping[str, float]) -> str | None:
    """By how much the value of after is more than that of before; None where there is nothing to divide by."""
    if not values["before"]:
        return None
    percent_more = 100 * (values["after"] / values["before"] - 1)
    return f"{percent_more:+.{0 if abs(percent_more) >= 10 else 1}f}\u00a0%"
