"""Every form in which preferences are published gives a prompt and two answers, and a row that is none says why."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from gptlab.data.conversations import BadRow
from gptlab.data.pairs import Pair, PairFormat, read_pair
from gptlab.data.preference_sources import PreferenceSource, PreferenceSourceSettings
from gptlab.data.python_questions import python_questions
from gptlab.data.record_sources import ALL_BAD
from gptlab.errors import DataError, RecipeError
from gptlab.settings import build, plain
from gptlab.text.dialogue import Message


def entries(*turns: tuple[Any, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def pair(prompt: list[dict[str, Any]], chosen: str, rejected: str) -> Pair:
    return Pair([Message(**entry) for entry in prompt], chosen, rejected)


def sides(chosen: Any, rejected: Any, **prompt: Any) -> dict[str, Any]:
    return {**prompt, "chosen": chosen, "rejected": rejected}


def source(path: Path | str | None = None, **keys: Any) -> PreferenceSource:
    tree = keys if path is None else {"path": str(path), **keys}
    return PreferenceSource(build(PreferenceSourceSettings, tree, "recipe.toml"))


def jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def found(one: PreferenceSource) -> list[Pair]:
    return [each.pair for each in one.pairs()]


ASKED = entries(("user", "Hi"))
LONGER = entries(("system", "Be kind"), ("user", "Hi"), ("assistant", "Hello."), ("user", "Who are you?"))
GOOD, BAD = entries(("assistant", "Zoë 🙂")), entries(("assistant", " Nobody"))
HH = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Who are you?\n\nAssistant:"

# ---- what each form says


@pytest.mark.parametrize(
    ("format", "values", "prompt"),
    [
        ("prompt", sides("Zoë 🙂", " Nobody", prompt="Hi"), ASKED),
        ("prompt", sides(GOOD, BAD, prompt="Hi"), ASKED),
        ("prompt", sides(ASKED + GOOD, ASKED + BAD, prompt="Hi"), ASKED),
        ("prompt", sides(ASKED + GOOD, " Nobody", prompt="Hi"), ASKED),
        ("prompt", sides("Zoë 🙂", " Nobody", prompt=LONGER), LONGER),
        ("prompt", sides(GOOD, BAD, prompt=LONGER), LONGER),
        ("prompt", sides(LONGER + GOOD, LONGER + BAD, prompt=LONGER), LONGER),
        ("prompt", sides([*LONGER[1:], *GOOD], [*LONGER[1:], *BAD], prompt="Hi"), LONGER[1:]),
        ("prompt", sides([{**ASKED[0], "name": "x"}, *GOOD], BAD, prompt="Hi"), ASKED),
        ("prompt", sides(ASKED + GOOD, ASKED + BAD, prompt=[]), ASKED),
        ("messages", sides(ASKED + GOOD, ASKED + BAD), ASKED),
        ("messages", sides(LONGER + GOOD, LONGER + BAD), LONGER),
        ("messages", sides(entries(("system", " ")) + ASKED + GOOD, ASKED + BAD), ASKED),
    ],
)
def test_forms(format: PairFormat, values: dict[str, Any], prompt: list[dict[str, Any]]) -> None:
    assert read_pair(format, values) == pair(prompt, "Zoë 🙂", " Nobody")


@pytest.mark.parametrize(
    ("format", "values"),
    [
        ("hh", sides(HH + " Zoë.", HH + "  Nobody\n\nat all ")),
        ("prompt", sides(" Zoë.", " Nobody\n\nat all", prompt=HH)),  # Dahoas/rm-static
        ("prompt", sides("Zoë.", "Nobody\n\nat all", prompt=HH + " ")),
    ],
)
def test_the_marks_of_hh_rlhf(format: PairFormat, values: dict[str, Any]) -> None:
    assert read_pair(format, values) == pair(LONGER[1:], "Zoë.", "Nobody\n\nat all")


def test_a_prompt_that_only_speaks_of_humans_is_one_turn() -> None:
    for text in ("Human: one\n\nAssistant: two", "Say\n\nHuman: a\n\nAssistant:", "Assistant:"):
        assert read_pair("prompt", sides("a", "b", prompt=text)).prompt == [Message("user", text)]


def test_equal_sides_are_no_error_of_form() -> None:
    assert read_pair("prompt", sides("a", "a", prompt="q")) == pair(entries(("user", "q")), "a", "a")


@pytest.mark.parametrize(
    ("format", "values", "cause"),
    [
        ("prompt", sides("a", "b", prompt=None), "not text"),
        ("prompt", sides("a", "b", prompt=5), "not text"),
        ("prompt", sides("a", None, prompt="q"), "not text"),
        ("prompt", sides("a", 2.5, prompt="q"), "not text"),
        ("prompt", sides("a", "\ud83d", prompt="q"), "not text"),
        ("prompt", sides("a", "b", prompt=["q"]), "not in its format"),
        ("prompt", sides([GOOD], BAD, prompt="q"), "not in its format"),
        ("prompt", sides("a", "b", prompt=entries(("human", "q"))), "an unknown role"),
        ("prompt", sides("a", " \n", prompt="q"), "an empty message"),
        ("prompt", sides("a", "b", prompt=""), "an empty message"),
        ("prompt", sides("a", [], prompt="q"), "no answer"),
        ("prompt", sides("a", entries(("assistant", "b"), ("user", "c")), prompt="q"), "no answer"),
        ("prompt", sides("a", "b", prompt=ASKED + GOOD), "roles out of order"),
        ("prompt", sides(ASKED + GOOD, ASKED + BAD, prompt="Hello"), "roles out of order"),
        ("prompt", sides(GOOD, GOOD + BAD, prompt="Hi"), "roles out of order"),
        ("prompt", sides("a", "b", prompt=[]), "roles out of order"),
        ("messages", sides(ASKED + GOOD, "a text"), "not in its format"),
        ("messages", sides(ASKED + GOOD, None), "not in its format"),
        ("messages", sides(ASKED + GOOD, ASKED), "no answer"),
        ("messages", sides(LONGER + GOOD, LONGER), "no answer"),
        ("messages", sides(ASKED + GOOD, entries(("user", "Ho")) + BAD), "no common prompt"),
        ("messages", sides(LONGER + GOOD, [LONGER[0], *entries(("user", "Ho")), *BAD]), "no common prompt"),
        ("messages", sides(LONGER + GOOD, ASKED + BAD), "no common prompt"),
        ("messages", sides(LONGER[1:] + GOOD, ASKED + BAD), "sides that part before their last answer"),
        ("messages", sides(ASKED + GOOD + ASKED + GOOD, ASKED + BAD + ASKED + GOOD),
         "sides that part before their last answer"),
        ("hh", sides(HH + " a", HH + " "), "an empty message"),
        ("hh", sides(HH + " a", "Who are you?"), "not in its format"),
        ("hh", sides(HH + " a", None), "not text"),
        ("hh", sides(HH + " a", ASKED + GOOD), "not text"),
        ("hh", sides(HH + " a", HH + " b\n\nAssistant: c"), "roles out of order"),
        ("hh", sides(HH + " a", HH + " b\n\nHuman: c"), "no answer"),
        ("hh", sides(HH + " a", "\n\nHuman: Ho\n\nAssistant: b"), "no common prompt"),
        ("hh", sides(HH + " a", "\n\nHuman: Hi\n\nAssistant: b"), "sides that part before their last answer"),
    ],
)  # fmt: skip
def test_rows_that_are_no_pairs(format: PairFormat, values: dict[str, Any], cause: str) -> None:
    with pytest.raises(BadRow) as bad:
        read_pair(format, values)
    assert bad.value.cause == cause


# ---- where they stand


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.tsv", "a.parquet"])
def test_every_table_has_texts(tmp_path: Path, name: str) -> None:
    rows = [{"id": str(n), "rejected": f"no {n}", "chosen": f"yes, {n}", "prompt": f'Is "{n}" it?'} for n in range(3)]
    path = tmp_path / name
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif name.endswith("gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif name == "a.jsonl":
        path.write_text(lines)
    elif name == "a.csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([rows[0], *(row.values() for row in rows)])
    else:
        path.write_text("\n".join("\t".join(row) for row in ([*rows[0]], *([*row.values()] for row in rows))) + "\n")
    one = source(path)
    assert one.format == "prompt"
    assert found(one) == [pair(entries(("user", f'Is "{n}" it?')), f"yes, {n}", f"no {n}") for n in range(3)]
    assert one.bytes_read == one.bytes_total() == path.stat().st_size


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_every_table_with_lists_has_messages(tmp_path: Path, name: str) -> None:
    rows = [sides(LONGER + GOOD, LONGER + BAD, score=n) for n in range(3)]
    if name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
    else:
        jsonl(tmp_path / name, *rows)
    one = source(tmp_path / name)
    assert one.format == "messages"
    assert found(one) == [pair(LONGER, "Zoë 🙂", " Nobody")] * 3


def test_what_the_columns_tell(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", sides(HH + " a", HH + " b"))
    assert source(path).format == "hh"
    assert source(path, format="messages").format == "messages"
    path = jsonl(tmp_path / "b.jsonl", {"win": "a", "lose": "b", "question": "q"})
    one = source(path, columns={"chosen": "win", "rejected": "lose", "prompt": "question"})
    assert (one.format, found(one)) == ("prompt", [pair(entries(("user", "q")), "a", "b")])
    path = jsonl(tmp_path / "c.jsonl", {"win": ASKED + GOOD, "rejected": ASKED + BAD})
    assert found(source(path, columns={"chosen": "win"})) == [pair(ASKED, "Zoë 🙂", " Nobody")]


def test_questions_that_python_carries() -> None:
    one = source(embedded="python-questions:validation", limit_pairs=20)
    questions = list(python_questions("validation"))[:20]
    assert one.name == "python-questions:validation"
    assert found(one) == [pair(entries(("user", q.question)), q.right, q.wrong) for q in questions]
    assert [each.place for each in one.pairs()][:2] == ["question 1", "question 2"]
    assert one.bytes_read == sum(len(text.encode()) for q in questions for text in (q.question, q.right, q.wrong))
    assert one.bytes_total() is None
    one.check(0)


def test_where_bad_and_equal_pairs_stand(tmp_path: Path) -> None:
    good, bad, equal = sides("a", "b", prompt="q"), sides("a", "", prompt="q"), sides("a", "a", prompt="q")
    jsonl(tmp_path / "a.jsonl", good, bad, equal, *[good] * 198)
    (tmp_path / "b.csv").write_text('prompt,chosen,rejected\n"q\nq",a,b\nq,"\n",b\nq,a,a\n')
    one = source(tmp_path)
    assert len(found(one)) == 200
    assert one.bad.places == {"an empty message": ["a.jsonl line 2", "b.csv line 4"]}
    assert one.equal.places == {"equal sides": ["a.jsonl line 3", "b.csv line 6"]}
    one.check(0.01)
    with pytest.raises(DataError, match=r"2 of 204 rows are bad, an empty message: 2 .*Is prompt their format"):
        one.check(0.009)
    assert len(found(one)) == 200, "read again, they are counted anew"
    assert (one.bad.total, one.equal.total) == (2, 2)


def test_equal_pairs_alone(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *[sides("a", "a", prompt="q")] * 3)
    with pytest.raises(DataError, match=r"'a\.jsonl' yields nothing: both sides are equal in all of its 3 pairs"):
        read(source(path))


def test_shares_and_limits(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *(sides("a", "b", prompt=f"q{n}") for n in range(1000)))
    asked = {share: [each.prompt[0].content for each in found(source(path, share=share))] for share in (0.1, 0.5)}
    assert 60 < len(asked[0.1]) < 140
    assert set(asked[0.1]) < set(asked[0.5])
    limited = source(path, limit_pairs=7)
    assert [each.prompt[0].content for each in found(limited)] == [f"q{n}" for n in range(7)]
    limited.check(0)


def test_what_is_all_bad_is_not_read_on(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *[sides("The sky is blue.", "The sky is green.")] * (ALL_BAD + 5))
    one = source(path)
    assert found(one) == []
    with pytest.raises(DataError, match=r"1,000 of 1,000 rows are bad, not in its format.*Is hh their format"):
        one.check(1 - 1e-9)


@pytest.mark.parametrize(
    ("name", "content", "keys", "message"),
    [
        (
            "a.jsonl",
            '{"chosen": "a", "rejcted": "b"}\n',
            {},
            r"has the columns chosen, rejcted; wanted chosen and reject",
        ),
        ("a.jsonl", '{"chosen": "a", "rejected": "b"}\n', {"columns": {"chosen": "win"}}, "wanted win and rejected"),
        ("a.jsonl", '{"chosen": "a", "rejected": "b"}\n', {"format": "prompt"}, "line 1: there is no column 'prompt'"),
        (
            "a.jsonl",
            '{"chosen": "a", "rejected": "b"}\n{"chosen": "a"}\n',
            {},
            r"line 2: there is no column 'rejected'",
        ),
        ("a.jsonl", '{"chosen": \n', {}, "line 1: is not JSON"),
        ("a.jsonl", "", {}, r"has the columns none; wanted chosen and rejected"),
        ("a.jsonl", "", {"format": "hh"}, r"source 'a\.jsonl' yields nothing: it has no records"),
        ("a.csv", "chosen,rejected\n", {}, r"source 'a\.csv' yields nothing: it has no records"),
        ("a.txt", "Hi", {}, r"a\.txt: preferences are not read from \.txt; wanted \.jsonl"),
        ("a.txt", "Hi", {"format": "hh"}, r"a\.txt: preferences are not read from \.txt; wanted \.jsonl"),
        ("a.json", "[]", {}, r"\.json is not read"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str, keys: dict[str, Any], message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read(source(tmp_path / name, **keys))


def read(one: PreferenceSource) -> None:
    found(one)
    one.check(1)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "a source is one of path, hub and embedded; given: none"),
        ({"path": "a", "embedded": "python-questions"}, "given: path and embedded"),
        ({"embedded": "python-question"}, "did you mean 'python-questions'"),
        ({"embedded": "python-questions", "format": "prompt"}, "embedded questions are read as they are"),
        ({"embedded": "python-questions", "columns": {"chosen": "x"}}, "embedded questions are read as they are"),
        ({"path": "a", "format": "message"}, "did you mean 'messages'"),
        ({"path": "a", "columns": {"choosen": "x"}}, r"columns\.choosen: a pair has .* \(did you mean 'chosen'"),
        ({"path": "a", "format": "hh", "columns": {"prompt": "x"}}, r"columns\.prompt: hh has chosen, rejected"),
        ({"path": "a", "columns": {"chosen": ["x", "y"]}}, r"columns\.chosen"),
        ({"path": "a", "limit_pairs": -1}, "limit_pairs = -1"),
    ],
)
def test_impossible_settings(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(PreferenceSourceSettings, tree, "recipe.toml")


def test_settings_survive_being_written() -> None:
    settings = build(PreferenceSourceSettings, {"hub": "a/b", "columns": {"chosen": "win"}}, "recipe.toml")
    assert build(PreferenceSourceSettings, plain(settings), "recipe.toml") == settings
