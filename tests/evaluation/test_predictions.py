"""Predictions are read back by csv, json and pandas as they were made."""

from __future__ import annotations

import csv
import json
import os
import threading
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from gptlab.data.label_rows import LabelRows
from gptlab.errors import CheckpointError, UserError
from gptlab.evaluation.predictions import check_predictions_file, probabilities, write_predictions

TEXTS = [('He said, "no".',), ("a\ttab\nand a line,",), ("€ 5; 'x'",), ("\r\n",)]
PAIRS = [(text, f"{text}?") for (text,) in TEXTS]
LABELS = ("no", "text", "a, b")  # a class may be called as a column is
LOGITS = np.array([[2, 1, 0], [0, 1e-3, 0], [0, 0, 40], [-1, -2, -1.5]], np.float32)
CLASSES = np.array([0, 0, 2, 2])


def rows_of(texts: list[tuple[str, ...]]) -> LabelRows:
    return LabelRows(texts, [np.array([1])] * len(texts), CLASSES, LABELS)


def test_probabilities_are_torchs_softmax() -> None:
    wanted = torch.tensor(LOGITS, dtype=torch.float64).softmax(dim=1).numpy()
    np.testing.assert_allclose(probabilities(LOGITS), wanted, rtol=1e-12)


def test_csv(tmp_path: Path) -> None:
    file = tmp_path / "predictions.csv"
    write_predictions(file, rows_of(TEXTS), LOGITS)
    with file.open(encoding="utf-8", newline="") as lines:
        found = list(csv.DictReader(lines, strict=True))
    assert [row["text"] for row in found] == [text for (text,) in TEXTS]
    assert [row["label"] for row in found] == ["no", "no", "a, b", "a, b"]
    assert [row["predicted"] for row in found] == ["no", "text", "a, b", "no"]
    assert [row["right"] for row in found] == ["true", "false", "true", "false"]
    probs = [[float(row[f"probability_{label}"]) for label in LABELS] for row in found]
    np.testing.assert_allclose(probs, probabilities(LOGITS), rtol=1e-5)
    table = pandas.read_csv(file)
    assert table["right"].dtype == bool
    assert table["right"].mean() == 0.5
    assert list(table.columns[:4]) == ["text", "label", "predicted", "right"]


def test_pairs_have_a_column_each(tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions.csv", rows_of(PAIRS), LOGITS)
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as lines:
        assert [(row["text_1"], row["text_2"]) for row in csv.DictReader(lines)] == PAIRS


def test_tsv_has_no_quoting_and_a_record_a_line(tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions.tsv", rows_of(TEXTS), LOGITS)
    header, *lines = (tmp_path / "predictions.tsv").read_bytes().decode().removesuffix("\n").split("\n")
    assert header.split("\t") == ["text", "label", "predicted", "right", *(f"probability_{label}" for label in LABELS)]
    cells = [line.split("\t") for line in lines]
    assert [row[0] for row in cells] == ['He said, "no".', "a tab and a line,", "€ 5; 'x'", " "]
    assert all(len(row) == 7 for row in cells)


def test_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "predictions.jsonl"
    write_predictions(file, rows_of(PAIRS), LOGITS)
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [(row["text_1"], row["text_2"]) for row in found] == PAIRS
    assert [row["right"] for row in found] == [True, False, True, False]
    assert [list(row["probabilities"]) for row in found] == [list(LABELS)] * 4
    assert found[2]["probabilities"]["a, b"] == pytest.approx(1)
    assert 0 < found[2]["probabilities"]["no"] < 1e-16  # not rounded to nought


def test_a_file_that_is_there_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "predictions.csv"
    file.write_text("mine")
    write_predictions(file, rows_of(TEXTS), LOGITS)
    written = file.read_text()
    assert written.startswith("text,label")
    assert list(tmp_path.iterdir()) == [file]
    first = f".predictions.csv.{os.getpid()}-{threading.get_ident()}.writing"  # where it is written first
    (tmp_path / first).symlink_to("/dev/full")  # a disk that is full
    with pytest.raises(CheckpointError, match="could not be written"):
        write_predictions(file, rows_of(TEXTS[::-1]), LOGITS)
    assert file.read_text() == written


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("predictions.xlsx", "written as .csv, .tsv, .jsonl"),
        ("predictions", "written as .csv, .tsv, .jsonl"),
        ("folder.csv", "is a folder"),
        ("nowhere/predictions.csv", "there is no folder"),
    ],
)
def test_what_cannot_be_written_is_known_before(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=words):
        check_predictions_file(tmp_path / name)
    with pytest.raises(UserError, match=words):
        write_predictions(tmp_path / name, rows_of(TEXTS), LOGITS)


@pytest.mark.parametrize("name", ["a.csv", "a.TSV", "a.jsonl"])
def test_what_can_be_written_passes(tmp_path: Path, name: str) -> None:
    check_predictions_file(tmp_path / name)
