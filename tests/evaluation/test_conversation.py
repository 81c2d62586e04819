from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gptlab.data.conversations import read_messages
from gptlab.errors import DataError, UserError
from gptlab.evaluation.conversation import Chat, Conversation, Parameters
from gptlab.generation.decoder import Decoder
from gptlab.generation.sampling import Sampling
from gptlab.model.gpt import GPT
from gptlab.text.dialogue import Message, Template
from gptlab.text.tokenizer import Tokenizer

PARAMETERS = Parameters(Sampling(top_k=50), max_new_tokens=12, seed=2)

Make = Callable[..., Conversation]


@pytest.fixture
def make(chat_model: GPT, chat_tokenizer: Tokenizer, chatml: Template) -> Make:
    """A conversation with a random model that speaks ChatML."""

    def conversation(
        name: str = "random", system: str = "", model: GPT = chat_model, template: Template = chatml
    ) -> Conversation:
        return Conversation(Decoder(model), chat_tokenizer, template, name=name, system=system)

    return conversation


def test_questions_and_answers_become_turns(make: Make) -> None:
    conversation = make(system="be kind")
    chat = Chat([conversation], PARAMETERS)
    (first,), (second,) = chat.ask("Hello"), chat.ask("and you?")
    assert first.text == first.text.strip() != ""
    assert conversation.messages == [
        Message("system", "be kind"),
        Message("user", "Hello"), Message("assistant", first.text),
        Message("user", "and you?"), Message("assistant", second.text),
    ]  # fmt: skip


def test_the_same_seed_and_questions_give_the_same_answers(make: Make) -> None:
    def replies(seed: int) -> list[str]:
        chat = Chat([make()], Parameters(Sampling(), max_new_tokens=8, seed=seed))
        return [chat.ask(question)[0].text for question in ("Hello", "and you?", "who?")]

    assert replies(1) == replies(1)
    assert replies(1) != replies(2)


def test_a_question_asked_again_gets_another_answer(make: Make) -> None:
    chat = Chat([make()], PARAMETERS)
    first = chat.ask("Hello")
    assert chat.undo()
    assert chat.ask("Hello") != first


def test_what_is_told_is_the_reply(make: Make) -> None:
    """A random model writes white space at the ends now and then, which is neither told nor kept."""
    chat = Chat([make()], Parameters(Sampling(temperature=2.0), max_new_tokens=12))
    for number in range(20):
        told: list[str] = []
        (reply,) = chat.ask(f"question {number}", lambda _, text, told=told: told.append(text))
        assert "".join(told) == reply.text == reply.text.strip()


def test_an_interrupted_answer_is_kept_as_far_as_it_went(make: Make) -> None:
    conversation = make()
    chat = Chat([conversation], PARAMETERS)
    whole = Chat([make()], PARAMETERS).ask("Hello")[0].text
    told: list[str] = []

    def tell(_: int, text: str) -> None:
        told.append(text)
        if len(told) == 3:
            raise KeyboardInterrupt

    (reply,) = chat.ask("Hello", tell)
    assert reply.stopped == "interrupted"
    assert reply.text == "".join(told) != whole
    assert whole.startswith(reply.text)
    assert conversation.turns == [Message("user", "Hello"), Message("assistant", reply.text)]
    assert chat.ask("and you?")[0].stopped != "interrupted"


def test_an_interrupted_answer_knows_what_was_not_read(make: Make) -> None:
    conversation = make()
    conversation.turns = [Message("user", "Hello"), Message("assistant", "Hello")] * 20

    def tell(_: int, text: str) -> None:
        raise KeyboardInterrupt

    dropped = [Chat([conversation], PARAMETERS).ask("Hello", each)[0].turns_dropped for each in (tell, lambda *_: None)]
    assert 0 < dropped[0] <= dropped[1]


def test_interrupted_where_nobody_goes_on(make: Make) -> None:
    one, other = make(), make()
    chat = Chat([one, other], PARAMETERS)
    chat.ask("Hello")
    before = [one.turns, other.turns]

    def tell(number: int, text: str) -> None:
        if number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chat.ask("and you?", tell, keep_stopped=False)
    assert [one.turns, other.turns] == before


def test_a_question_without_an_answer_is_not_kept(make: Make, silent_model: GPT) -> None:
    conversation = make(model=silent_model)
    chat = Chat([conversation], PARAMETERS)
    (reply,) = chat.ask("Hello")
    assert (reply.text, reply.stopped, conversation.turns) == ("", "eos", [])


def test_each_model_reads_its_own_answers(make: Make) -> None:
    """Asked side by side each answers as it does alone."""
    questions = ["Hello", "and you?", "who?"]
    alone = {}
    for system in ("", "be kind"):
        chat = Chat([make(system=system)], PARAMETERS)
        alone[system] = [chat.ask(question)[0] for question in questions]
    both = Chat([make(), make(system="be kind")], PARAMETERS)
    assert [tuple(both.ask(question)) for question in questions] == list(zip(*alone.values(), strict=True))
    assert alone[""] != alone["be kind"]


def test_undo_takes_back_one_question_from_each(make: Make, silent_model: GPT) -> None:
    """Also where one of them had answered nothing."""
    silent, talking = make(model=silent_model), make()
    chat = Chat([silent, talking], PARAMETERS)
    chat.ask("Hello")
    turns = talking.turns
    chat.ask("and you?")
    chat.set_system("be kind")
    assert chat.undo()
    assert (silent.turns, talking.turns) == ([], turns)
    assert talking.messages[0] == Message("system", "be kind")  # no question: it stays
    assert chat.undo()
    assert talking.turns == []
    assert not chat.undo()


def test_reset_forgets_all_but_the_system_message(make: Make) -> None:
    conversation = make(system="be kind")
    chat = Chat([conversation], PARAMETERS)
    chat.ask("Hello")
    chat.reset()
    assert conversation.messages == [Message("system", "be kind")]
    assert not chat.undo()
    chat.set_system("")
    assert conversation.messages == []


def test_an_error_leaves_all_as_they_were(make: Make, chat_tokenizer: Tokenizer) -> None:
    """HH-RLHF's template has no system messages; the other model has answered by then."""
    one, other = make(), make(template=Template.named("hh", chat_tokenizer.eos))
    chat = Chat([one, other], PARAMETERS)
    chat.ask("Hello")
    before = [one.turns, other.turns]
    chat.set_system("be kind")
    with pytest.raises(DataError, match="no system messages"):
        chat.ask("and you?")
    assert [one.turns, other.turns] == before
    assert chat.undo()
    assert one.turns == other.turns == []


def test_a_saved_chat_is_read_as_data(make: Make, tmp_path: Path) -> None:
    chat = Chat([make("a/one", "be kind ☺"), make("other")], PARAMETERS)
    chat.ask("Hello")
    chat.ask("and\u2028you?")  # a line separator for some readers, but none of JSON's
    chat.save(tmp_path / "chat.jsonl")
    records = [json.loads(line) for line in (tmp_path / "chat.jsonl").read_bytes().splitlines()]
    assert [record["model"] for record in records] == ["a/one", "other"]
    assert [read_messages("messages", record) for record in records] == [c.messages for c in chat.conversations]


def test_save_overwrites_nothing(make: Make, tmp_path: Path) -> None:
    chat = Chat([make()], PARAMETERS)
    path = tmp_path / "chat.jsonl"
    with pytest.raises(UserError, match="nothing to save"):
        chat.save(path)
    assert not path.exists()
    chat.ask("Hello")
    path.write_text("mine")
    with pytest.raises(UserError, match="left as it is"):
        chat.save(path)
    assert path.read_text() == "mine"
    with pytest.raises(UserError, match="cannot be written"):
        chat.save(tmp_path / "no" / "folder.jsonl")


def test_parameters() -> None:
    parameters = Parameters(Sampling(temperature=0.8, top_k=40))
    changed = parameters.changed("temperature=1.5", "top_k=0", "max_new_tokens=7", "seed=3")
    assert changed == Parameters(Sampling(temperature=1.5), max_new_tokens=7, seed=3)
    assert parameters.changed() == parameters
    assert str(changed) == (
        "greedy=false temperature=1.5 top_k=0 top_p=1.0 min_p=0.0 repetition_penalty=1.0 max_new_tokens=7 seed=3"
    )
    assert changed.changed(*str(parameters).split()) == parameters


def test_greedy_excludes_what_draws() -> None:
    greedy = Parameters(Sampling(temperature=0.8, repetition_penalty=1.2)).changed("greedy=true")
    assert greedy.sampling == Sampling(greedy=True, repetition_penalty=1.2)
    with pytest.raises(UserError, match="beside greedy"):
        greedy.changed("temperature=0.5")
    assert greedy.changed("greedy=false", "temperature=0.5").sampling.temperature == 0.5


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ("temprature=1", r"wanted NAME=VALUE \(did you mean 'temperature'\?\)"),
        ("temperature", "wanted NAME=VALUE"),
        ("temperature=warm", "wanted a number"),
        ("top_k=1.5", "wanted a whole number"),
        ("greedy=yes", "wanted true or false"),
        ("temperature=0", "above 0"),
        ("temperature=nan", "above 0"),
        ("max_new_tokens=0", "at least 1"),
        ("seed=-1", "at least 0"),
    ],
)
def test_parameters_that_cannot_be(change: str, wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        Parameters(Sampling()).changed(change)
