from __future__ import annotations

from typing import Literal

import pytest

from gptlab.errors import TokenizerError, UserError
from gptlab.evaluation.answers import answer, prompt_ids
from gptlab.evaluation.samples import complete
from gptlab.generation.decoder import Decoder
from gptlab.generation.engine import generate
from gptlab.generation.sampling import Sampling
from gptlab.model.gpt import GPT
from gptlab.text.dialogue import Message, Template
from gptlab.text.tokenizer import Tokenizer

SYSTEM = Message("system", "you are a model")
QUESTIONS = [[Message("user", "Hello, who are you?")], [SYSTEM, Message("user", "who am I?")]]


def talk(*contents: str, first: Literal["user", "assistant"] = "user") -> list[Message]:
    roles: list[Literal["user", "assistant"]] = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [Message(roles[n % 2], content) for n, content in enumerate(contents)]


def test_answers_are_the_engines_as_text(chat_model: GPT, chat_tokenizer: Tokenizer, chatml: Template) -> None:
    answers = answer(
        chat_model, chat_tokenizer, chatml, QUESTIONS, Sampling(top_k=50), max_new_tokens=12, seed=5, samples=2
    )
    written = generate(
        chat_model, [chatml.prompt_ids(messages, chat_tokenizer) for messages in QUESTIONS], Sampling(top_k=50),
        max_new_tokens=12, seed=5, samples=2, eos_id=chatml.end_id(chat_tokenizer),
    )  # fmt: skip
    assert [(a.ids, a.tokens, a.stopped, a.reread) for a in answers] == [
        (c.ids, len(c.ids), c.stopped, c.reread) for c in written
    ]
    assert [a.text for a in answers] == [chat_tokenizer.decode(c.ids, skip_special=True) for c in written]
    assert [a.prompt for a in answers] == [QUESTIONS[c.prompt][-1].content for c in written]
    assert all(a.turns_dropped == 0 for a in answers)
    assert answers[0].message == Message("assistant", answers[0].text.strip())


def test_special_tokens_are_neither_in_the_text_nor_told(
    chat_model: GPT, chat_tokenizer: Tokenizer, chatml: Template
) -> None:
    told: dict[tuple[int, int], str] = {}

    def tell(conversation: int, sample: int, text: str) -> None:
        told[conversation, sample] = told.get((conversation, sample), "") + text

    answers = answer(
        chat_model, chat_tokenizer, chatml, QUESTIONS, Sampling(temperature=3.0), max_new_tokens=40, samples=20,
        on_text=tell,
    )  # fmt: skip
    special = {chat_tokenizer.special_tokens[name] for name in ("<|im_start|>", "<|endoftext|>")}
    assert any(special & set(a.ids) for a in answers)  # it does write them
    assert not any("<|" in a.text for a in answers)
    assert [told.get(divmod(n, 20), "") for n in range(40)] == [a.text for a in answers]


def test_an_answer_ends_with_the_templates_token(
    silent_model: GPT, chat_tokenizer: Tokenizer, chatml: Template
) -> None:
    (closed,) = answer(silent_model, chat_tokenizer, chatml, QUESTIONS[:1], Sampling(), max_new_tokens=5)
    assert (closed.stopped, closed.ids, closed.text) == ("eos", (), "")
    by_eos = Template.named("eos", chat_tokenizer.eos)  # of which <|im_end|> is no end
    (closed,) = answer(silent_model, chat_tokenizer, by_eos, QUESTIONS[:1], Sampling(), max_new_tokens=5)
    assert (closed.stopped, closed.tokens, closed.text) == ("length", 5, "")


def test_answers_in_a_batch_are_those_alone(chat_model: GPT, chat_tokenizer: Tokenizer, chatml: Template) -> None:
    conversations = [*QUESTIONS, talk("who?", "you", "and I?")]
    greedy = Sampling(greedy=True)
    together = answer(chat_model, chat_tokenizer, chatml, conversations, greedy, max_new_tokens=9)
    for messages, expected in zip(conversations, together, strict=True):
        assert answer(chat_model, chat_tokenizer, chatml, [messages], greedy, max_new_tokens=9) == [expected]


def test_a_decoder_answers_as_its_model(chat_model: GPT, chat_tokenizer: Tokenizer, chatml: Template) -> None:
    by_model, by_decoder = (
        answer(model, chat_tokenizer, chatml, QUESTIONS, Sampling(greedy=True), max_new_tokens=9)
        for model in (chat_model, Decoder(chat_model))
    )
    assert by_model == by_decoder


@pytest.mark.parametrize("system", [[], [SYSTEM]])
def test_a_long_history_loses_its_oldest_turns(
    chat_model: GPT, chat_tokenizer: Tokenizer, chatml: Template, system: list[Message]
) -> None:
    """Read is what a shorter conversation would be; it begins with a user's turn, after the system message."""
    turns = talk(*["Hello, who are you?"] * 21)
    (long,) = answer(chat_model, chat_tokenizer, chatml, [[*system, *turns]], Sampling(), max_new_tokens=8)
    kept = turns[long.turns_dropped :]
    assert long.turns_dropped > 0
    assert kept[0].role == "user"
    (short,) = answer(chat_model, chat_tokenizer, chatml, [[*system, *kept]], Sampling(), max_new_tokens=8)
    assert (short.ids, short.turns_dropped, long.reread) == (long.ids, 0, 0)
    assert len(chatml.prompt_ids([*system, *kept], chat_tokenizer)) <= 64 - 8
    one_more = [*system, *turns[long.turns_dropped - 2 :]]
    assert len(chatml.prompt_ids(one_more, chat_tokenizer)) > 64 - 8


def test_what_just_fits_is_kept_whole(chat_tokenizer: Tokenizer, chatml: Template) -> None:
    turns = talk("who are you?", "I am a model", "Hello")
    ids = chatml.prompt_ids(turns, chat_tokenizer)
    assert prompt_ids(turns, chat_tokenizer, chatml, len(ids) + 5, 5) == (ids, 0)
    last = chatml.prompt_ids(turns[2:], chat_tokenizer)
    assert prompt_ids(turns, chat_tokenizer, chatml, len(ids) + 4, 5) == (last, 2)
    # An answer as long as the context gets half of it.
    assert prompt_ids(turns, chat_tokenizer, chatml, 2 * len(ids), 2 * len(ids)) == (ids, 0)


def test_a_conversation_may_begin_with_the_assistant(chat_tokenizer: Tokenizer, chatml: Template) -> None:
    turns = talk("Hello", "who are you?", "I am a model", "a model?", first="assistant")
    ids = chatml.prompt_ids(turns[1:], chat_tokenizer)
    assert prompt_ids(turns, chat_tokenizer, chatml, len(ids) + 5, 5) == (ids, 1)


def test_a_question_longer_than_the_context_is_reread(
    chat_model: GPT, chat_tokenizer: Tokenizer, chatml: Template
) -> None:
    turns = [*talk("who?", "you"), Message("user", "?!" * 200)]
    (cut,) = answer(chat_model, chat_tokenizer, chatml, [turns], Sampling(), max_new_tokens=4)
    assert (cut.turns_dropped, cut.reread) == (2, 1)


def test_without_a_template_turns_are_lines_of_a_text(chat_model: GPT, chat_tokenizer: Tokenizer) -> None:
    turns = [SYSTEM, *talk("who?", "you", "and I?")]
    (answered,) = answer(chat_model, chat_tokenizer, None, [turns], Sampling(), max_new_tokens=9, seed=2)
    text = "you are a model\nwho?\nyou\nand I?\n"
    (written,) = complete(chat_model, chat_tokenizer, [text], Sampling(), max_new_tokens=9, seed=2)
    assert (answered.text, answered.tokens) == (written.text, written.tokens)


@pytest.mark.parametrize(("conversation", "wanted"), [([], "2 is empty"), (talk("a", "b"), "2 ends with the assist")])
def test_only_a_users_turn_is_answered(
    chat_model: GPT, chat_tokenizer: Tokenizer, chatml: Template, conversation: list[Message], wanted: str
) -> None:
    with pytest.raises(UserError, match=f"conversation {wanted}"):
        answer(chat_model, chat_tokenizer, chatml, [talk("a"), conversation], Sampling(), max_new_tokens=1)


def test_a_template_whose_tokens_the_tokenizer_lacks(chat_model: GPT, chatml: Template) -> None:
    plain = Tokenizer.train(["Hello, who are you?"] * 2, 270)
    with pytest.raises(TokenizerError, match="im_end"):
        answer(chat_model, plain, chatml, [talk("a")], Sampling(), max_new_tokens=1)
