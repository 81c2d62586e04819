"""What a model answers: conversations in, the assistant's next turns out."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gptlab.errors import UserError
from gptlab.evaluation.samples import TextCompletion, write_text
from gptlab.generation.decoder import Decoder
from gptlab.generation.sampling import Sampling
from gptlab.model.folder import Model
from gptlab.text.dialogue import Message, Template
from gptlab.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Answer(TextCompletion):
    """An answer to a conversation. `prompt` is the user's last words, `text` has no special tokens in it.

    ids:           the tokens written, without the one that closes the answer
    turns_dropped: how many of the oldest turns were not read, so that the others fit into the context
    """

    ids: tuple[int, ...]
    turns_dropped: int

    @property
    def whole(self) -> str:
        """The question and the answer."""
        return f"{self.prompt} → {self.text.strip()}"

    @property
    def message(self) -> Message:
        """The answer as a turn of its conversation, without the white space around it."""
        return Message("assistant", self.text.strip())


def answer(
    model: Model | Decoder,
    tokenizer: Tokenizer,
    template: Template | None,
    conversations: Sequence[Sequence[Message]],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    seed: int = 0,
    samples: int = 1,
    on_text: Callable[[int, int, str], None] | None = None,
) -> list[Answer]:
    """`samples` answers to each conversation, ordered by conversation, then sample; errors as in `generate`.

    A conversation ends with the user's turn (UserError where it does not). An answer ends with the template's `end`.
    Without a template, as a base model has none, the turns are read as the lines of a text, which is written on until
    an end of text. What does not fit into the context is left out as `prompt_ids` says. `on_text(conversation index,
    sample, text)` is told the text as it is written; joined it is the answer's.
    """
    for number, messages in enumerate(conversations, 1):
        if not messages or messages[-1].role != "user":
            last = f"ends with the {messages[-1].role}'s turn" if messages else "is empty"
            raise UserError(f"conversation {number} {last}: an answer is to a user's turn")
    context = (model.model if isinstance(model, Decoder) else model).shape.context
    prompts = [prompt_ids(messages, tokenizer, template, context, max_new_tokens) for messages in conversations]
    written = write_text(
        model, tokenizer, [ids for ids, _ in prompts], sampling,
        max_new_tokens=max_new_tokens, seed=seed, samples=samples, on_text=on_text, skip_special=True,
        end_id=None if template is None else template.end_id(tokenizer),
    )  # fmt: skip
    return [
        Answer(conversations[c.prompt][-1].content, text, len(c.ids), c.stopped, c.reread, c.ids, prompts[c.prompt][1])
        for c, text in written
    ]


def prompt_ids(
    messages: Sequence[Message], tokenizer: Tokenizer, template: Template | None, context: int, max_new_tokens: int
) -> tuple[list[int], int]:
    """What is read of a conversation before its answer is written: the ids, and how many turns were left out.

    The answer gets room for `max_new_tokens`, or for half of the context where that is less. A conversation that is
    longer than what remains loses its oldest turns, so that it begins with a user's; a system message stays. Of a last
    turn that is itself too long the engine drops the beginning, which counts as a rereading.
    """
    system = list(messages[:1]) if messages[0].role == "system" else []
    turns = messages[len(system) :]

    def ids_from(first: int) -> list[int]:
        kept = [*system, *turns[first:]]
        if template is None:
            return tokenizer.encode("".join(f"{message.content}\n" for message in kept))
        return template.prompt_ids(kept, tokenizer)

    room = max(context - max_new_tokens, context // 2)
    starts = [0, *(n for n, turn in enumerate(turns) if n and turn.role == "user")]
    # The first that fits, found by halving: every trial encodes the conversation again.
    fitting = bisect_left(starts[:-1], True, key=lambda first: len(ids_from(first)) <= room)
    return ids_from(starts[fitting]), starts[fitting]
