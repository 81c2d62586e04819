"""Texts with labels from real data: CoLA's own files as GLUE has them, and AG News."""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptlab.data.labels import Labels, LabelSettings, LabelSourceSettings, prepare_labels, read_labelled
from gptlab.errors import DataError
from gptlab.settings import build
from gptlab.text.tokenizer import Tokenizer

DATA = os.environ.get("GPTLAB_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="GPTLAB_DATA is not set: the folder with real data")

COLA, AG_NEWS = Path(DATA or "") / "cola", Path(DATA or "") / "agnews"
LABELS = ["unacceptable", "acceptable"]
TRAIN, IN_DOMAIN, OUT_OF_DOMAIN = "in_domain_train", "in_domain_dev", "out_of_domain_dev"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.read(Path(DATA or "") / "gpt2-bpe")


def cola(tokenizer: Tokenizer, **keys: Any) -> Labels:
    train, *held = (
        {"path": str(COLA / f"{name}.tsv"), "header": False, "text": 4, "label": 2}
        for name in (TRAIN, IN_DOMAIN, OUT_OF_DOMAIN)
    )
    tree = {"sources": [train], "validation": {"sources": held}, "labels": LABELS, **keys}
    return prepare_labels(build(LabelSettings, tree, "recipe.toml"), tokenizer, context=128)


def lines(*names: str) -> list[list[str]]:
    """The fields of each line, read without the csv module."""
    return [
        line.split("\t")
        for name in names
        for line in (COLA / f"{name}.tsv").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    ]


def test_cola_as_glue_has_it(tokenizer: Tokenizer) -> None:
    """8,551 and 1,043 rows, those in which a quotation mark stands alone among them."""
    labels = cola(tokenizer, overlap="drop")
    train, held = lines(TRAIN), lines(IN_DOMAIN, OUT_OF_DOMAIN)
    assert (len(train), len(held)) == (8551, 1043)
    assert len(labels.train) + labels.table[0].overlapping == 8551
    assert len(labels.validation) == 1043
    assert [text for (text,) in labels.validation.texts] == [fields[3] for fields in held]
    assert labels.validation.classes.tolist() == [int(fields[1]) for fields in held]
    assert labels.validation.counts().tolist() == [324, 719]
    assert round(100 * 719 / 1043, 1) == 68.9
    for number in (0, 500, 1042):
        batch = labels.validation.batch(np.array([number]))
        end = int(batch.positions[0]) + 1
        assert tokenizer.decode(batch.tokens[0, :end].tolist()) == held[number][3]


def test_sentences_of_cola_stand_in_both_its_splits(tokenizer: Tokenizer) -> None:
    """18 of the training sentences do, word for word; without them 8,533 are left."""
    train, held = lines(TRAIN), {fields[3] for fields in lines(IN_DOMAIN, OUT_OF_DOMAIN)}
    overlapping = sum(fields[3] in held for fields in train)
    with pytest.raises(DataError, match=rf"^{overlapping} training text\(s\) also stand in validation or test"):
        cola(tokenizer)
    labels = cola(tokenizer, overlap="drop")
    assert labels.table[0].overlapping == overlapping == 18
    assert len(labels.train) == 8533
    assert [text for (text,) in labels.train.texts] == [fields[3] for fields in train if fields[3] not in held]


def test_sentences_of_cola_stand_twice(tokenizer: Tokenizer) -> None:
    """8 with the same label, 11 with both."""
    train = Counter((fields[3], fields[1]) for fields in lines(TRAIN))
    twice = sum(count - 1 for count in train.values())
    both = sum(count - 1 for count in Counter(text for text, _ in train).values())
    labels = cola(tokenizer, overlap="drop")
    assert (labels.table[0].duplicates, labels.table[0].contradicting) == (twice, both) == (8, 11)
    assert len(cola(tokenizer, overlap="drop", duplicates="drop").train) == 8533 - 8
    told = labels.table[0].contradicting_at
    assert len(told) == 5
    assert all(any(each.startswith(repr(text)[:40]) for text, _ in train if train[text, "0"] and train[text, "1"])
               for each in told)  # fmt: skip


def news(path: str) -> list[list[str]]:
    text = gzip.decompress((AG_NEWS / path).read_bytes()).decode()
    return list(csv.reader(io.StringIO(text, newline="")))


def test_ag_news(tokenizer: Tokenizer) -> None:
    """Numbers from 1, title and description; a test file that begins with no header."""
    names = (AG_NEWS / "classes.txt").read_text().split()
    source = {"path": str(AG_NEWS / "test.csv.gz"), "header": False, "text": [2, 3], "label": 1}
    tree = {"sources": [source], "labels": names, "validation": {"share": 0.1}}
    labels = prepare_labels(build(LabelSettings, tree, "recipe.toml"), tokenizer, context=128)
    rows = news("test.csv.gz")
    found: Sequence[tuple[str, ...]] = [*labels.train.texts, *labels.validation.texts]
    assert Counter(found) == Counter((title, description) for _, title, description in rows)
    assert (labels.train.counts() + labels.validation.counts()).tolist() == [1900] * 4
    of_text = {(title, description): int(number) - 1 for number, title, description in rows}
    assert [of_text[texts] for texts in labels.train.texts] == labels.train.classes.tolist()
    read = read_labelled(
        build(LabelSourceSettings, source, "test"), tokenizer, context=64, labels=names, separator=". "
    )
    assert (len(read), read.context) == (7600, 64)
    ids = tokenizer.encode(". ".join(rows[0][1:]))[:64]
    assert read.ids[: len(ids)].tolist() == ids


def test_ag_news_by_its_header(tokenizer: Tokenizer) -> None:
    """`label,content`; 16 of its texts also stand in the test set."""
    tree = {
        "sources": [{"path": str(AG_NEWS / "train_subset_8000.csv.gz")}],
        "validation": {"sources": [
            {"path": str(AG_NEWS / "test.csv.gz"), "header": False, "text": 3, "label": 1}
        ]},
        "overlap": "drop",
    }  # fmt: skip
    labels = prepare_labels(build(LabelSettings, tree, "recipe.toml"), tokenizer, context=128)
    assert labels.labels == ("1", "2", "3", "4")
    assert labels.table[0].overlapping == 16
    assert len(labels.train) == 8000 - 16
    assert len(labels.validation) == 7600
