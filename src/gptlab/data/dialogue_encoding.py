"""A dialogue → the rows that are learned from it.

history = 0    a row is the dialogue, each answer in it learned
history = N    a row is one answer with the last N turns before it; where the speakers are equals, every turn is an
               answer to the one before
pack           the whole dialogue, to be joined with others

A row of n tokens takes n - 1 positions of the context: the last token is only predicted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from gptlab.errors import DataError
from gptlab.text.dialogue import Message, Template
from gptlab.text.tokenizer import Tokenizer

Learn = Literal["answers", "everything"]


@dataclass(frozen=True)
class Row:
    """One row, or what does not fit.

    messages: what stands in it; the last is an answer
    ids:      (n,) int64; learned: (n,) bool, whether a token is one that is predicted
    length:   positions it would take uncut
    cut:      whether earlier turns were left out because of that; too_long: whether even its last exchange is longer
              than the context (then it has no ids)
    """

    messages: Sequence[Message]
    ids: np.ndarray
    learned: np.ndarray
    length: int
    cut: bool = False
    too_long: bool = False


@dataclass(frozen=True)
class DialogueEncoder:
    """Makes rows. `context`: the positions a row may take; None where rows are joined, so that none is cut."""

    template: Template
    tokenizer: Tokenizer
    learn: Learn
    history: int
    context: int | None

    def rows(self, messages: Sequence[Message], *, equals: bool) -> Iterator[Row]:
        """The rows of a dialogue that ends with an answer. `equals`: every turn from the second on is one."""
        if self.history == 0:
            yield self._fitted(messages)
            return
        system = [message for message in messages if message.role == "system"]
        spoken = messages[len(system) :]
        for place in range(1, len(spoken)):
            turns = spoken[max(0, place - self.history) : place + 1]
            if equals and turns[-1].role == "user":
                turns = [replace(turn, role="user" if turn.role == "assistant" else "assistant") for turn in turns]
            if turns[0].role == "assistant" and not self._may_begin_with_an_answer:
                turns = turns[1:]
            if turns[-1].role == "assistant":
                yield self._fitted([*system, *turns])

    def learned_texts(self, row: Row) -> list[str]:
        """What was said in a row that is learned, without the template's own words."""
        if self.learn == "everything":
            return [message.content for message in row.messages]
        answers = [message.content for message in row.messages if message.role == "assistant"]
        return answers[-1:] if self.history else answers

    @cached_property
    def _may_begin_with_an_answer(self) -> bool:
        """Whether the template writes a dialogue that a user does not begin; many models' own refuse to."""
        turns = [Message("assistant", "Hello"), Message("user", "Hi"), Message("assistant", "Well?")]
        try:
            self.template.pieces(turns)
        except DataError:
            return False
        return True

    def _fitted(self, messages: Sequence[Message]) -> Row:
        """The row of these messages; where it is too long, of the last turns that fit, from a user's on."""
        whole = self._encode(messages)
        if self._fits(whole):
            return whole
        tails = tails_of(messages)
        first = bisect_left(tails, True, key=lambda tail: self._fits(self._encode(tail)))
        if first == len(tails):
            return Row(messages, whole.ids[:0], whole.learned[:0], whole.length, too_long=True)
        row = self._encode(tails[first])
        return Row(row.messages, row.ids, row.learned, whole.length, cut=True)

    def _fits(self, row: Row) -> bool:
        return self.context is None or row.length <= self.context

    def _encode(self, messages: Sequence[Message]) -> Row:
        numbers, in_answer = self.template.encode(messages, self.tokenizer)
        ids, learned = np.array(numbers), np.array(in_answer)
        if self.history:
            learned[: _start_of_last(learned)] = False
        if self.learn == "everything":
            learned[:] = True
        eos, everything = np.array([self.tokenizer.eos_id]), np.array([self.learn == "everything"])
        if self.context is None:
            if ids[-1] != eos:
                ids, learned = np.append(ids, eos), np.append(learned, everything)
        elif self.learn == "everything":  # an EOS before, so that the first token is predicted too
            ids, learned = np.append(eos, ids), np.append(False, learned)
        else:
            end = int(learned.nonzero()[0][-1]) + 1  # what a template writes behind the last answer is no use
            ids, learned = ids[:end], learned[:end]
        return Row(messages, ids, learned, len(ids) - 1)


def tails_of(messages: Sequence[Message]) -> list[list[Message]]:
    """A dialogue's ends, each from one of its user's turns on but the first, after its system message: the later it
    begins, the shorter it is."""
    head = [message for message in messages if message.role == "system"]
    beginnings = [place for place, message in enumerate(messages) if message.role == "user" and place > len(head)]
    return [[*head, *messages[place:]] for place in beginnings]


def _start_of_last(learned: np.ndarray) -> int:
    """Where the last run of True begins."""
    answers = learned.nonzero()[0]
    breaks = np.flatnonzero(np.diff(answers) > 1)
    return int(answers[breaks[-1] + 1] if len(breaks) else answers[0])
