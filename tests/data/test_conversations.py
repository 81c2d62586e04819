"""Every form in which dialogues are published gives the messages that were said, and a row that is none says why."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from gptlab.data.conversations import BadRow, Format, read_messages
from gptlab.data.dialogue_sources import DialogueSource, DialogueSourceSettings
from gptlab.data.record_sources import ALL_BAD
from gptlab.errors import DataError, RecipeError
from gptlab.settings import build, plain
from gptlab.text.dialogue import Message

SPOKEN = [("user", "Hi there"), ("assistant", "Hello."), ("user", "Who are you?"), ("assistant", "Zoë 🙂")]
MESSAGES = [{"role": role, "content": content} for role, content in SPOKEN]
TEXTS = [content for _, content in SPOKEN]


def said(*turns: tuple[str, str]) -> list[Message]:
    return [Message(role, content) for role, content in turns]  # type: ignore[arg-type]


def source(path: Path | str | None = None, **keys: Any) -> DialogueSource:
    tree = keys if path is None else {"path": str(path), **keys}
    return DialogueSource(build(DialogueSourceSettings, tree, "recipe.toml"))


def jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


# ---- what each format says


@pytest.mark.parametrize(
    ("format", "values", "expected"),
    [
        ("messages", {"messages": MESSAGES}, SPOKEN),
        ("messages", {"messages": [{"role": "system", "content": "x"}, *MESSAGES]}, [("system", "x"), *SPOKEN]),
        ("messages", {"messages": [{"role": "system", "content": " "}, *MESSAGES]}, SPOKEN),
        ("messages", {"messages": [{**entry, "name": "x"} for entry in MESSAGES[:3]]}, SPOKEN[:3]),
        ("messages", {"messages": [{"role": "user", "content": " a "}, {"role": "assistant", "content": "b\n"}]},
         [("user", " a "), ("assistant", "b\n")]),
        ("prompt-response", {"prompt": "Hi there", "response": "Hello."}, SPOKEN[:2]),
        ("turns", {"turns": TEXTS}, SPOKEN),
        ("turns", {"turns": TEXTS[:3]}, SPOKEN[:3]),
        ("turns", {"turns": tuple(TEXTS)}, SPOKEN),
        ("turns", {"turns": (None, "", " ", *TEXTS)}, SPOKEN),
        ("turns", {"turns": ("Earlier", *TEXTS)}, SPOKEN),
        ("hh", {"text": "\n\nHuman: Hi there\n\nAssistant: Hello.\n\nHuman: Who are you?\n\nAssistant: Zoë 🙂"},
         SPOKEN),
        ("hh", {"text": "Human: a\nHuman: b\n\nAssistant:  c\n\nd "},
         [("user", "a\nHuman: b"), ("assistant", "c\n\nd")]),
        ("dailydialog", {"line": "Hi there __eou__ Hello. __eou__ Who are you? __eou__ Zoë 🙂 __eou__"}, SPOKEN),
        ("dailydialog", {"line": "Say , Jim ? __eou__ You know . __eou__"},
         [("user", "Say , Jim ?"), ("assistant", "You know .")]),
        ("dailydialog", {"line": "a __eou__ b"}, [("user", "a"), ("assistant", "b")]),
        ("sharegpt", {"conversations": [{"from": "human", "value": "Hi there"}, {"from": "gpt", "value": "Hello."}]},
         SPOKEN[:2]),
        ("sharegpt", {"conversations": [{"from": "system", "value": "x"}, {"from": "user", "value": "a"},
                                        {"from": "chatgpt", "value": "b"}]},
         [("system", "x"), ("user", "a"), ("assistant", "b")]),
        ("alpaca", {"instruction": "Translate.", "input": "Bär", "output": "bear"},
         [("user", "Translate.\n\nBär"), ("assistant", "bear")]),
        ("alpaca", {"instruction": "Name one.", "input": "", "output": "A bear."},
         [("user", "Name one."), ("assistant", "A bear.")]),
        ("alpaca", {"instruction": "Name one.", "input": None, "output": "A bear."},
         [("user", "Name one."), ("assistant", "A bear.")]),
    ],
)  # fmt: skip
def test_formats(format: Format, values: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert read_messages(format, values) == said(*expected)


def entries(*turns: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(
    ("format", "values", "cause"),
    [
        ("messages", entries(), "no answer"),
        ("messages", entries(("user", "a")), "no answer"),
        ("messages", entries(("user", "a"), ("user", "b")), "no answer"),
        ("messages", entries(("user", "a"), ("assistant", "")), "an empty message"),
        ("messages", entries(("user", " \n"), ("assistant", "b")), "an empty message"),
        ("messages", entries(("assistant", "a"), ("user", "b"), ("assistant", "c")), "roles out of order"),
        ("messages", entries(("user", "a"), ("assistant", "b"), ("assistant", "c")), "roles out of order"),
        ("messages", entries(("user", "a"), ("system", "b"), ("assistant", "c")), "roles out of order"),
        ("messages", entries(("user", "a"), ("tool", "b"), ("assistant", "c")), "an unknown role"),
        ("messages", entries(("user", "a"), (None, "b")), "an unknown role"),
        ("messages", entries(("user", "a"), ("assistant", None)), "not text"),
        ("messages", entries(("user", "a"), ("assistant", [{"type": "text", "text": "b"}])), "not text"),
        ("messages", entries(("user", "a"), ("assistant", "\ud83d")), "not text"),
        ("messages", {"messages": "a text"}, "not in its format"),
        ("messages", {"messages": None}, "not in its format"),
        ("messages", {"messages": [["user", "a"]]}, "not in its format"),
        ("messages", {"messages": [{"from": "human", "value": "a"}]}, "not in its format"),
        ("prompt-response", {"prompt": "a", "response": 5}, "not text"),
        ("prompt-response", {"prompt": "a", "response": " "}, "an empty message"),
        ("turns", {"turns": "a text"}, "not in its format"),
        ("turns", {"turns": ["a"]}, "no answer"),
        ("turns", {"turns": ["a", "", "c"]}, "an empty message"),
        ("turns", {"turns": ("a", None, "c", "d")}, "not text"),
        ("turns", {"turns": ("", None)}, "no answer"),
        ("hh", {"text": "Hello"}, "not in its format"),
        ("hh", {"text": ""}, "no answer"),
        ("hh", {"text": "\n\nHuman: a\n\nAssistant: "}, "an empty message"),
        ("hh", {"text": "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c"}, "roles out of order"),
        ("dailydialog", {"line": "a __eou__ __eou__ b __eou__"}, "an empty message"),
        ("sharegpt", {"conversations": [{"from": "bing", "value": "a"}]}, "an unknown role"),
        ("sharegpt", {"conversations": [{"from": "gpt", "value": "a"}]}, "roles out of order"),
        ("alpaca", {"instruction": None, "input": "", "output": "a"}, "not text"),
        ("alpaca", {"instruction": "a", "input": ["b"], "output": "c"}, "not text"),
    ],
)
def test_rows_that_are_no_dialogues(format: Format, values: dict[str, Any], cause: str) -> None:
    with pytest.raises(BadRow) as bad:
        read_messages(format, values)
    assert bad.value.cause == cause


# ---- where they stand


def test_every_table_has_them(tmp_path: Path) -> None:
    """Lists from JSON Lines and parquet, columns of text from all four."""
    records = [{"id": n, "chat": MESSAGES[: 2 + n]} for n in range(3)]
    expected = [said(*SPOKEN[: 2 + n]) for n in range(3)]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "a.parquet")
    for name in ("a.jsonl.gz", "a.parquet"):
        one = source(tmp_path / name, columns={"messages": "chat"})
        assert list(one.dialogues()) == expected
        assert one.bytes_read == one.bytes_total() == (tmp_path / name).stat().st_size

    pairs = [("q", "a"), ('Say "x", please', "x\ty"), ("Zürich?", "One\n\ntwo")]
    pyarrow.parquet.write_table(
        pyarrow.table({"question": [q for q, _ in pairs], "answer": [a for _, a in pairs]}), tmp_path / "b.parquet"
    )
    jsonl(tmp_path / "b.jsonl", *({"question": q, "answer": a} for q, a in pairs))
    with (tmp_path / "b.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("question", "answer"), *pairs])
    columns = {"prompt": "question", "response": "answer"}
    for name in ("b.parquet", "b.jsonl", "b.csv"):
        found = source(tmp_path / name, format="prompt-response", columns=columns).dialogues()
        assert list(found) == [said(("user", q), ("assistant", a)) for q, a in pairs], name
    (tmp_path / "b.tsv").write_text("question\tanswer\nq\ta\n")
    found = source(tmp_path / "b.tsv", format="prompt-response", columns=columns).dialogues()
    assert list(found) == [said(("user", "q"), ("assistant", "a"))]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.parquet"])
def test_the_columns_tell_the_format(tmp_path: Path, name: str) -> None:
    columns = {"output": ["o"], "id": ["1"], "instruction": ["i"]}
    if name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / name)
    elif name == "a.jsonl":
        jsonl(tmp_path / name, {key: value[0] for key, value in columns.items()})
    else:
        mark = "," if name == "a.csv" else "\t"
        (tmp_path / name).write_text(f"{mark.join(columns)}\no{mark}1{mark}i\n")
    one = source(tmp_path / name)
    assert one.format == "alpaca"
    assert list(one.dialogues()) == [said(("user", "i"), ("assistant", "o"))]


def test_turns_in_several_columns(tmp_path: Path) -> None:
    path = tmp_path / "rick.csv"
    path.write_text("response,context,context/0\nc,b,a\nd,c,\ne,,\n")
    one = source(path, format="turns", columns={"turns": ["context/0", "context", "response"]})
    assert list(one.dialogues()) == [said(("user", "b"), ("assistant", "c")), said(("user", "c"), ("assistant", "d"))]
    assert one.bad.counts == {"no answer": 1}


def test_alpaca_without_inputs(tmp_path: Path) -> None:
    record = {"instruction": "a", "output": "b"}
    path = jsonl(tmp_path / "a.jsonl", record, {**record, "input": "i"})
    assert [messages[0].content for messages in source(path, format="alpaca").dialogues()] == ["a", "a\n\ni"]
    with pytest.raises(DataError, match=r"line 1: there is no column 'context'; there is 'instruction', 'output'"):
        list(source(path, format="alpaca", columns={"input": "context"}).dialogues())


def test_shares_and_limits(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *({"prompt": f"q{n}", "response": "a"} for n in range(1000)))
    asked = {
        share: [m[0].content for m in source(path, format="prompt-response", share=share).dialogues()]
        for share in (0.1, 0.5)
    }
    assert 60 < len(asked[0.1]) < 140
    assert set(asked[0.1]) < set(asked[0.5])
    limited = source(path, format="prompt-response", limit_dialogues=7)
    assert [m[0].content for m in limited.dialogues()] == [f"q{n}" for n in range(7)]
    limited.check(0)


def test_where_bad_rows_stand(tmp_path: Path) -> None:
    good, empty = {"prompt": "q", "response": "a"}, {"prompt": "q", "response": ""}
    jsonl(tmp_path / "a.jsonl", good, empty, *[good] * 200)
    (tmp_path / "b.csv").write_text('prompt,response\n"q\nq",a\n"q\nq",\nq,a\n')
    one = source(tmp_path, format="prompt-response")
    assert sum(1 for _ in one.dialogues()) == 203
    assert one.bad.places == {"an empty message": ["a.jsonl line 2", "b.csv line 4"]}
    one.check(0.01)
    places = r"a\.jsonl line 2, b\.csv line 4"
    with pytest.raises(DataError, match=rf"2 of 205 rows are bad, an empty message: 2 \({places}\)"):
        one.check(0.009)
    table = pyarrow.table({"prompt": ["q"] * 9, "response": ["a", None] + [""] * 7})
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet")
    one = source(tmp_path / "c.parquet", format="prompt-response")
    list(one.dialogues())
    with pytest.raises(
        DataError,
        match=r"8 of 9 rows are bad, not text: 1 \(record 2\); an empty message: 7 \(record 3, record 4, record 5, "
        r"record 6, record 7, …\); at most 0\.5 of them may be \(data\.bad_rows\)",
    ):
        one.check(0.5)


def test_what_is_all_bad_is_not_read_on(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *[{"chosen": "A text."}] * (ALL_BAD + 5))
    one = source(path, format="hh")
    assert list(one.dialogues()) == []
    with pytest.raises(DataError, match=r"1,000 of 1,000 rows are bad.*Is hh their format"):
        one.check(1 - 1e-9)


@pytest.mark.parametrize(
    ("name", "content", "keys", "message"),
    [
        (
            "a.jsonl",
            '{"messages": []}\n{"message": []}\n',
            {},
            r"line 2: .*no column 'messages' \(did you mean 'message'",
        ),
        ("a.jsonl", '{"messages": \n', {}, "line 1: is not JSON"),
        ("a.jsonl", "", {"format": "messages"}, r"source 'a\.jsonl' yields nothing: it has no records"),
        ("a.jsonl", '{"messages": []}\n', {"share": 1e-9}, "share = 1e-09 keeps none of its records"),
        ("a.csv", "prompt,answer\nq,a\n", {"format": "prompt-response"}, "there is no column 'response'"),
        ("a.txt", "Hi", {"format": "messages"}, r"a\.txt: messages is not read from \.txt; wanted \.jsonl"),
        ("a.jsonl", "{}", {"format": "dailydialog"}, r"dailydialog is not read from \.jsonl; wanted \.txt"),
        ("a.json", "[]", {}, r"\.json is not read"),
        ("a.jsonl", '{"text": "x"}\n', {}, r"columns text, which are of no format .*; hh: chosen;"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str, keys: dict[str, Any], message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read(source(tmp_path / name, **keys))


def read(one: DialogueSource) -> None:
    list(one.dialogues())
    one.check(1)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "a source is one of path, hub and embedded; given: none"),
        ({"path": "a", "hub": "b/c"}, "given: path and hub"),
        ({"path": "a", "revision": "x"}, "config, revision and files belong to a hub source"),
        ({"hub": "a/b/c"}, "no name on the hub"),
        ({"path": "a", "format": "sharegtp"}, "did you mean 'sharegpt'"),
        ({"path": "a", "column": "x"}, "did you mean 'columns'"),
        ({"path": "a", "columns": {"mesages": "x"}}, r"columns\.mesages: a format has messages, .* \(did you mean"),
        ({"path": "a", "columns": {"messages": ["x", "y"]}}, "wanted one column; only turns may stand in several"),
        ({"path": "a", "format": "turns", "columns": {"turns": ["x"]}}, "at least 2"),
        ({"path": "a", "format": "dailydialog", "columns": {"text": "x"}}, "it is read from lines of text"),
        ({"hub": "a/b", "format": "dailydialog"}, 'format = "turns"'),
        ({"path": "a", "limit_dialogues": -1}, "limit_dialogues = -1"),
        ({"path": "a", "share": 0}, "share = 0"),
    ],
)
def test_impossible_settings(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(DialogueSourceSettings, tree, "recipe.toml")


def test_settings_survive_being_written() -> None:
    settings = build(
        DialogueSourceSettings, {"hub": "a/b", "format": "turns", "columns": {"turns": ["x", "y"]}}, "recipe.toml"
    )
    assert build(DialogueSourceSettings, plain(settings), "recipe.toml") == settings
