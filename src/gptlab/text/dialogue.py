"""Dialogues as text and as ids: the only chat template, by which a model is trained, talked to, served and exported.

A template is Jinja, as transformers' `apply_chat_template` reads it from a checkpoint's chat_template.jinja. From its
text three things are found by writing a small dialogue: which special tokens it needs, which one closes an answer,
and that a dialogue's text never changes when the dialogue goes on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gptlab.errors import DataError, TokenizerError, nearest
from gptlab.text.disguise import Disguise
from gptlab.text.templates import BUILT_IN, DIALOGPT, SOURCES, compiled
from gptlab.text.vocabulary import TOKENIZER_CONFIG, read_optional, read_text

if TYPE_CHECKING:
    from gptlab.text.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]

TEMPLATE_FILE = "chat_template.jinja"

_SPECIAL = re.compile(r"<\|[^\s<>|]+\|>")
"""How a special token is written in a template."""


@dataclass(frozen=True)
class Message:
    """One turn of a dialogue."""

    role: Role
    content: str


_PROBE = (Message("user", "Hello"), Message("assistant", "Hi"), Message("user", "Bye?"), Message("assistant", "Bye"))
_SYSTEM = Message("system", "Be kind")


@dataclass(frozen=True)
class Template:
    """How a dialogue becomes text. Immutable; equal where it writes the same.

    name:           a built-in's, or the file it was read from
    source:         Jinja; it is given messages, add_generation_prompt, eos_token and bos_token (GPT-2 has one for both)
    eos:            the vocabulary's end-of-text token
    special_tokens: those a vocabulary needs beside `eos`: what the template writes in the form <|name|>
    end:            the special token that closes an answer: it is learned, and writing stops at it

    TokenizerError where the source is no Jinja, an answer does not end in one special token, or the text of a dialogue
    changes when it goes on: a model would be asked with other text than it was trained on.
    """

    name: str = field(compare=False)
    source: str = field(repr=False)
    eos: str
    special_tokens: tuple[str, ...] = field(init=False, compare=False)
    end: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        from jinja2 import TemplateSyntaxError

        try:
            compiled(self.source)
        except TemplateSyntaxError as error:
            raise TokenizerError(f"template {self.name}: line {error.lineno} is no Jinja: {error.message}") from error
        object.__setattr__(self, "special_tokens", _special_tokens(self))
        object.__setattr__(self, "end", _end(self))

    @classmethod
    def named(cls, name: str, eos: str) -> Template:
        """A built-in, or a file of Jinja. TokenizerError where there is neither."""
        if name in SOURCES:
            return cls(name, SOURCES[name], eos)
        path = Path(name).expanduser()
        if not path.is_file():
            known = ", ".join(BUILT_IN)
            raise TokenizerError(
                f"template {name}: is none of {known}, and no file{nearest(name, list(BUILT_IN))}; name one of them "
                "or a file of Jinja, such as ./chat_template.jinja"
            )
        return _recognised(read_text(path), name, eos)

    @classmethod
    def read(cls, folder: Path, eos: str) -> Template | None:
        """A checkpoint's own: chat_template.jinja, else "chat_template" in tokenizer_config.json (a text, or a list of
        named ones, of which "default" is taken). None where it has none; TokenizerError where it cannot be used.
        """
        path = folder / TEMPLATE_FILE
        if path.is_file():
            return _recognised(read_text(path), str(path), eos)
        path = folder / TOKENIZER_CONFIG
        source = _default(read_optional(path).get("chat_template"), path)
        return None if source is None else _recognised(source, str(path), eos)

    def save(self, folder: Path) -> None:
        """Write chat_template.jinja, which is all that transformers needs."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TEMPLATE_FILE).write_text(self.source, encoding="utf-8", newline="\n")

    def render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """The dialogue as text; `prompt`: with the words that begin an answer. DataError where the template refuses."""
        try:
            return compiled(self.source).render(
                messages=[{"role": message.role, "content": message.content} for message in messages],
                add_generation_prompt=prompt, eos_token=self.eos, bos_token=self.eos, tools=None, documents=None,
            )  # fmt: skip
        except Exception as error:  # a template is a program: it may raise anything
            raise DataError(f"template {self.name}: {error}") from error

    def pieces(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        """The text in pieces, which joined are `render(messages)`; True for an assistant's words with what closes them.

        DataError where the text before an answer is not what the model would be asked with.
        """
        disguise = Disguise([message.content for message in messages], (self.eos, *self.special_tokens))
        return [(disguise.lift(text), is_answer) for text, is_answer in self._cut(messages, disguise)]

    def encode(self, messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
        """The ids, and for each whether it belongs to an answer (its words and the token that closes it).

        A special token's name in somebody's words is ordinary text. Each answer is encoded apart from what stands
        before it, so that `prompt_ids` are the beginning of these ids; for the built-in templates that changes no id,
        except before an answer that begins with white space in chatml. DataError as `pieces`, TokenizerError as
        `end_id`.
        """
        return self._encode(messages, tokenizer, prompt=False)

    def prompt_ids(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        """The ids that an answer to `messages` is written after. Errors as `encode`."""
        return self._encode(messages, tokenizer, prompt=True)[0]

    def end_id(self, tokenizer: Tokenizer) -> int:
        """The id of `end`. TokenizerError where the tokenizer has no such token."""
        if self.end not in tokenizer.special_tokens:
            raise TokenizerError(
                f"template {self.name}: closes an answer by {self.end}, which this tokenizer does not have; add it "
                f"(with_special_tokens), or use a template that closes an answer by {tokenizer.eos}"
            )
        return tokenizer.special_tokens[self.end]

    def _encode(
        self, messages: Sequence[Message], tokenizer: Tokenizer, *, prompt: bool
    ) -> tuple[list[int], list[bool]]:
        self.end_id(tokenizer)
        disguise = Disguise([message.content for message in messages], tuple(tokenizer.special_tokens))
        ids: list[int] = []
        in_answer: list[bool] = []
        for piece, is_answer in self._cut(messages, disguise, prompt=prompt):
            for text, special in tokenizer.split_special(piece):
                ids += tokenizer.encode(disguise.lift(text)) if special is None else [special]
            in_answer += [is_answer] * (len(ids) - len(in_answer))
        return ids, in_answer

    def _cut(self, messages: Sequence[Message], disguise: Disguise, *, prompt: bool = False) -> list[tuple[str, bool]]:
        """`pieces`, still in disguise, so that the template's special tokens are the only ones."""
        messages = [replace(message, content=text) for message, text in zip(messages, disguise.texts, strict=True)]
        text = self.render(messages, prompt=prompt)
        pieces, done = [], 0
        for start, stop in self._answers(messages, text):
            pieces += [(text[done:start], False), (text[start:stop], True)]
            done = stop
        return [(piece, is_answer) for piece, is_answer in [*pieces, (text[done:], False)] if piece]

    def _answers(self, messages: Sequence[Message], text: str) -> Iterator[tuple[int, int]]:
        """(start, stop) of each answer in `text`, from the words on to the token that closes them."""
        for number, message in enumerate(messages):
            if message.role != "assistant":
                continue
            asked = self.render(messages[:number], prompt=True)
            end = text.find(self.end, len(asked))
            if not text.startswith(asked) or end < 0:
                raise DataError(
                    f"template {self.name}: in this dialogue the text before message {number + 1} is not what the "
                    "model would be asked with, or the message is not closed; the template must write a turn the same "
                    "whatever follows it"
                )
            yield len(asked), end + len(self.end)


def _recognised(source: str, name: str, eos: str) -> Template:
    """The template of this source, by a built-in's name if it is one."""
    if source == DIALOGPT:
        return Template.named("eos", eos)
    return Template(next((known for known, text in SOURCES.items() if text == source), name), source, eos)


def _default(found: Any, path: Path) -> str | None:
    """The template in tokenizer_config.json, in either of transformers' forms."""
    if found is None or isinstance(found, str):
        return found
    if isinstance(found, list):
        for entry in found:
            if isinstance(entry, dict) and entry.get("name") == "default" and isinstance(entry.get("template"), str):
                return entry["template"]
    raise TokenizerError(
        f'{path}: "chat_template" is neither a text nor a list with one named "default"; write the template into '
        f"{TEMPLATE_FILE} beside it"
    )


def _special_tokens(template: Template) -> tuple[str, ...]:
    """The tokens of the form <|name|> that it writes around a small dialogue's words, in their order.

    Found in what is written, not in the source, which may name tokens that no dialogue has (tools, pictures), and may
    put names together from parts.
    """
    text = template.render(_PROBE, prompt=True)
    with suppress(DataError):  # many refuse a system message
        text += template.render((_SYSTEM, *_PROBE))
    return tuple(token for token in dict.fromkeys(_SPECIAL.findall(text)) if token != template.eos)


def _end(template: Template) -> str:
    """The token that closes the answers of a small dialogue."""
    ends = {_closing_token(template, answer) for answer, message in enumerate(_PROBE) if message.role == "assistant"}
    if len(ends) > 1:
        raise TokenizerError(f"template {template.name}: closes answers by {' and '.join(sorted(ends))}; use one")
    return ends.pop()


def _closing_token(template: Template, number: int) -> str:
    """The token that closes this answer of the small dialogue, once the text around it has been found to hold."""
    asked = template.render(_PROBE[:number], prompt=True)
    told = template.render(_PROBE[: number + 1])
    whole = template.render(_PROBE)
    if not told.startswith(asked) or not whole.startswith(told):
        raise TokenizerError(
            f"template {template.name}: the text of a dialogue changes when it goes on: {asked!r} became {told!r}, and "
            f"that {whole!r}; each must begin with the one before, or the model would be asked with other text than it "
            "was trained on"
        )
    answer = told[len(asked) :]
    special = "|".join(map(re.escape, (template.eos, *template.special_tokens)))
    words, *closing = re.split(f"({special})", answer)
    if len(closing) != 2 or closing[1].strip() or _PROBE[number].content not in words:
        raise TokenizerError(
            f"template {template.name}: an answer is to be its words and then one special token, but is {answer!r}; "
            "close it by {{ eos_token }} or a token of the form <|name|>, and write what begins it under "
            "{% if add_generation_prompt %}"
        )
    return closing[0]
