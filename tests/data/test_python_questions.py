"""Questions made of the standard library's documentation: what is asked, what is right, and that nothing but the
question tells which of two answers that is."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, get_args

import pytest

from gptlab.data.dialogue_sources import DialogueSource, DialogueSourceSettings
from gptlab.data.dialogues import DialogueSettings, prepare_dialogues
from gptlab.data.first_sentence import first_sentence
from gptlab.data.python_docs import part_with, python_docs
from gptlab.data.python_questions import EMBEDDED_QUESTIONS, Question, python_questions, questions_of
from gptlab.errors import RecipeError
from gptlab.settings import build
from gptlab.text.dialogue import Message, Template
from gptlab.text.tokenizer import Tokenizer

PARTS = ("all", "train", "validation")


@pytest.fixture(scope="module", params=PARTS)
def part(request: pytest.FixtureRequest) -> list[Question]:
    return list(python_questions(request.param))


def named(name: str) -> Question:
    return next(each for each in python_questions() if each.name == name)


def package(question: Question) -> str:
    return question.name.partition(".")[0]


def kind(question: Question) -> str:
    """Whether it asks what something does, what a module is for, or what something is; a property is what it is, and
    yet its answers are exchanged with those of functions."""
    return question.question.replace(question.name, "…")


@pytest.mark.parametrize(
    ("name", "question", "right"),
    [
        ("json.dumps", "What does json.dumps do?", "Serialize obj to a JSON formatted str."),
        ("collections.OrderedDict", "What is collections.OrderedDict?", "Dictionary that remembers insertion order."),
        ("threading.Thread.name", "What is threading.Thread.name?", "A string used for identification purposes only."),
        ("statistics", "What is the module statistics for?", "Basic statistics module."),
        (
            "textwrap.dedent",
            "What does textwrap.dedent do?",
            "Remove any common leading whitespace from every line in text.",
        ),
    ],
)
def test_what_is_asked_and_what_is_right(name: str, question: str, right: str) -> None:
    found = named(name)
    assert (found.question, found.right) == (question, right)


def test_an_answer_is_a_sentence_of_the_documentation(part: list[Question]) -> None:
    assert len(part) > 200
    assert len({each.question for each in part}) == len(part)
    for each in part:
        for answer in (each.right, each.wrong):
            assert 20 <= len(answer) <= 160
            assert answer.endswith(".")
            assert answer[0].isupper()
            assert answer.isprintable(), answer
        assert not any(word.startswith("_") for word in each.name.split("."))


def test_each_sentence_is_right_once_and_wrong_once_so_that_it_does_not_tell(part: list[Question]) -> None:
    assert max(Counter(each.right for each in part).values()) == 1
    assert sorted(each.right for each in part) == sorted(each.wrong for each in part)


def test_a_wrong_answer_is_that_of_a_question_of_its_kind_about_another_package(part: list[Question]) -> None:
    answered = {each.right: each for each in part}
    asked: defaultdict[str, set[str]] = defaultdict(set)
    for each in part:
        other = answered[each.wrong]
        assert package(other) != package(each)
        asked[kind(each)].add(kind(other))
    assert asked["What is the module … for?"] == {"What is the module … for?"}
    assert asked["What does … do?"] <= {"What does … do?", "What is …?"}


def test_it_is_about_as_long(part: list[Question]) -> None:
    differences = [len(each.wrong) - len(each.right) for each in part]
    assert sum(differences) == 0
    assert sum(map(abs, differences)) / len(part) < 8
    longer = sum(difference > 0 for difference in differences) / len(part)
    shorter = sum(difference < 0 for difference in differences) / len(part)
    assert abs(longer - shorter) < 0.1


def test_validation_asks_about_packages_that_train_does_not_speak_of() -> None:
    train, validation = list(python_questions("train")), list(python_questions("validation"))
    assert not {package(each) for each in train} & {package(each) for each in validation}
    assert {part_with(each.name) for each in train} == {"train"}
    assert len({package(each) for each in validation}) > 10
    assert 0.05 < len(validation) / (len(train) + len(validation)) < 0.15
    read = " ".join(" ".join(text.split()) for _, text in python_docs("train"))
    assert not [each for each in validation if each.right.removesuffix(".") in read]


def test_what_is_said_of_many_is_no_answer() -> None:
    said = {each.right for each in python_questions()}
    texts = [line for _, text in python_docs() for line in text.splitlines()]
    assert texts.count("Receive data from the socket.") > 1  # of asyncio's loops
    assert "Receive data from the socket." not in said


def test_they_are_the_same_in_every_process() -> None:
    code = (
        "import hashlib; from gptlab.data.python_questions import python_questions\n"
        "print(hashlib.sha256(repr(list(python_questions('train'))).encode()).hexdigest())"
    )
    prints = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("0", "1")
    }  # fmt: skip
    assert len(prints) == 1


# ---- first sentences


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the size of an object in bytes.", "Return the size of an object in bytes."),
        ("Return the size of an object", "Return the size of an object."),
        ("Return the size of\n  an object.  Raise an\nerror.", "Return the size of an object."),
        ("Tools (e.g. Parsers etc. and so on) for text. They", "Tools (e.g. Parsers etc. and so on) for text."),
        ("split(s, sep=None) -> list\n\nReturn the words of a string.", "Return the words of a string."),
        ("a.b.c\n\nImplements the command that builds.", "Implements the command that builds."),
        ("The ``Path`` of a :class:`~os.PathLike` *thing*.", "The Path of a os.PathLike thing."),
        ("Send `s' to the server at once.", "Send 's' to the server at once."),
        ("Call func(*args, **kwargs) and return.", "Call func(*args, **kwargs) and return."),
        ("JSON <https://json.org> is a subset of JavaScript.", "JSON is a subset of JavaScript."),
    ],
)
def test_the_first_sentence_of_a_docstring(docstring: str, sentence: str) -> None:
    assert first_sentence(docstring, "a.b.c") == sentence


@pytest.mark.parametrize(
    "docstring",
    [
        "Internal function.",
        "Long. " * 2,
        f"Return {'very ' * 40}much of it.",
        "get a float from the user in a dialog.",
        ">>> import io, struct, sys",
        "Mock takes several optional arguments:",
        "Should the handler flush its buffer?",
        "Return a number in the range [a, b) of them.",
        'Return a "quoted word without its end.',
        "split(s, sep=None) -> list of strings",
        "See http://python.org for what this does.",
        "Instance attributes:\n  _short : [string]",
        "",
        "-----------------------------------",
    ],
)
def test_what_is_no_answer(docstring: str) -> None:
    assert first_sentence(docstring, "a.b.c") == ""


# ---- as dialogues


def source(**keys: Any) -> DialogueSource:
    return DialogueSource(build(DialogueSourceSettings, keys, "recipe.toml"))


def test_questions_by_the_name_of_their_source() -> None:
    assert get_args(EMBEDDED_QUESTIONS) == (
        "python-questions",
        "python-questions:train",
        "python-questions:validation",
    )
    for embedded, part in zip(get_args(EMBEDDED_QUESTIONS), PARTS, strict=True):
        assert list(questions_of(embedded)) == list(python_questions(part))  # type: ignore[arg-type]


def test_a_question_is_a_dialogue(monkeypatch: pytest.MonkeyPatch) -> None:
    validation = source(embedded="python-questions:validation")
    dialogues = list(validation.dialogues())
    questions = list(python_questions("validation"))
    assert dialogues == [[Message("user", each.question), Message("assistant", each.right)] for each in questions]
    assert (validation.name, validation.records, validation.bad.total) == (
        "python-questions:validation",
        len(questions),
        0,
    )
    assert validation.bytes_read == sum(len((each.question + each.right).encode()) for each in questions)
    assert validation.bytes_total() is None
    before = validation.fingerprint()
    assert source(embedded="python-questions:train").fingerprint() != before
    monkeypatch.setattr(platform, "python_version", lambda: "2.7.18")
    assert source(embedded="python-questions:validation").fingerprint() != before


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"embedded": "python-questions", "path": "a.jsonl"}, "given: path and embedded"),
        ({"embedded": "python-question"}, "did you mean 'python-questions'"),
        ({"embedded": "python-questions", "format": "turns"}, "belong to files and the hub"),
        ({"embedded": "python-questions", "columns": {"prompt": "question"}}, "belong to files and the hub"),
    ],
)
def test_impossible_settings(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        source(**keys)


def test_they_are_prepared_as_other_dialogues_are(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train([each.right for each in python_questions("validation")], 600)
    tree = {
        "kind": "dialogues",
        "sources": [{"embedded": "python-questions:train", "limit_dialogues": 50}],
        "validation": {"sources": [{"embedded": "python-questions:validation"}]},
    }
    prepared = prepare_dialogues(
        build(DialogueSettings, tree, "recipe.toml"), tokenizer, Template.named("eos", tokenizer.eos),
        context=128, cache=tmp_path,
    )  # fmt: skip
    assert {row.split: row.dialogues for row in prepared.table} == {
        "train": 50,
        "validation": len(list(python_questions("validation"))),
    }
    assert not prepared.warnings
