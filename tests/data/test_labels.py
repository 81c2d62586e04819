"""Texts with labels as rows: their classes, what is cut, counted, dropped and held out, and what is an error."""

from __future__ import annotations

import csv
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data.batch import IGNORE, make_batch
from gptlab.data.label_rows import TEXTS_AT_ONCE, encode_texts
from gptlab.data.labels import (
    LabelRows,
    Labels,
    LabelSettings,
    LabelSourceSettings,
    prepare_labels,
    read_labelled,
    rows_of_texts,
)
from gptlab.data.reading import PrepareProgress
from gptlab.errors import DataError, RecipeError
from gptlab.settings import build, plain
from gptlab.text.tokenizer import Tokenizer

WORDS = ["the", "of", "and", "a", "to", "in", "he", "have", "it", "that", "for", "they", "with", "not", "on", "she"]
EOS = "<|endoftext|>"
HELD = [("held out yes", "yes"), ("held out no", "no")]

Row = Sequence[Any]
"""One text or two, and the label."""


def words(number: int, count: int = 6) -> str:
    """A text that no other number has."""
    random = np.random.default_rng(number)
    return " ".join(random.choice(WORDS, size=count)) + f" {number}."


def some(count: int, start: int = 0) -> list[Row]:
    return [(words(n), ("no", "yes")[n % 2]) for n in range(start, start + count)]


def write(path: Path, rows: Sequence[Row]) -> Path:
    columns = ["label", "text"] if not rows or len(rows[0]) == 2 else ["label", "premise", "hypothesis"]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *([label, *texts] for *texts, label in rows)])
    return path


def settings_of(*sources: Path | dict[str, Any], **sections: Any) -> LabelSettings:
    trees = [each if isinstance(each, dict) else {"path": str(each)} for each in sources]
    return build(LabelSettings, {"sources": trees, **sections}, "recipe.toml")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([words(n, 30) for n in range(200)], 400)


@pytest.fixture
def prepare(tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., Labels]:
    """Validation is a text of yes and one of no that are nowhere else, unless it is given."""
    held = write(tmp_path / "held.csv", HELD)

    def call(*sources: Any, context: int = 64, **sections: Any) -> Labels:
        options = {key: sections.pop(key) for key in ("seed", "on_progress") if key in sections}
        model = {"labels": sections.pop("model_labels")} if "model_labels" in sections else {}
        sections.setdefault("validation", {"sources": [{"path": str(held)}]})
        return prepare_labels(settings_of(*sources, **sections), tokenizer, context=context, **options, **model)

    return call


def row(rows: LabelRows, number: int) -> tuple[list[int], list[int]]:
    """(ids, targets) of a row, as a batch of its own, without its padding."""
    batch = rows.batch(np.array([number]))
    end = int(batch.positions[0]) + 1
    assert set(batch.targets[0, end:].tolist()) <= {IGNORE}
    return batch.tokens[0, :end].tolist(), batch.targets[0, :end].tolist()


def named(rows: LabelRows) -> list[Row]:
    """The rows' texts with the names of their classes."""
    return [(*texts, rows.labels[number]) for texts, number in zip(rows.texts, rows.classes.tolist(), strict=True)]


# ---- a row


def test_the_class_stands_at_the_last_token(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    rows = prepare(write(tmp_path / "a.csv", [("he have it", "yes"), ("Zoë 🙂", "no"), ("a", "yes")])).train
    assert rows.labels == ("no", "yes")
    for number, (text, label) in enumerate([("he have it", 1), ("Zoë 🙂", 0), ("a", 1)]):
        ids = tokenizer.encode(text)
        assert row(rows, number) == (ids, [*[IGNORE] * (len(ids) - 1), label]), "no EOS, nothing added"
    assert rows.classes.tolist() == [1, 0, 1]
    assert rows.classes.dtype == np.int64
    assert rows.counts().tolist() == [1, 2]
    assert rows.texts == [("he have it",), ("Zoë 🙂",), ("a",)]
    assert (len(rows), rows.scored) == (3, 3)
    assert rows.tokens == sum(len(tokenizer.encode(text)) for (text,) in rows.texts)
    assert rows.context == max(len(tokenizer.encode(text)) for (text,) in rows.texts)


def test_a_pair_is_one_text(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [("He left", "He went", "yes"), ("It", "", "no")])
    held = {"sources": [{"path": str(write(tmp_path / "held-pairs.csv", [("p", "h", "yes"), ("q", "h", "no")]))}]}
    for separator in ("\n", " ; ", ""):
        rows = prepare(path, separator=separator, validation=held).train
        assert row(rows, 0)[0] == tokenizer.encode(f"He left{separator}He went")
        assert row(rows, 1)[0] == tokenizer.encode(f"It{separator}")
    assert rows.texts == [("He left", "He went"), ("It", "")]


def test_a_special_tokens_name_is_text(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    rows = prepare(write(tmp_path / "a.csv", [(f"Say {EOS}", "yes"), (EOS, "no")])).train
    assert tokenizer.eos_id not in rows.ids
    assert tokenizer.decode(row(rows, 1)[0]) == EOS


def test_a_long_text_loses_its_end(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    texts = [(words(1, 40), "yes"), (words(2), "no"), (words(3), "no")]
    path = write(tmp_path / "a.csv", texts)
    whole = prepare(path, context=1000)
    lengths = sorted(len(tokenizer.encode(text)) for text, _ in texts)
    assert whole.train.context == lengths[-1]
    assert whole.table[0].percentiles == [lengths[1], lengths[2], lengths[2], lengths[2]]
    assert prepare(path, context=lengths[-1]).table[0].cut == 0, "it fits exactly"
    cut = prepare(path, context=lengths[-1] - 1)
    assert row(cut.train, 0)[0] == tokenizer.encode(texts[0][0])[:-1]
    assert row(cut.train, 0)[1][-1] == 1, "the class moves with the end"
    assert cut.train.context == lengths[-1] - 1
    assert cut.table[0].percentiles == whole.table[0].percentiles, "they are of the texts before cutting"
    assert (cut.table[0].cut, cut.table[0].tokens) == (1, cut.train.tokens) == (1, whole.train.tokens - 1)
    assert "1 cut from the right" in cut.table[0].remarks
    assert cut.warnings[0] == (
        "of the source 'a.csv', 33 % of the texts of train are longer than the context: 1 lose their end"
    )
    assert not any("context" in warning for warning in whole.warnings)


# ---- batches


def test_a_batch_is_padded_and_sorted_by_length(prepare: Any, tmp_path: Path) -> None:
    rows = prepare(
        write(tmp_path / "a.csv", [(words(n, 2 + 5 * (n % 4)), ("no", "yes")[n % 2]) for n in range(20)])
    ).train
    numbers = np.array([3, 17, 2, 8, 9, 0])
    batch = rows.batch(numbers, epoch=5)
    assert sorted(batch.rows.tolist()) == sorted(numbers.tolist())
    lengths = [len(row(rows, number)[0]) for number in batch.rows.tolist()]
    assert lengths == sorted(lengths, reverse=True)
    for ids, targets, number, length in zip(batch.tokens, batch.targets, batch.rows.tolist(), lengths, strict=True):
        assert (ids[:length].tolist(), targets[:length].tolist()) == row(rows, number)
        assert ids[length:].tolist() == [0] * (batch.tokens.shape[1] - length)
        assert set(targets[length:].tolist()) <= {IGNORE}
    assert batch.weight == len(numbers) == len(batch.positions)
    assert torch.equal(batch.positions, make_batch(batch.tokens, batch.targets, batch.rows).positions)
    assert batch.targets.reshape(-1)[batch.positions].tolist() == rows.classes[batch.rows.numpy()].tolist()


def test_the_cut_into_micro_batches_changes_no_row(prepare: Any, tmp_path: Path) -> None:
    rows = prepare(
        write(tmp_path / "a.csv", [(words(n, 2 + n % 23), ("no", "yes")[n % 3 > 0]) for n in range(70)])
    ).train
    batch = rows.batch(np.arange(70))
    for size in (1, 7, 70):
        parts = list(batch.split(size))
        assert sum(part.weight for part in parts) == 70
        found = [
            (int(number), ids[: end + 1].tolist(), int(targets[end]))
            for part in parts
            for number, ids, targets in zip(part.rows, part.tokens, part.targets, strict=True)
            for end in [int((targets != IGNORE).nonzero()[-1])]
        ]
        assert sorted(found) == [(n, row(rows, n)[0], int(rows.classes[n])) for n in range(70)]


def test_many_texts_are_encoded_in_order(tokenizer: Tokenizer) -> None:
    """More than a thread takes at once."""
    texts = [(words(n, 1 + n % 5),) for n in range(2 * TEXTS_AT_ONCE + 5)]
    found = [ids.tolist() for ids in encode_texts(texts, tokenizer, "\n")]
    assert found == [tokenizer.encode(text) for (text,) in texts]


# ---- labels


def test_labels_are_those_of_training_sorted(prepare: Any, tmp_path: Path) -> None:
    labels = prepare(write(tmp_path / "a.csv", [("a", "yes"), ("b", "no"), ("c", "maybe")]))
    assert labels.labels == labels.train.labels == labels.validation.labels == ("maybe", "no", "yes")
    assert named(labels.train) == [("a", "yes"), ("b", "no"), ("c", "maybe")]
    held = {"sources": [{"path": str(write(tmp_path / "h.csv", [("z", "10")]))}]}
    labels = prepare(write(tmp_path / "b.csv", [("a", "10"), ("b", "9"), ("c", "0")]), validation=held)
    assert labels.labels == ("0", "9", "10"), "numbers as numbers"
    assert labels.validation.classes.tolist() == [2]


def test_labels_have_the_names_and_order_that_the_recipe_gives(prepare: Any, tmp_path: Path) -> None:
    held = {"sources": [{"path": str(write(tmp_path / "h.csv", [("y", "no"), ("z", "1")]))}]}
    path = write(tmp_path / "a.csv", [("a", "1"), ("b", "0"), ("c", "yes")])
    labels = prepare(path, labels=["yes", "no"], validation=held)
    assert labels.labels == ("yes", "no")
    assert named(labels.train) == [("a", "no"), ("b", "yes"), ("c", "yes")]
    assert named(labels.validation) == [("y", "no"), ("z", "no")]


def test_numbers_that_begin_at_1(prepare: Any, tmp_path: Path) -> None:
    """Decided by all the data: validation alone has neither 0 nor 4."""
    held = {"sources": [{"path": str(write(tmp_path / "h.csv", [("y", "2"), ("z", "3")]))}]}
    path = write(tmp_path / "a.csv", [(words(n), n % 4 + 1) for n in range(40)])
    labels = prepare(path, labels=["World", "Sports", "Business", "Sci/Tech"], validation=held)
    assert labels.train.classes.tolist() == [n % 4 for n in range(40)]
    assert named(labels.validation) == [("y", "Sports"), ("z", "Business")]


def test_a_models_labels_count_before_the_recipes(prepare: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [("a", "yes"), ("b", "no"), ("c", "yes")])
    labels = prepare(path, labels=["no", "yes"], model_labels=["yes", "perhaps", "no"])
    assert labels.labels == ("yes", "perhaps", "no")
    assert labels.train.classes.tolist() == [0, 2, 0]
    with pytest.raises(DataError, match=r"a\.csv, line 2: the label 'yes' is none of good, bad, nor the number of one"):
        prepare(path, model_labels=["good", "bad"])


@pytest.mark.parametrize(
    ("train", "held", "labels", "message"),
    [
        (
            ["yes", "no"],
            ["nope"],
            None,
            r"h\.csv, line 2: the label 'nope' stands nowhere in training, which has no, yes",
        ),
        (["yes", "no"], ["no", "Yes"], None, r"h\.csv, line 3: the label 'Yes' .*no, yes \(did you mean 'yes'\?\)"),
        (["0", "1"], ["2"], None, r"h\.csv, line 2: the label '2' stands nowhere in training, which has 0, 1"),
        (["yes", "no", "on"], ["no"], ["no", "yes"], r"a\.csv, line 4: the label 'on' is none of no, yes"),
        (["0", "1", "2"], ["0"], ["no", "yes"], r"a\.csv, line 4: the label '2' is none of no, yes, nor the number"),
        (["0", "1"], ["-2"], ["no", "yes"], r"h\.csv, line 2: the label '-2' is none of no, yes"),
        (["1", "1"], ["1"], ["a", "b", "c"], "numbers .1., and neither 0 nor 3 is among them"),
    ],
)
def test_unknown_labels(
    prepare: Any, tmp_path: Path, train: list[str], held: list[str], labels: list[str] | None, message: str
) -> None:
    path = write(tmp_path / "a.csv", [(f"text {n}", label) for n, label in enumerate(train)])
    validation = write(tmp_path / "h.csv", [(f"held {n}", label) for n, label in enumerate(held)])
    keys = {} if labels is None else {"labels": labels}
    with pytest.raises(DataError, match=message):
        prepare(path, validation={"sources": [{"path": str(validation)}]}, **keys)


def test_glues_test_labels_are_not_public(prepare: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [("a", "0"), ("b", "1")])
    test = {"sources": [{"path": str(write(tmp_path / "test.csv", [("c", "-1"), ("d", "-1")]))}]}
    for keys in ({}, {"labels": ["no", "yes"]}):
        with pytest.raises(DataError, match=r"source 'test\.csv': every label is -1: they are not public.*GLUE"):
            prepare(path, test=test, **keys)


def test_some_labels_of_minus_1_are_missing_ones(prepare: Any, tmp_path: Path) -> None:
    """As in SNLI, where the annotators did not agree."""
    path = write(tmp_path / "a.csv", [(words(n), "-1" if n == 7 else n % 2) for n in range(200)])
    labels = prepare(path, labels=["no", "yes"])
    assert len(labels.train) == 199
    assert labels.table[0].bad_at == {"no label (-1)": ["line 9"]}
    assert any("has 1 bad rows, which are left out: no label (-1): 1 (line 9)" in text for text in labels.warnings)
    with pytest.raises(DataError, match=r"1 of 200 rows are bad, no label \(-1\): 1 \(line 9\); at most 0\.001"):
        prepare(path, labels=["no", "yes"], bad_rows=0.001)


def test_minus_1_may_be_a_label(prepare: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [(words(n), n % 3 - 1) for n in range(9)])
    held = {"sources": [{"path": str(write(tmp_path / "h.csv", [("y", "-1"), ("z", "1")]))}]}
    labels = prepare(path, validation=held)
    assert labels.labels == ("-1", "0", "1")
    assert labels.validation.classes.tolist() == [0, 2]


def test_a_file_all_of_minus_1(prepare: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = {"path": str(write(tmp_path / "h.csv", [("y", "-1"), ("z", "-1")]))}
    path = write(tmp_path / "a.csv", [(words(n), n % 3 - 1) for n in range(9)])
    assert prepare(path, validation={"sources": [source]}).validation.classes.tolist() == [0, 0]
    rows = read_labelled(LabelSourceSettings(**source), tokenizer, context=9, labels=("-1", "1"), separator="\n")
    assert rows.classes.tolist() == [0, 0]


def test_one_class_alone(prepare: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [(words(n), "yes") for n in range(20)])
    for keys in ({"labels": ["no", "yes"]}, {"validation": {"share": 0.5}}):
        with pytest.raises(DataError, match="training texts have the label 'yes', so there is nothing to tell apart"):
            prepare(path, **keys)


# ---- what is counted


def test_bad_and_empty_records_are_counted_with_their_lines(prepare: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [*some(10), ("no label", ""), ("", "yes"), (" ", "no"), *some(290, 10)])
    labels = prepare(path)
    counts = labels.table[0]
    assert (counts.texts, counts.rows, len(labels.train)) == (300, 300, 300)
    assert (counts.bad, counts.bad_at) == ({"no label": 1}, {"no label": ["line 12"]})
    assert (counts.empty, counts.empty_at) == (2, ["line 13", "line 14"])
    assert counts.dropped == "2 without text, 1 bad (no label)"
    assert counts.remarks == "dropped: 2 without text, 1 bad (no label)"
    assert labels.warnings == [
        "the source 'a.csv' has 1 bad rows, which are left out: no label: 1 (line 12)",
        "the source 'a.csv' has 2 records (line 13, line 14) without text, which are left out",
    ]
    with pytest.raises(DataError, match=r"source 'a\.csv': 1 of 303 rows are bad, no label: 1 \(line 12\).*0\.001"):
        prepare(path, bad_rows=0.001)


def test_texts_that_stand_twice(prepare: Any, tmp_path: Path) -> None:
    rows = [
        ("He left.", "yes"),
        ("It", "no"),
        ("He left.", "yes"),
        ("It", "yes"),
        ("It", "no"),
        ("It", "yes"),
        ("a", "no"),
    ]
    path = write(tmp_path / "a.csv", rows)
    kept = prepare(path)
    counts = kept.table[0]
    assert named(kept.train) == rows, "as they are published"
    assert (counts.duplicates, counts.contradicting) == (3, 1)
    assert counts.contradicting_at == ["'It': no (line 3), yes (line 5)"]
    assert counts.remarks == "3 duplicates, 1 with two labels"
    assert kept.warnings[0] == (
        "the source 'a.csv': 1 texts stand in training with two labels: 'It': no (line 3), yes (line 5)"
    )
    dropped = prepare(path, duplicates="drop")
    assert named(dropped.train) == [rows[0], rows[1], rows[3], rows[6]], "what contradicts stays"
    assert (dropped.table[0].duplicates, dropped.table[0].contradicting) == (3, 1)
    assert dropped.table[0].remarks == "1 with two labels; dropped: 3 duplicates of texts before them"
    held = {
        "sources": [{"path": str(write(tmp_path / "h.csv", [("y", "no"), ("y", "no"), ("z", "yes"), ("z", "no")]))}]
    }
    labels = prepare(path, validation=held, duplicates="drop")
    assert len(labels.validation) == 4, "what is scored stays as it is"
    assert (labels.table[1].duplicates, labels.table[1].contradicting) == (0, 0)


def test_many_contradictions_are_told_in_part(prepare: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [(f"text {n % 10}", ("no", "yes")[n // 10]) for n in range(20)])
    labels = prepare(path)
    assert labels.table[0].contradicting == 10
    assert len(labels.table[0].contradicting_at) == 5
    assert labels.warnings[0].endswith("'text 4': no (line 6), yes (line 16); …")


def test_classes_are_counted(prepare: Any, tmp_path: Path) -> None:
    rows = [(words(n), "abcdef"[min(n % 10, 5)]) for n in range(100)]
    held = {"sources": [{"path": str(write(tmp_path / "h.csv", [(words(1000 + n), "af"[n % 2]) for n in range(9)]))}]}
    labels = prepare(write(tmp_path / "a.csv", rows), validation=held)
    train, validation = labels.table
    assert train.classes == {"a": 10, "b": 10, "c": 10, "d": 10, "e": 10, "f": 50}
    assert list(train.classes.values()) == labels.train.counts().tolist()
    assert train.classes_in_words == "f 50 (50 %), a 10 (10 %), b 10 (10 %), c 10 (10 %), 2 more"
    assert validation.classes == {"a": 5, "b": 0, "c": 0, "d": 0, "e": 0, "f": 4}
    assert validation.classes_in_words == "a 5 (56 %), f 4 (44 %)"
    assert labels.warnings == ["validation has no text of some labels (b, c, d, e), so nothing is known of them"]


def test_rare_classes_are_a_warning(prepare: Any, tmp_path: Path) -> None:
    rows = [*some(40), ("rare", "perhaps")]
    labels = prepare(write(tmp_path / "a.csv", rows), labels=["no", "yes", "perhaps", "never"])
    assert labels.warnings == [
        "training has fewer than 10 texts of some labels (perhaps: 1, never: 0): too few to learn",
        "validation has no text of some labels (perhaps), so nothing is known of them",
    ]


def test_far_less_than_the_limit_is_a_warning(prepare: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", some(20))
    assert prepare({"path": str(path), "limit_texts": 5000}).warnings == [
        "the source 'a.csv' gave 20 texts, of 5,000 that limit_texts allows: is its path or column the right one?"
    ]
    assert len(prepare({"path": str(path), "limit_texts": 6}).train) == 6


def test_the_table_has_a_row_a_source_and_split(prepare: Any, tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.csv", some(60)), write(tmp_path / "b.csv", some(80, 60))
    test = {"sources": [{"path": str(write(tmp_path / "c.csv", some(9, 900) + some(1)))}]}
    labels = prepare(a, {"path": str(b), "name": "mine"}, validation={"share": 0.2}, test=test, overlap="drop")
    found = {(counts.name, counts.split): counts for counts in labels.table}
    splits = [("a.csv", "train"), ("a.csv", "validation"), ("mine", "train"), ("mine", "validation"), ("c.csv", "test")]
    assert list(found) == splits
    assert found["c.csv", "test"].texts == len(labels.test) == 10
    dropped = sum(counts.overlapping for counts in labels.table)
    assert len(labels.train) + len(labels.validation) + dropped == 60 + 80
    assert found["a.csv", "train"].texts + found["mine", "train"].texts == len(labels.train)
    assert sum(counts.tokens for counts in labels.table if counts.split == "train") == labels.train.tokens


# ---- which split


def test_a_share_by_text(prepare: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", some(400) + some(100))  # 100 of them twice
    labels = prepare(path, validation={"share": 0.1}, test={"share": 0.2})
    train, validation, test = (named(rows) for rows in (labels.train, labels.validation, labels.test))
    assert not set(train) & set(validation)
    assert not set(train) & set(test)
    assert not set(validation) & set(test), "equal texts are on one side"
    assert sorted(train + validation + test) == sorted(some(400) + some(100)), (
        "each of them as often as it stands there"
    )
    assert 30 < len(validation) < 75
    assert 70 < len(test) < 130
    again = prepare(path, validation={"share": 0.1}, test={"share": 0.2}, seed=1)
    assert set(named(again.validation)) != set(validation)
    with_another_label = write(tmp_path / "b.csv", [(text, "yes") for text, _ in some(400)] + some(40, 500))
    other = prepare(with_another_label, validation={"share": 0.1}, test={"share": 0.2})
    assert {text for text, _ in validation} <= {text for text, _ in named(other.validation)}, "by the text alone"


def test_a_small_source_still_gives_validation_a_row(prepare: Any, tmp_path: Path) -> None:
    for count in (5, 19, 25):
        path = write(tmp_path / f"{count}.csv", [*some(count, 1000 * count), ("a", "no"), ("b", "yes")])
        for seed in range(5):
            labels = prepare(path, validation={"share": 0.01}, test={"share": 0.01}, seed=seed, labels=["no", "yes"])
            assert len(labels.validation) >= 1
            assert len(labels.test) >= 1
            assert len(labels.train) + len(labels.validation) + len(labels.test) == count + 2


def test_a_source_that_is_held_out_whole(prepare: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gives train no row: all of its texts went to validation or test"):
        prepare(write(tmp_path / "a.csv", [("a", "no")]), validation={"share": 0.5}, labels=["no", "yes"])


def test_overlap_with_what_is_held_out(prepare: Any, tmp_path: Path) -> None:
    rows = some(8)
    other_label = (rows[5][0], "yes" if rows[5][1] == "no" else "no")
    held = {"sources": [{"path": str(write(tmp_path / "h.csv", [rows[1], other_label, (words(99), "yes")]))}]}
    path = write(tmp_path / "a.csv", [*rows, rows[1]])
    found = r"^3 training text\(s\) also stand in validation or test; one, .*a\.csv, line 3, starts "
    with pytest.raises(DataError, match=found) as error:
        prepare(path, validation=held)
    assert repr(rows[1][0]) in str(error.value)
    assert 'data.overlap = "drop"' in str(error.value)
    labels = prepare(path, validation=held, overlap="drop")
    assert named(labels.train) == [rows[n] for n in (0, 2, 3, 4, 6, 7)], "with whichever label"
    assert len(labels.validation) == 3
    assert labels.table[0].overlapping == 3
    assert labels.table[0].remarks == "dropped: 3 also in validation or test"


def test_several_validation_files(prepare: Any, tmp_path: Path) -> None:
    sources = [
        {"path": str(write(tmp_path / f"{name}.csv", some(10, start)))} for name, start in (("in", 50), ("out", 80))
    ]
    labels = prepare(write(tmp_path / "a.csv", some(20)), validation={"sources": sources})
    assert named(labels.validation) == some(10, 50) + some(10, 80), "in their order"
    assert [(counts.name, counts.split, counts.texts) for counts in labels.table] == [
        ("a.csv", "train", 20), ("in.csv", "validation", 10), ("out.csv", "validation", 10),
    ]  # fmt: skip


# ---- fingerprints, progress, what is shown


def test_fingerprints(prepare: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = some(30)
    first = prepare(write(tmp_path / "a.csv", rows))
    assert set(first.fingerprints) == {"train", "validation"}
    again = prepare(write(tmp_path / "copy.csv", rows))
    assert again.fingerprints == first.fingerprints, "wherever it stands"
    changed = [
        prepare(write(tmp_path / "b.csv", [*rows[:-1], (rows[-1][0], "no")])),
        prepare(write(tmp_path / "c.csv", [*rows[:-1], (rows[-1][0] + ".", rows[-1][1])])),
        prepare(write(tmp_path / "d.csv", [rows[1], rows[0], *rows[2:]])),
        prepare(tmp_path / "a.csv", context=4),
        prepare(tmp_path / "a.csv", labels=["yes", "no"]),
        prepare(tmp_path / "a.csv", labels=["no", "yes", "never"]),
    ]
    prints = [first.fingerprints["train"], *(each.fingerprints["train"] for each in changed)]
    assert len(set(prints)) == len(prints)
    same_ids = [rows_of_texts([("he", "have")], tokenizer, context=9, labels=labels, separator=" ")
                for labels in (("a", "b"), ("ab", ""))]  # fmt: skip
    assert same_ids[0].checksum != same_ids[1].checksum


def test_progress(prepare: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", some(50))
    told: list[PrepareProgress] = []
    labels = prepare(path, on_progress=told.append)
    assert told[0].tokens == 0, "reading"
    assert told[-1].documents == 52
    assert told[-1].tokens == labels.train.tokens + labels.validation.tokens
    assert told[-1].bytes_read == told[-1].bytes_total == path.stat().st_size + (tmp_path / "held.csv").stat().st_size


def test_one_row_as_it_is_learned(tokenizer: Tokenizer, prepare: Any, tmp_path: Path) -> None:
    rows = prepare(write(tmp_path / "a.csv", [("to\nhe it", "yes"), ("🙂", "no")])).train
    text = rows.example(tokenizer)
    before, _, last = text.partition("⟦")
    assert (before + last.partition("⟧")[0]).replace("·", "") == "to\\nhe it"
    assert last.endswith("⟧ → yes")
    assert "·" in before
    assert rows.example(tokenizer, characters=12) == "⟦🙂⟧ → no", "a row that is shown whole is preferred"
    assert rows.example(tokenizer, characters=3) == text[:3] + "…"


# ---- rows that are scored or classified


def test_all_of_a_source(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [("a", "yes"), ("a", "yes"), ("b", "1"), ("", "no"), ("c", "0")])
    source = LabelSourceSettings(path=str(path))
    rows = read_labelled(source, tokenizer, context=64, labels=("no", "yes"), separator="\n")
    assert named(rows) == [("a", "yes"), ("a", "yes"), ("b", "yes"), ("c", "no")]
    with pytest.raises(DataError, match="the label 'yes' is none of good, bad"):
        read_labelled(source, tokenizer, context=64, labels=("good", "bad"), separator="\n")
    unlabelled = LabelSourceSettings(path=str(write(tmp_path / "b.csv", [("a", "-1")])))
    with pytest.raises(DataError, match="every label is -1"):
        read_labelled(unlabelled, tokenizer, context=64, labels=("a", "b"), separator="\n")


@settings(deadline=None, max_examples=50)
@given(texts=st.lists(st.text(min_size=1).filter(lambda text: text.strip()), min_size=1), context=st.integers(1, 12))
def test_texts_to_be_classified_are_as_in_training(tokenizer: Tokenizer, texts: list[str], context: int) -> None:
    rows = rows_of_texts([(text,) for text in texts], tokenizer, context=context, labels=("a", "b"), separator="\n")
    for number, text in enumerate(texts):
        ids, targets = row(rows, number)
        assert ids == tokenizer.encode(text)[:context]
        assert targets == [IGNORE] * (len(ids) - 1) + [0]
    assert rows.scored == len(texts)


def test_texts_that_cannot_be_classified(tokenizer: Tokenizer) -> None:
    for texts, message in [
        ([], "there is no text"),
        ([("a",), (" \n",)], "text 2 is empty"),
        ([("", "")], "text 1 is"),
    ]:
        with pytest.raises(DataError, match=message):
            rows_of_texts(texts, tokenizer, context=9, labels=("a", "b"), separator="\n")


# ---- settings


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"labels": ["one"]}, "wanted at least 2 of them, found 1"),
        ({"labels": ["a", "a"]}, "'a' stands there twice; each label has one number"),
        ({"labels": ["a", ""]}, "a label is empty, or begins or ends with space"),
        ({"labels": ["a", " b"]}, "a label is empty, or begins or ends with space"),
        ({"labels": [0, 1]}, "labels"),
        ({"duplicates": "dorp"}, "did you mean 'drop'"),
        ({"overlap": "keep"}, "overlap = 'keep'"),
        ({"bad_rows": 2}, "bad_rows = 2"),
        ({"seperator": " "}, "did you mean 'separator'"),
        ({"validation": {}}, "give either share = 0.05"),
        ({"validation": {"share": 0.6}, "test": {"share": 0.4}}, "leave nothing to train on"),
        ({"validation": {"sources": [{"path": "b", "lable": "x"}]}}, r"validation\.sources\.0\.lable.*mean 'label'"),
        ({"sources": []}, "wanted at least 1"),
        ({"sources": [{"path": "a", "name": "x"}, {"path": "b", "name": "x"}]}, "two sources are named 'x'"),
    ],
)  # fmt: skip
def test_impossible_settings(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(LabelSettings, {"sources": [{"path": "a"}], **sections}, "recipe.toml")


def test_settings_survive_being_written() -> None:
    settings = settings_of({"hub": "a/b", "text": ["x", "y"]}, labels=["a", "b"], test={"share": 0.1}, separator=" ")
    assert build(LabelSettings, plain(settings), "recipe.toml") == settings
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert settings.validation.share == 0.05


# ---- the hub


def as_published(rows: Sequence[tuple[str, int]], names: Sequence[str]) -> pyarrow.Table:
    """A table with the features that `datasets` writes beside it."""
    features = {
        "sentence": {"dtype": "string", "_type": "Value"},
        "label": {"names": list(names), "_type": "ClassLabel"},
        "idx": {"dtype": "int32", "_type": "Value"},
    }
    columns = {"sentence": [text for text, _ in rows], "label": [label for _, label in rows]}
    table = pyarrow.table({**columns, "idx": pyarrow.array(range(len(rows)), pyarrow.int32())})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


@pytest.fixture
def on_hub(hub: Any, hub_environment: dict[str, str], tmp_path: Path) -> Callable[..., list[Any]]:
    """Prepares trees in a process whose hub has acme/glue (CoLA's form) and acme/plain; (name, label) or the error."""
    glue, other = hub.folder / "datasets" / "acme" / "glue", hub.folder / "datasets" / "acme" / "plain"
    (glue / "cola").mkdir(parents=True)
    other.mkdir()
    names = ["unacceptable", "acceptable"]
    for split, start in (("train", 0), ("validation", 500)):
        rows = [(words(n), n % 2) for n in range(start, start + 40)]
        pyarrow.parquet.write_table(as_published(rows, names), glue / "cola" / f"{split}-00000-of-00001.parquet")
    unlabelled = as_published([(words(900), -1), (words(901), -1)], names)
    pyarrow.parquet.write_table(unlabelled, glue / "cola" / "test-00000-of-00001.parquet")
    splits = "".join(f"  - split: {name}\n    path: cola/{name}-*\n" for name in ("train", "validation", "test"))
    (glue / "README.md").write_text(f"---\nconfigs:\n- config_name: cola\n  data_files:\n{splits}---\n")
    (other / "train.jsonl").write_text(
        "".join(json.dumps({"text": words(n), "label": n % 2}) + "\n" for n in range(40))
    )
    Tokenizer.train([words(1)], 300).save(tmp_path / "tokenizer")

    def prepare_all(*trees: dict[str, Any]) -> list[Any]:
        code = (
            "import json; from pathlib import Path; from gptlab.data.labels import *\n"
            "from gptlab.settings import build; from gptlab.text.tokenizer import Tokenizer\n"
            "from gptlab.errors import GptlabError\n"
            f"tokenizer = Tokenizer.read(Path({str(tmp_path / 'tokenizer')!r}))\n"
            "def go(tree):\n"
            "    try: labels = prepare_labels(build(LabelSettings, tree, 'r'), tokenizer, context=99)\n"
            "    except GptlabError as error: return str(error)\n"
            "    held = labels.validation\n"
            "    rows = [(*texts, held.labels[number]) for texts, number in zip(held.texts, held.classes)]\n"
            "    return [labels.labels, len(labels.train), rows]\n"
            f"print(json.dumps([go(tree) for tree in {trees!r}]))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], env=hub_environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return prepare_all


def test_a_data_set_on_the_hub(on_hub: Callable[..., list[Any]], tmp_path: Path) -> None:
    cola = {"hub": "acme/glue", "config": "cola"}
    held = {"sources": [{**cola, "split": "validation", "limit_texts": 3}]}
    file = write(tmp_path / "a.csv", [("one", "0"), ("two", "1"), ("three", "acceptable")])
    names = ["unacceptable", "acceptable"]
    own, renamed, turned, beside, in_a_file, unnamed, test, config, column = on_hub(
        {"sources": [cola], "validation": held},
        {"sources": [cola], "validation": held, "labels": ["bad", "good"]},
        {"sources": [cola], "validation": held, "labels": names[::-1]},
        {"sources": [cola, {"path": str(file)}], "validation": held},
        {"sources": [cola], "validation": {"sources": [{"path": str(file)}]}},
        {"sources": [{"hub": "acme/plain"}], "validation": {"sources": [{"hub": "acme/plain", "limit_texts": 1}]},
         "overlap": "drop"},
        {"sources": [cola], "validation": {"sources": [{**cola, "split": "test"}]}},
        {"sources": [{"hub": "acme/glue", "config": "colla"}]},
        {"sources": [{**cola, "label": "lable"}]},
    )  # fmt: skip
    expected = [[words(500 + n), names[n % 2]] for n in range(3)]
    assert own == [names, 40, expected], "the names that the hub has, in their order"
    assert renamed == [["bad", "good"], 40, [[text, ("bad", "good")[n % 2]] for n, (text, _) in enumerate(expected)]]
    assert turned == [names[::-1], 40, expected], "a name is a name, whatever its number there"
    assert beside == [names, 43, expected]
    assert in_a_file == [names, 40, [["one", names[0]], ["two", names[1]], ["three", names[1]]]]
    assert unnamed == [["0", "1"], 39, [[words(0), "0"]]]
    assert "the source 'acme/glue': every label is -1: they are not public" in test
    assert "colla" in config
    assert "acme/glue on the hub, record 1: there is no column 'lable' (did you mean 'label'?)" in column
