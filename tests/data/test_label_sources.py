"""Where texts and labels stand: tables with and without a header, the usual columns, records without text or label."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from gptlab.data.label_sources import LabelSource, LabelSourceSettings
from gptlab.errors import DataError, RecipeError
from gptlab.settings import build, plain

Found = list[tuple[tuple[str, ...], str]]


def source(path: Path | str, **keys: Any) -> LabelSource:
    return LabelSource(build(LabelSourceSettings, {"path": str(path), **keys}, "recipe.toml"))


def texts(path: Path | str, **keys: Any) -> Found:
    return [(row.texts, row.label) for row in source(path, **keys).texts()]


def write(path: Path, content: str) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content.encode()))
    else:
        path.write_text(content, encoding="utf-8")
    return path


def lines(path: Path, *records: Any) -> Path:
    return write(path, "".join(json.dumps(record) + "\n" for record in records))


# ---- tables


def test_cola_has_no_header_and_no_quoting(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'gj04\t1\t\t"One" said.\ngj04\t0\t*\t"Two\nc\t1\t\tThree')
    found = source(path, header=False, text=4, label=2)
    rows = list(found.texts())
    assert [(row.texts, row.label) for row in rows] == [
        (('"One" said.',), "1"), (('"Two',), "0"), (("Three",), "1"),
    ]  # fmt: skip
    assert [row.record.where for row in rows] == [f"{path}, line {n}" for n in (1, 2, 3)]
    assert found.bytes_read == path.stat().st_size


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_ag_news_has_no_header_and_is_quoted(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, '"3","Fears, ""again""","Unions\nsay so."\n"4","Two","A sunflower."\n')
    assert texts(path, header=False, text=[2, 3], label=1) == [
        (('Fears, "again"', "Unions\nsay so."), "3"), (("Two", "A sunflower."), "4"),
    ]  # fmt: skip
    places = [row.record.where for row in source(path, header=False, text=2, label=1).texts()]
    assert places == [f"{path}, line 1", f"{path}, line 3"], "where a record begins"


def test_every_format_gives_the_same(tmp_path: Path) -> None:
    records = [{"id": n, "text": text, "label": n % 2} for n, text in enumerate(["One.", "Zwölf\tZürich", "a, b"])]
    expected = [((record["text"],), str(record["label"])) for record in records]
    lines(tmp_path / "a.jsonl", *records)
    lines(tmp_path / "a.jsonl.gz", *records)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "a.parquet")
    write(tmp_path / "a.csv", 'label,text,id\n0,One.,0\n1,"Zwölf\tZürich",1\n0,"a, b",2\n')
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet", "a.csv"):
        assert texts(tmp_path / name) == expected, name


def test_several_files_are_one_source(tmp_path: Path) -> None:
    for name in "ba":
        write(tmp_path / f"{name}.tsv", f"text\tlabel\n{name} one\t0\n\t1\n{name} three\t\n")
    found = source(tmp_path / "*.tsv")
    assert [row.texts[0] for row in found.texts()] == ["a one", "b one"]
    assert found.bad.places == {"no label": ["a.tsv line 4", "b.tsv line 4"]}
    assert found.empty.places == {"an empty text": ["a.tsv line 3", "b.tsv line 3"]}
    assert found.bytes_read == found.bytes_total()


@pytest.mark.parametrize(
    ("name", "content", "keys", "message"),
    [
        ("a.tsv", "a\tb\nc\n", {"text": 1, "label": 2}, r"a\.tsv, line 2: 1 fields where line 1 has 2"),
        ("a.tsv", "a\tb\n", {"text": 4, "label": 2}, r"a\.tsv, line 1: there is no column '4'; there is '1', '2'"),
        ("a.tsv", "", {"text": 1, "label": 2}, "no column '1'; there is none"),
        ("a.csv", '1,"a\n', {"text": 2, "label": 1}, "unexpected end of data"),
        ("a.jsonl", '{"text": "a"}\n', {"text": 1, "label": 2}, r"\.jsonl names its columns in every file"),
    ],
)
def test_bad_tables_without_a_header(tmp_path: Path, name: str, content: str, keys: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        texts(write(tmp_path / name, content), header=False, **keys)


# ---- columns

GLUE = {
    "cola": ["sentence", "label", "idx"],
    "sst2": ["sentence", "label", "idx"],
    "mrpc": ["sentence1", "sentence2", "label", "idx"],
    "qqp": ["question1", "question2", "label", "idx"],
    "mnli": ["premise", "hypothesis", "label", "idx"],
    "ax": ["premise", "hypothesis", "label", "idx"],
    "qnli": ["question", "sentence", "label", "idx"],
    "rte": ["sentence1", "sentence2", "label", "idx"],
    "wnli": ["sentence1", "sentence2", "label", "idx"],
}
"""Of the card of nyu-mll/glue."""


@pytest.mark.parametrize("columns", GLUE.values(), ids=GLUE)
def test_glues_columns_are_known(tmp_path: Path, columns: Sequence[str]) -> None:
    path = write(tmp_path / "a.csv", ",".join(columns) + "\n" + ",".join(f"a {name}" for name in columns) + "\n")
    wanted = tuple(f"a {name}" for name in columns if name not in ("label", "idx"))
    assert texts(path) == [(wanted, "a label")]


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("label,text", (("text",), "label")),
        ("label,title,content", (("title", "content"), "label")),
        ("Class Index,Title,Description", (("Title", "Description"), "Class Index")),
        ("Category,Message", (("Message",), "Category")),
        ("review,sentiment", (("review",), "sentiment")),
        ("gold_label,sentence1,sentence2,pairID", (("sentence1", "sentence2"), "gold_label")),
        ("question,passage,label", (("question", "passage"), "label")),
        ("text,target,id", (("text",), "target")),
    ],
)
def test_other_usual_columns(tmp_path: Path, header: str, wanted: tuple[tuple[str, ...], str]) -> None:
    assert source(write(tmp_path / "a.csv", f"{header}\n")).columns == wanted


def test_columns_that_are_named_count(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label,other,kind\na,0,b,x\n")
    assert texts(path, text="other", label="kind") == [(("b",), "x")]
    assert texts(path, text="other") == [(("b",), "0")]
    assert texts(path, label="kind") == [(("a",), "x")]
    assert texts(path, text=["other", "text"]) == [(("b", "a"), "0")]
    with pytest.raises(DataError, match=r"line 1 \(the header\): there is no column 'othr' \(did you mean 'other'\?\)"):
        texts(path, text="othr")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "id,words,label\n", r'a\.csv: has the columns id, words, label; none has a usual name.*: text = "…"'),
        ("a.csv", "id,text,points\n", r'columns id, text, points; .*: label = "…"'),
        ("a.jsonl", '{"a": 1, "b": 2}\n', r'has the columns a, b; .*: text and label = "…"'),
        ("a.tsv", "", "has the columns none"),
        ("a.tsv", f"1\t{'word ' * 99}\n", r"has the columns 1, word word .{30}; .*is no header: header = false"),
    ],
)
def test_columns_that_are_not_usual(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        texts(write(tmp_path / name, content))
    assert len(str(error.value)) < 400


def test_plain_text_has_no_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "text")
    for keys in ({}, {"text": "a", "label": "b"}):
        with pytest.raises(DataError, match=r"a\.txt: texts with labels are not read from \.txt; wanted \.jsonl"):
            texts(path, **keys)


# ---- labels


@pytest.mark.parametrize(
    ("value", "label"),
    [(0, "0"), (-1, "-1"), (2.0, "2"), (" yes ", "yes"), (True, "true"), (False, "false"), ("1.5", "1.5")],
)
def test_a_label_is_a_name_or_a_number(tmp_path: Path, value: Any, label: str) -> None:
    assert texts(lines(tmp_path / "a.jsonl", {"text": "a", "label": value})) == [(("a",), label)]


@pytest.mark.parametrize("value", [None, "", "  ", float("nan")])
def test_a_missing_label_is_counted(tmp_path: Path, value: Any) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": "a", "label": "x"}, {"text": "b", "label": value})
    found = source(path)
    assert [row.texts for row in found.texts()] == [("a",)]
    assert (found.records, found.bad.counts, found.bad.places) == (2, {"no label": 1}, {"no label": ["line 2"]})
    found.check(0.5)
    with pytest.raises(
        DataError, match=r"source 'a\.jsonl': 1 of 2 rows are bad, no label: 1 \(line 2\); at most 0\.4"
    ):
        found.check(0.4)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3.8, "line 1: the label 3.8 is a score; what is learned here are classes"),
        (float("inf"), "the label inf is a score"),
        ([1, 2], r"line 1: column 'label' holds '\[1, 2\]' \(list\), not one label"),
        ({"a": 1}, r"\(dict\), not one label"),
        ("\ud83d", "half a surrogate pair"),
    ],
)
def test_what_is_no_label(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        texts(lines(tmp_path / "a.jsonl", {"text": "a", "label": value}))


def test_a_text_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: column 'text' holds '5' \(int\), not text"):
        texts(lines(tmp_path / "a.jsonl", {"text": "a", "label": 0}, {"text": 5, "label": 0}))


def test_empty_texts_are_counted_and_left_out(tmp_path: Path) -> None:
    records = [("a", ""), ("", ""), (" ", "\n"), (None, "b"), (None, None)]
    path = lines(tmp_path / "a.jsonl", *({"question": q, "answer": a, "label": 0} for q, a in records))
    found = source(path)
    assert [row.texts for row in found.texts()] == [("a", ""), ("", "b")], "one of a pair may be empty"
    assert found.empty.places == {"an empty text": ["line 2", "line 3", "line 5"]}
    found.check(0)
    empty = source(lines(tmp_path / "b.jsonl", {"text": "", "label": 0}, {"text": " ", "label": 1}))
    assert list(empty.texts()) == []
    with pytest.raises(DataError, match=r"'b\.jsonl' yields nothing: none of its 2 records has text in 'text'"):
        empty.check(0)


def test_nothing_at_all(tmp_path: Path) -> None:
    found = source(write(tmp_path / "a.csv", "text,label\n"))
    assert list(found.texts()) == []
    with pytest.raises(DataError, match=r"source 'a\.csv' yields nothing: it has no records"):
        found.check(0)
    found = source(write(tmp_path / "b.csv", "text,label\na,0\n"), share=1e-9)
    assert list(found.texts()) == []
    with pytest.raises(DataError, match="share = 1e-09 keeps none of its records"):
        found.check(0)


# ---- how much of it


def test_a_share_and_a_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\n" + "".join(f"text {n},{n % 3}\n" for n in range(2000)))
    half = texts(path, share=0.5)
    assert 900 < len(half) < 1100
    assert set(half) < set(texts(path))
    assert texts(path, limit_texts=7) == texts(path)[:7]
    assert texts(path, share=0.5, limit_texts=9) == half[:9]
    gaps = write(tmp_path / "b.csv", "text,label\n,0\na,0\n,1\nb,1\nc,0\n")
    assert [each[0] for each, _ in texts(gaps, limit_texts=2)] == ["a", "b"], "of those that have text and label"


# ---- settings


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "one of path and hub; given: none"),
        ({"path": "a", "header": False}, "header = false: which columns are they"),
        ({"path": "a", "header": False, "text": 1}, "header = false: which columns are they"),
        ({"path": "a", "header": False, "text": "words", "label": 1}, "column 'words': header = false leaves no names"),
        ({"path": "a", "header": False, "text": [1, 2], "label": "y"}, "column 'y': header = false leaves no names"),
        ({"path": "a", "text": 4, "label": 2}, "column 4: columns have names, and numbers only where header = false"),
        ({"path": "a", "label": 2}, "column 2: columns have names"),
        ({"path": "a", "header": False, "text": 0, "label": 2}, "text = 0"),
        ({"path": "a", "text": ["a", "b", "c"]}, "text"),
        ({"path": "a", "text": []}, "text"),
        ({"path": "a", "text": ""}, "text"),
        ({"hub": "a/b", "header": False, "text": 1, "label": 2}, "a data set on the hub names its columns"),
        ({"path": "a", "colum": "x"}, "unknown key"),
        ({"path": "a", "lable": "x"}, "did you mean 'label'"),
        ({"path": "a", "limit_texts": -1}, "limit_texts = -1"),
    ],
)
def test_impossible_settings(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(LabelSourceSettings, tree, "recipe.toml")


@pytest.mark.parametrize(
    "tree",
    [
        {"path": "a", "text": "x", "label": "y"},
        {"path": "a", "text": ["x", "y"]},
        {"path": "a", "header": False, "text": [2, 3], "label": 1},
        {"hub": "a/b", "config": "cola", "limit_texts": 5},
    ],
)
def test_settings_survive_being_written(tree: dict[str, Any]) -> None:
    settings = build(LabelSourceSettings, tree, "a")
    assert build(LabelSourceSettings, plain(settings), "b") == settings
    assert tree.items() <= plain(settings).items()
