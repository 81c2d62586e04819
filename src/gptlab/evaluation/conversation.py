"""A chat without a terminal: the turns so far, the models that take the next one, and how they write it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gptlab.errors import UserError, nearest
from gptlab.evaluation.answers import answer, prompt_ids
from gptlab.generation.decoder import Decoder
from gptlab.generation.sampling import Sampling
from gptlab.text.dialogue import Message, Template
from gptlab.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Parameters:
    """How answers are written. UserError for a number that cannot be."""

    sampling: Sampling
    max_new_tokens: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} = {getattr(self, name)}: must be at least {least}")

    def changed(self, *changes: str) -> Parameters:
        """With changes as `"temperature=0.7"`; greedy=true takes what it excludes back to its default.

        UserError for what is no change, an unknown name or a value that cannot be.
        """
        values = self._values()
        for change in changes:
            name, equals, text = change.partition("=")
            if not equals or name not in values:
                known = ", ".join(values)
                raise UserError(f"{change!r}: wanted NAME=VALUE{nearest(name, list(values))}; there is {known}")
            values[name] = _parsed(change, text, type(values[name]))
            if name == "greedy" and values[name]:
                values |= asdict(Sampling(greedy=True, repetition_penalty=values["repetition_penalty"]))
        rest = {name: values.pop(name) for name in ("max_new_tokens", "seed")}
        return Parameters(Sampling(**values), **rest)

    def __str__(self) -> str:
        return " ".join(f"{name}={json.dumps(value)}" for name, value in self._values().items())

    def _values(self) -> dict[str, Any]:
        return asdict(self.sampling) | {"max_new_tokens": self.max_new_tokens, "seed": self.seed}


@dataclass(frozen=True)
class Reply:
    """A model's answer to a question.

    text:          what was written, without the white space around it
    stopped:       "eos" (by itself), "length" (as much as was asked for) or "interrupted" (Ctrl-C)
    turns_dropped: how many of the oldest turns no longer fit into the context and were not read
    reread:        how often the context was full while it was written (0 where it was interrupted)
    """

    text: str
    stopped: Literal["eos", "length", "interrupted"]
    turns_dropped: int
    reread: int


class Conversation:
    """One model's side of a chat.

    turns:  questions and answers in turn (a list that is replaced, never changed)
    system: the system message that stands before them, or ""
    name:   what the model is called
    """

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer, template: Template | None, *, name: str = "", system: str = ""
    ) -> None:
        self._model, self._tokenizer, self._template = model, tokenizer, template
        self._asked = 0
        self.turns: list[Message] = []
        self.system, self.name = system, name

    @property
    def messages(self) -> list[Message]:
        """The system message, if there is one, and the turns."""
        return [Message("system", self.system)] * bool(self.system) + self.turns

    def ask(
        self, question: str, parameters: Parameters, on_text: Callable[[str], None], *, keep_stopped: bool = True
    ) -> Reply:
        """The model's answer, which is told to `on_text` as it is written; joined that is the reply's text.

        KeyboardInterrupt stops the answer, and what was written is kept (unless `keep_stopped` is false: then it is
        raised). Where nothing was written the question is not kept either: no model should read an answer without
        words, nor two questions in a row.

        Each question, also one that was taken back, has random numbers of its own: the same seed and questions give
        the same answers, and a question that is asked again another one.
        """
        asked = [*self.messages, Message("user", question)]
        self._asked += 1
        trimmed = _Trimmed(on_text)
        try:
            (written,) = answer(
                self._model, self._tokenizer, self._template, [asked], parameters.sampling,
                max_new_tokens=parameters.max_new_tokens, seed=_mixed(parameters.seed, self._asked),
                on_text=lambda _conversation, _sample, text: trimmed.write(text),
            )  # fmt: skip
            reply = Reply(trimmed.text, written.stopped, written.turns_dropped, written.reread)
        except KeyboardInterrupt:
            if not keep_stopped:
                raise
            context = self._model.model.shape.context
            dropped = prompt_ids(asked, self._tokenizer, self._template, context, parameters.max_new_tokens)[1]
            reply = Reply(trimmed.text, "interrupted", dropped, 0)
        if reply.text:
            self.turns = [*self.turns, asked[-1], Message("assistant", reply.text)]
        return reply


class Chat:
    """A chat with one or more models: all are asked the same, and each reads its own answers.

    parameters: how the next answers are written
    """

    def __init__(self, conversations: Sequence[Conversation], parameters: Parameters) -> None:
        self.conversations, self.parameters = conversations, parameters
        self._past: list[list[list[Message]]] = []

    def ask(
        self, question: str, on_text: Callable[[int, str], None] = lambda _, text: None, *, keep_stopped: bool = True
    ) -> list[Reply]:
        """Each model's reply, one after the other, as `Conversation.ask`; `on_text(number of the model, text)`.

        Where one of them raises an error, none keeps the question.
        """
        before = [conversation.turns for conversation in self.conversations]
        try:
            replies = [
                conversation.ask(question, self.parameters, partial(on_text, number), keep_stopped=keep_stopped)
                for number, conversation in enumerate(self.conversations)
            ]
        except BaseException:
            self._restore(before)
            raise
        self._past.append(before)
        return replies

    def undo(self) -> bool:
        """Takes the last question and its answers back; whether there was one."""
        if self._past:
            self._restore(self._past.pop())
            return True
        return False

    def reset(self) -> None:
        """Forgets all turns; a system message stays."""
        self._restore([[] for _ in self.conversations])
        self._past = []

    def set_system(self, text: str) -> None:
        """Puts this system message before the turns, in place of any other; none where `text` is empty."""
        for conversation in self.conversations:
            conversation.system = text

    def save(self, path: Path) -> None:
        """Writes a new file of JSON lines, {"messages": [{"role", "content"}, …], "model": NAME} for each model.

        It can be trained on: `data.kind = "dialogues"` reads it with `format = "messages"`. UserError where a model has
        answered nothing, or the file is there already or cannot be written.
        """
        if not all(conversation.turns for conversation in self.conversations):
            raise UserError("there is nothing to save yet: ask something first")
        records = [
            {"messages": [asdict(message) for message in each.messages], "model": each.name}
            for each in self.conversations
        ]
        try:
            with path.expanduser().open("x", encoding="utf-8", newline="\n") as file:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        except FileExistsError:
            raise UserError(f"{path} is there already and is left as it is; name another file") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from error

    def _restore(self, turns: Sequence[list[Message]]) -> None:
        for conversation, each in zip(self.conversations, turns, strict=True):
            conversation.turns = each


class _Trimmed:
    """Tells a text as it comes, without the white space before its first and after its last word."""

    def __init__(self, on_text: Callable[[str], None]) -> None:
        self._on_text, self._space, self.text = on_text, "", ""

    def write(self, piece: str) -> None:
        piece = self._space + piece if self.text else piece.lstrip()
        words = piece.rstrip()
        self._space = piece[len(words) :]
        if words:
            self.text += words
            self._on_text(words)


def _parsed(change: str, text: str, kind: type) -> Any:
    try:
        return {"true": True, "false": False}[text] if kind is bool else kind(text)
    except (KeyError, ValueError):
        wanted = {bool: "true or false", int: "a whole number"}.get(kind, "a number")
        raise UserError(f"{change!r}: wanted {wanted}") from None


def _mixed(seed: int, number: int) -> int:
    """A seed of its own for each question; a sum would give the second question the next seed's first numbers."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0])
