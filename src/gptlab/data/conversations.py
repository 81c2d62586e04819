"""The forms in which dialogues are published, each read into messages; and what makes a dialogue a bad row.

messages:        a list of {"role": "system" | "user" | "assistant", "content": text}
prompt-response: two columns of text
turns:           a list of texts, or several columns of text in the order in which they were said
hh:              "\\n\\nHuman: … \\n\\nAssistant: …" in one text (Bai et al., 2022)
dailydialog:     a line of a text file, "__eou__" after each utterance (Li et al., 2017)
sharegpt:        a list of {"from": "human" | "gpt" | "system", "value": text}
alpaca:          instruction, input and output (Taori et al., 2023); an input stands below its instruction
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import dropwhile
from typing import Any, Literal

from gptlab.data.tables import is_unicode
from gptlab.text.dialogue import Message, Role

Format = Literal["messages", "prompt-response", "turns", "hh", "dailydialog", "sharegpt", "alpaca"]
EQUALS: tuple[Format, ...] = ("turns", "dailydialog")
"""Formats whose speakers are equals: the one who begins counts as the user."""

COLUMNS: dict[Format, dict[str, str]] = {
    "messages": {"messages": "messages"},
    "prompt-response": {"prompt": "prompt", "response": "response"},
    "turns": {"turns": "turns"},
    "hh": {"text": "chosen"},
    "dailydialog": {},
    "sharegpt": {"conversations": "conversations"},
    "alpaca": {"instruction": "instruction", "input": "input", "output": "output"},
}
"""What each format reads, and the column in which it usually stands."""
OPTIONAL = ("input",)
"""Of these, what a record may lack."""

ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
SPEAKERS: dict[str, Role] = {**ROLES, "human": "user", "gpt": "assistant", "chatgpt": "assistant"}
"""Who ShareGPT's speakers are."""

_HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


class BadRow(Exception):
    """A record that is no dialogue to learn from, for one of the causes below."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


NOT_TEXT = "not text"
NOT_ITS_FORMAT = "not in its format"
UNKNOWN_ROLE = "an unknown role"
NO_ANSWER = "no answer"
EMPTY = "an empty message"
OUT_OF_ORDER = "roles out of order"


def read_messages(format: Format, values: Mapping[str, Any]) -> list[Message]:
    """The dialogue in a record, whose `values` have the names of COLUMNS; of dailydialog: {"line": text}.

    A user begins (after a system message, if there is one), user and assistant alternate, and at least one answers. The
    last turn may be the user's. An empty system message is left out. BadRow where it is otherwise.
    """
    messages = PARSERS[format](values)
    if messages and messages[0].role == "system" and not messages[0].content.strip():
        messages = messages[1:]
    _check(messages)
    return messages


def alternating(turns: Sequence[Any]) -> list[Message]:
    """Turns of two speakers, of whom the user begins. BadRow where one is no text."""
    roles: tuple[Role, Role] = ("user", "assistant")
    return [Message(roles[place % 2], _text(turn)) for place, turn in enumerate(turns)]


def _check(messages: Sequence[Message]) -> None:
    if not any(message.role == "assistant" for message in messages):
        raise BadRow(NO_ANSWER)
    if not all(message.content.strip() for message in messages):
        raise BadRow(EMPTY)
    spoken = messages[1:] if messages[0].role == "system" else messages
    if any(message.role != ("user", "assistant")[place % 2] for place, message in enumerate(spoken)):
        raise BadRow(OUT_OF_ORDER)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not is_unicode(value):
        raise BadRow(NOT_TEXT)
    return value


def _said(entries: Any, speaker: str, words: str, speakers: Mapping[str, Role]) -> list[Message]:
    """A list of {speaker: who, words: what}."""
    if not isinstance(entries, list):
        raise BadRow(NOT_ITS_FORMAT)
    messages = []
    for entry in entries:
        if not isinstance(entry, Mapping) or speaker not in entry or words not in entry:
            raise BadRow(NOT_ITS_FORMAT)
        if not isinstance(entry[speaker], str) or entry[speaker] not in speakers:
            raise BadRow(UNKNOWN_ROLE)
        messages.append(Message(speakers[entry[speaker]], _text(entry[words])))
    return messages


def _messages(values: Mapping[str, Any]) -> list[Message]:
    return _said(values["messages"], "role", "content", ROLES)


def _sharegpt(values: Mapping[str, Any]) -> list[Message]:
    return _said(values["conversations"], "from", "value", SPEAKERS)


def _prompt_response(values: Mapping[str, Any]) -> list[Message]:
    return alternating([values["prompt"], values["response"]])


def _alpaca(values: Mapping[str, Any]) -> list[Message]:
    asked, given = _text(values["instruction"]), _text(values.get("input") or "")
    return alternating([f"{asked}\n\n{given}" if given.strip() else asked, values["output"]])


def _turns(values: Mapping[str, Any]) -> list[Message]:
    """A list, in which the first turn is the user's; or a tuple of columns (DialoGPT's context/1, context/0, response),
    in which the last is the answer: those before the first that is filled are left out, and one more where a user would
    not begin otherwise."""
    turns = values["turns"]
    if isinstance(turns, tuple):
        turns = list(dropwhile(_is_blank, turns))
        turns = turns[len(turns) % 2 :]
    if not isinstance(turns, list):
        raise BadRow(NOT_ITS_FORMAT)
    return alternating(turns)


def _is_blank(turn: Any) -> bool:
    return turn is None or (isinstance(turn, str) and not turn.strip())


def _hh(values: Mapping[str, Any]) -> list[Message]:
    """White space around a turn is the format's. Two turns of one speaker (18 of the 8,552 test rows have them, where a
    turn of the other was run into the one before) are not joined: the answer would hold the human's words."""
    before, *parts = _HH_TURN.split(_text(values["text"]))
    if before.strip():
        raise BadRow(NOT_ITS_FORMAT)
    speakers: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
    return [Message(speakers[who], words.strip()) for who, words in zip(parts[::2], parts[1::2], strict=True)]


def _dailydialog(values: Mapping[str, Any]) -> list[Message]:
    *utterances, rest = (part.strip() for part in _text(values["line"]).split("__eou__"))
    return alternating([*utterances, rest] if rest else utterances)


PARSERS: dict[Format, Callable[[Mapping[str, Any]], list[Message]]] = {
    "messages": _messages,
    "prompt-response": _prompt_response,
    "turns": _turns,
    "hh": _hh,
    "dailydialog": _dailydialog,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
}
