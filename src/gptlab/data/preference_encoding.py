"""A prompt and answers to it → ids, cut to a context: each answer after the same prompt, so that nothing but the
answers is compared.

What is too long loses prompt from the left: whole turns first, then tokens of the last user's turn. An answer loses its
end only where it is longer than the context by itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptlab.data.dialogue_encoding import tails_of
from gptlab.text.dialogue import Message, Template
from gptlab.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class EncodedAnswers:
    """Answers to one prompt.

    ids:         of each answer (n,) int64: prompt, answer, and the token that closes it unless its end was cut
    start:       where the answer begins in each of them
    length:      tokens that the longest would have uncut
    prompt_cut:  whether the prompt lacks its beginning
    answers_cut: answers that lack their end
    """

    ids: list[np.ndarray]
    start: int
    length: int
    prompt_cut: bool
    answers_cut: int


def encode_answers(
    prompt: Sequence[Message], answers: Sequence[str], template: Template, tokenizer: Tokenizer, context: int
) -> EncodedAnswers:
    """The ids of one or more answers to `prompt`, which ends with the user's turn, at most `context` (two or more)
    tokens each.

    The longest answer decides how much of the prompt all of them keep: as many of its last turns as fit, of which the
    first is a user's, after the system message; where even the last turn is too long, its end, a token at least. An
    answer keeps at most context - 1 tokens. Errors as `Template.encode`.
    """
    asked = np.array(template.prompt_ids(prompt, tokenizer))
    answered = [_answer(prompt, answer, len(asked), template, tokenizer) for answer in answers]
    kept = [ids[: context - 1] for ids in answered]
    room = context - max(map(len, kept))
    before = asked if len(asked) <= room else _end_of(prompt, room, template, tokenizer)
    return EncodedAnswers(
        [np.concatenate([before, ids]) for ids in kept],
        start=len(before),
        length=len(asked) + max(map(len, answered)),
        prompt_cut=len(asked) > room,
        answers_cut=sum(len(ids) >= context for ids in answered),
    )


def _answer(prompt: Sequence[Message], answer: str, start: int, template: Template, tokenizer: Tokenizer) -> np.ndarray:
    """(n,) ids of an answer with what closes it; without what a template writes behind it."""
    ids, in_answer = template.encode([*prompt, Message("assistant", answer)], tokenizer)
    return np.array(ids[start:])[in_answer[start:]]


def _end_of(prompt: Sequence[Message], room: int, template: Template, tokenizer: Tokenizer) -> np.ndarray:
    """(n,) ids of a prompt that is too long: those of as many of its last turns as fit, else `room` of the last."""

    def ids_of(messages: Sequence[Message]) -> np.ndarray:
        return np.array(template.prompt_ids(messages, tokenizer))

    tails = tails_of(prompt)
    first = bisect_left(tails, True, key=lambda tail: len(ids_of(tail)) <= room)
    if first < len(tails):
        return ids_of(tails[first])
    last = tails[-1] if tails else prompt
    ids, turn = ids_of(last), ids_of(last[-1:])
    head = ids[: len(ids) - len(turn)]  # the system message, if there is one, which the template writes apart
    if len(head) >= room or not np.array_equal(ids[len(head) :], turn):
        head = head[:0]
    return np.concatenate([head, ids[len(ids) - room + len(head) :]])
