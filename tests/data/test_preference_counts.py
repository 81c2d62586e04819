"""What the table of preferences says, and when it warns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gptlab.data.preference_counts import PreferenceCounts, Tally, warnings_about
from gptlab.data.preference_encoding import EncodedAnswers
from gptlab.data.splitting import Split


def encoded(start: int, chosen: int, rejected: int, **keys: Any) -> EncodedAnswers:
    ids = [np.zeros(start + length, np.int64) for length in (chosen, rejected)]
    defaults = {"length": max(map(len, ids)), "prompt_cut": False, "answers_cut": 0}
    return EncodedAnswers(ids, start, **(defaults | keys))


def counts(*pairs: EncodedAnswers, name: str = "a.jsonl", split: Split = "train") -> PreferenceCounts:
    tally = Tally()
    for pair in pairs:
        tally.add(pair)
    return tally.counts(name, split, None)


def test_what_is_counted() -> None:
    found = counts(encoded(5, 3, 4), encoded(2, 6, 1), encoded(3, 2, 2, length=40, prompt_cut=True, answers_cut=2))
    assert (found.pairs, found.rows, found.tokens) == (3, 3, 8 + 9 + 8 + 3 + 5 + 5)
    assert (found.chosen_tokens, found.rejected_tokens, found.longer, found.as_long) == (11, 7, 1, 1)
    assert (found.prompt_cut, found.answers_cut) == (1, 2)
    assert found.percentiles == [9, 40, 40, 40]
    assert found.length_bias == "chosen is longer in 33 % of the pairs, 4 against 2 tokens in the mean"
    assert found.remarks == f"{found.length_bias}; 1 prompts cut from the left, 2 answers cut"
    assert counts().length_bias == counts().remarks == ""


@pytest.mark.parametrize(
    ("longer", "shorter", "as_long", "side"),
    [
        (61, 39, 0, "chosen"), (60, 40, 0, None), (40, 60, 0, None), (39, 61, 0, "rejected"), (7, 3, 90, "chosen"),
        (0, 0, 9, None), (0, 0, 0, None),
    ],
)  # fmt: skip
def test_a_warning_where_one_side_is_mostly_longer(longer: int, shorter: int, as_long: int, side: str | None) -> None:
    pairs = [encoded(1, 3, 2)] * longer + [encoded(1, 2, 3)] * shorter + [encoded(1, 2, 2)] * as_long
    held = counts(*[encoded(1, 9, 1)] * 500, split="validation")
    half = len(pairs) // 2
    table = [counts(*pairs[:half]), counts(*pairs[half:], name="b.jsonl"), held]
    found = warnings_about(table, {})
    if side is None:
        assert found == []
    else:
        [warning] = found
        part = max(longer, shorter) / (longer + shorter)
        assert warning.startswith(
            f"{side} is the longer answer in {part:.0%}".replace("%", " %")
            + f" of the {longer + shorter} training pairs whose answers differ in length"
        )


def test_a_warning_where_many_are_cut() -> None:
    cut = encoded(1, 3, 3, prompt_cut=True, answers_cut=1)
    assert warnings_about([counts(cut, *[encoded(1, 3, 3)] * 9)], {}) == []
    assert warnings_about([counts(cut, cut, *[encoded(1, 3, 3)] * 8)], {}) == [
        "of the source 'a.jsonl', 20 % of the pairs of train are longer than the context: 2 prompts lose their "
        "beginning, 2 answers their end"
    ]


def test_a_warning_where_a_source_gave_far_less_than_its_limit() -> None:
    assert warnings_about([counts(encoded(1, 3, 3))], {"a.jsonl": 5000}) == [
        "the source 'a.jsonl' gave 1 pairs, of 5,000 that limit_pairs allows: is its path, format or column the right "
        "one?"
    ]
