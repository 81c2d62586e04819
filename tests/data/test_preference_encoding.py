"""Answers after the same prompt, cut to a context: what is kept, and that nothing else is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data.preference_encoding import EncodedAnswers, encode_answers
from gptlab.text.dialogue import Message, Template
from gptlab.text.tokenizer import EOS, Tokenizer

WORDS = "the of and a to in he have it that for they with not on she"
SYSTEM = Message("system", "Be kind to her")
TURNS = [
    Message("user", "the cat sat on it"),
    Message("assistant", "that is not it"),
    Message("user", "to whom"),
    Message("assistant", "to a cat"),
    Message("user", "and they have it with a hat for her"),
]
ANSWERS = ["a hat", "she is in the house of the cat, and he is not with her"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([WORDS] * 20, 300).with_special_tokens(["<|im_start|>", "<|im_end|>"])


def template(name: str) -> Template:
    return Template.named(name, EOS)


def prompt_ids(name: str, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    return template(name).prompt_ids(messages, tokenizer)


def encoded(name: str, prompt: Sequence[Message], tokenizer: Tokenizer, context: int = 10_000) -> EncodedAnswers:
    return encode_answers(prompt, ANSWERS, template(name), tokenizer, context)


def prompts_of(pair: EncodedAnswers) -> list[list[int]]:
    return [ids[: pair.start].tolist() for ids in pair.ids]


def answers_of(pair: EncodedAnswers) -> list[list[int]]:
    return [ids[pair.start :].tolist() for ids in pair.ids]


@pytest.mark.parametrize("name", ["eos", "hh", "chatml"])
def test_what_fits_is_the_dialogue_as_far_as_its_answer_is_closed(tokenizer: Tokenizer, name: str) -> None:
    whole = encoded(name, TURNS, tokenizer)
    for ids, answer in zip(whole.ids, ANSWERS, strict=True):
        messages = [*TURNS, Message("assistant", answer)]
        expected, in_answer = template(name).encode(messages, tokenizer)
        end = len(in_answer) - in_answer[::-1].index(True)
        assert ids.tolist() == expected[:end]
        assert ids[-1] == template(name).end_id(tokenizer)
        assert all(in_answer[whole.start : end])
        assert not in_answer[whole.start - 1]
    assert prompts_of(whole) == [prompt_ids(name, TURNS, tokenizer)] * 2
    assert whole.length == max(map(len, whole.ids))
    assert (whole.prompt_cut, whole.answers_cut) == (False, 0)
    exactly = encoded(name, TURNS, tokenizer, whole.length)
    assert [ids.tolist() for ids in exactly.ids] == [ids.tolist() for ids in whole.ids]
    assert not exactly.prompt_cut


@pytest.mark.parametrize("system", [[], [SYSTEM]])
def test_first_turns_go_first(tokenizer: Tokenizer, system: list[Message]) -> None:
    """As few of them as must, a system message never, and what is left begins with a user's turn."""
    whole = encoded("chatml", [*system, *TURNS], tokenizer)
    kept = [prompt_ids("chatml", [*system, *TURNS[place:]], tokenizer) for place in (0, 2, 4)]
    longest = whole.length - len(kept[0])
    for context in range(longest + len(kept[2]), whole.length):
        cut = encoded("chatml", [*system, *TURNS], tokenizer, context)
        assert prompts_of(cut) == [next(ids for ids in kept if len(ids) + longest <= context)] * 2
        assert answers_of(cut) == answers_of(whole)
        assert (cut.length, cut.prompt_cut, cut.answers_cut) == (whole.length, True, 0)


def test_then_the_last_turn_loses_its_beginning(tokenizer: Tokenizer) -> None:
    whole = encoded("hh", TURNS, tokenizer)
    last = prompt_ids("hh", TURNS[4:], tokenizer)
    longest = max(map(len, answers_of(whole)))
    for room in range(1, len(last)):
        cut = encoded("hh", TURNS, tokenizer, longest + room)
        assert prompts_of(cut) == [last[-room:]] * 2
        assert answers_of(cut) == answers_of(whole)
        assert cut.answers_cut == 0


def test_a_system_message_stays_before_a_turn_that_is_cut(tokenizer: Tokenizer) -> None:
    whole = encoded("chatml", [SYSTEM, *TURNS], tokenizer)
    last = prompt_ids("chatml", [SYSTEM, TURNS[4]], tokenizer)
    head = last[: len(last) - len(prompt_ids("chatml", TURNS[4:], tokenizer))]
    assert tokenizer.decode(head) == "<|im_start|>system\nBe kind to her<|im_end|>\n"
    longest = max(map(len, answers_of(whole)))
    for room in range(1, len(last)):
        [prompt, other] = prompts_of(encoded("chatml", [SYSTEM, *TURNS], tokenizer, longest + room))
        assert prompt == other
        if room > len(head):
            assert prompt == [*head, *last[len(head) - room :]]
        else:
            assert prompt == last[-room:], (
                "where it is too long itself, the end of what stands before the answer counts"
            )


def test_an_answer_loses_its_end_only_where_it_is_longer_than_the_context(tokenizer: Tokenizer) -> None:
    whole = encoded("hh", TURNS, tokenizer)
    short, long = answers_of(whole)
    for context in range(2, len(long) + 1):
        cut = encoded("hh", TURNS, tokenizer, context)
        assert prompts_of(cut) == [prompt_ids("hh", TURNS, tokenizer)[-1:]] * 2, "the prompt keeps a token"
        assert answers_of(cut) == [short[: context - 1], long[: context - 1]]
        assert cut.answers_cut == 1 + (len(short) >= context)
    assert encoded("hh", TURNS, tokenizer, len(long) + 1).answers_cut == 0


@settings(deadline=None, max_examples=100)
@given(
    turns=st.lists(st.text(st.sampled_from(WORDS), min_size=1, max_size=30).filter(str.strip), min_size=1, max_size=5),
    answers=st.lists(
        st.text(st.sampled_from(WORDS), min_size=1, max_size=40).filter(str.strip), min_size=1, max_size=3
    ),
    context=st.integers(2, 80),
    name=st.sampled_from(["eos", "hh", "chatml"]),
    has_system=st.booleans(),
)
def test_whatever_is_said(
    tokenizer: Tokenizer, turns: list[str], answers: list[str], context: int, name: str, has_system: bool
) -> None:
    turns = turns[: len(turns) - (len(turns) + 1) % 2]  # a user begins and ends
    prompt = [Message(("user", "assistant")[n % 2], text) for n, text in enumerate(turns)]
    if has_system and name == "chatml":
        prompt = [SYSTEM, *prompt]
    pair = encode_answers(prompt, answers, template(name), tokenizer, context)
    whole = encode_answers(prompt, answers, template(name), tokenizer, 10_000)
    assert len({tuple(ids) for ids in prompts_of(pair)}) == 1, "the same prompt"
    assert pair.start >= 1
    assert max(map(len, pair.ids)) <= context
    for cut, uncut in zip(answers_of(pair), answers_of(whole), strict=True):
        assert cut == uncut[: context - 1]
    if pair.length <= context:
        assert all(np.array_equal(a, b) for a, b in zip(pair.ids, whole.ids, strict=True))
    assert pair.length == max(map(len, whole.ids))
    assert pair.prompt_cut == (pair.start < whole.start)
