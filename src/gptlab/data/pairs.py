"""The forms in which preferences are published, each read into a prompt and two answers; and what makes one a bad row.

prompt:   a prompt (a text, which one user says, or messages) and two sides, each a text, or messages: the answer alone
          or the prompt once more before it (UltraFeedback; TRL's "explicit prompt"). A prompt of HH-RLHF's marks, as
          Dahoas/rm-static has it, is read as they say
messages: two whole dialogues, each a list of {"role": "system" | "user" | "assistant", "content": text}
hh:       two whole dialogues, each "\\n\\nHuman: … \\n\\nAssistant: …" in one text (Bai et al., 2022)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any, Literal, NamedTuple

from gptlab.data.conversations import NO_ANSWER, BadRow, read_messages
from gptlab.text.dialogue import Message

PairFormat = Literal["prompt", "messages", "hh"]

SIDES = ("chosen", "rejected")
COLUMNS: dict[PairFormat, tuple[str, ...]] = {"prompt": ("prompt", *SIDES), "messages": SIDES, "hh": SIDES}
"""What each format reads, which is also what the columns are usually called."""

NO_COMMON_PROMPT = "no common prompt"
PARTED = "sides that part before their last answer"

_HH_PROMPT = re.compile(r"\s*Human:.*\n\nAssistant:\s*", re.DOTALL)


class Pair(NamedTuple):
    """A prompt, which ends with the user's turn, and two answers to it."""

    prompt: list[Message]
    chosen: str
    rejected: str


def read_pair(format: PairFormat, values: Mapping[str, Any]) -> Pair:
    """The pair in a record, whose `values` have the names of COLUMNS. Its sides may be equal: that is no error of form.

    Both sides together with the prompt are dialogues as `read_messages` wants them, which end with an assistant's turn
    and are the same before it. BadRow where it is otherwise.
    """
    chosen, rejected = (PARSERS[format](values, side) for side in SIDES)
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise BadRow(NO_ANSWER)
    if chosen[:-1] != rejected[:-1]:
        shared = [one for one, _ in takewhile(lambda turns: turns[0] == turns[1], zip(chosen, rejected, strict=False))]
        raise BadRow(PARTED if any(message.role == "user" for message in shared) else NO_COMMON_PROMPT)
    return Pair(chosen[:-1], chosen[-1].content, rejected[-1].content)


def _prompt(values: Mapping[str, Any], side: str) -> list[Message]:
    prompt, answer = values["prompt"], values[side]
    if isinstance(prompt, str) and isinstance(answer, str) and _HH_PROMPT.fullmatch(prompt):
        return read_messages("hh", {"text": prompt + answer})
    asked = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    answered = answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}]
    repeated = [_said(entry) for entry in answered[: len(asked)]] == [_said(entry) for entry in asked]
    return read_messages("messages", {"messages": answered if repeated else [*asked, *answered]})


def _said(entry: Any) -> Any:
    """An entry without what else stands beside its words (a name, a score)."""
    return (entry.get("role"), entry.get("content")) if isinstance(entry, Mapping) else entry


def _messages(values: Mapping[str, Any], side: str) -> list[Message]:
    return read_messages("messages", {"messages": values[side]})


def _hh(values: Mapping[str, Any], side: str) -> list[Message]:
    return read_messages("hh", {"text": values[side]})


PARSERS: dict[PairFormat, Callable[[Mapping[str, Any], str], list[Message]]] = {
    "prompt": _prompt,
    "messages": _messages,
    "hh": _hh,
}
