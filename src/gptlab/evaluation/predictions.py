"""A classifier's predictions as a file that a spreadsheet or pandas opens."""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.data.label_rows import LabelRows
from gptlab.errors import UserError
from gptlab.run.files import write_text

FORMATS = (".csv", ".tsv", ".jsonl")


def check_predictions_file(file: Path) -> None:
    """UserError, before hours are spent, where `file` can hold no predictions: another ending than .csv, .tsv and
    .jsonl, no such folder, or one in which nothing can be written."""
    if file.suffix.lower() not in FORMATS:
        raise UserError(f"{file}: predictions are written as {', '.join(FORMATS)}; name such a file")
    if file.is_dir():
        raise UserError(f"{file}: is a folder; name a file in it")
    if not file.parent.is_dir():
        raise UserError(f"{file}: there is no folder {file.parent}; make it, or name another")
    try:
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        words = f"nothing can be written in {file.parent}: {error.strerror}"
        raise UserError(f"{file}: {words}; name a file in another folder") from error


def probabilities(logits: np.ndarray) -> np.ndarray:
    """The softmax of `logits` (n, classes), in float64."""
    from scipy.special import softmax

    return softmax(logits.astype(np.float64), axis=1)


def write_predictions(file: Path, rows: LabelRows, logits: np.ndarray) -> None:
    """Writes what `logits` (n, classes) say of the rows, a record each in their order; replaces `file` at one stroke.

    text (of pairs text_1, text_2), label, predicted: the texts, the true class's label and the most probable one
    right: true or false
    probability_LABEL: of each class, six digits; in JSON lines "probabilities": {LABEL: …}

    A .tsv has no quoting (IANA, text/tab-separated-values), so its tabs and line ends become spaces.

    UserError as `check_predictions_file`; CheckpointError where the disk does not take it.
    """
    check_predictions_file(file)
    format = file.suffix.lower()
    records = _records(rows, logits)
    if format == ".jsonl":
        text = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
    else:
        text = _table([_flat(record) for record in records], tabs=format == ".tsv")
    write_text(file, text)


def _records(rows: LabelRows, logits: np.ndarray) -> Iterator[dict[str, Any]]:
    found = probabilities(logits)
    for texts, true, probs in zip(rows.texts, rows.classes, found, strict=True):
        names = ["text"] if len(texts) == 1 else [f"text_{number}" for number in range(1, len(texts) + 1)]
        predicted = int(probs.argmax())
        yield {
            **dict(zip(names, texts, strict=True)),
            "label": rows.labels[true],
            "predicted": rows.labels[predicted],
            "right": bool(predicted == true),
            "probabilities": {label: float(f"{p:.6g}") for label, p in zip(rows.labels, probs, strict=True)},
        }


def _flat(record: dict[str, Any]) -> dict[str, str]:
    """A record as the cells of a table."""
    *cells, (_, probs) = record.items()
    flat = {name: str(value).lower() if name == "right" else str(value) for name, value in cells}
    return flat | {f"probability_{label}": str(p) for label, p in probs.items()}


def _table(records: list[dict[str, str]], *, tabs: bool) -> str:
    lines = [list(records[0]), *(list(record.values()) for record in records)]
    if tabs:
        return "".join("\t".join(re.sub(r"[\t\r\n]+", " ", cell) for cell in line) + "\n" for line in lines)
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()
