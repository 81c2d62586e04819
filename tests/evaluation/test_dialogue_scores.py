from __future__ import annotations

from typing import Literal

import pytest

from gptlab.errors import UserError
from gptlab.evaluation.answers import Answer
from gptlab.evaluation.dialogue_scores import dialogue_scores


def answer(*ids: int, stopped: Literal["eos", "length"] = "eos") -> Answer:
    return Answer("?", "!", len(ids), stopped, 0, ids, 0)


def test_by_hand() -> None:
    scores = dialogue_scores([answer(1, 2, 1, 2, 1, 2), answer(1, 2, 3, stopped="length"), answer()])
    assert scores == pytest.approx({
        "distinct_1": 3 / 9,  # 1 2 3
        "distinct_2": 3 / 7,  # 12 21 23; none goes from one answer into the next
        "repetition": (1 / 3 + 0 + 0) / 3,  # 1212 2121 1212 | nothing of four tokens | nothing
        "answer_tokens": 3.0,
        "answer_tokens_median": 3.0,
        "ended": 2 / 3,
    })  # fmt: skip


def test_one_token_again_and_again() -> None:
    """n - 3 4-grams, all but one of them seen before."""
    scores = dialogue_scores([answer(*[7] * 100, stopped="length")])
    assert scores["repetition"] == pytest.approx(96 / 97)
    assert (scores["distinct_1"], scores["distinct_2"], scores["ended"]) == (1 / 100, 1 / 99, 0)


def test_all_different() -> None:
    scores = dialogue_scores([answer(*range(10)), answer(*range(10, 20))])
    assert (scores["distinct_1"], scores["distinct_2"], scores["repetition"]) == (1, 1, 0)


def test_repeating_another_answer_is_no_repetition_but_not_distinct() -> None:
    scores = dialogue_scores([answer(*range(8)), answer(*range(8))])
    assert (scores["distinct_1"], scores["distinct_2"], scores["repetition"]) == (0.5, 0.5, 0)


def test_answers_without_a_token() -> None:
    assert dialogue_scores([answer()]) == {
        "distinct_1": 0, "distinct_2": 0, "repetition": 0, "answer_tokens": 0, "answer_tokens_median": 0, "ended": 1,
    }  # fmt: skip


def test_no_answers() -> None:
    with pytest.raises(UserError, match="no answers"):
        dialogue_scores([])
