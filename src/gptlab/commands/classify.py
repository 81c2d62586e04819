"""`gptlab classify`: the class of each text, with probabilities; as a table that grows, or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from gptlab.errors import UserError
from gptlab.words import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from gptlab.device import PrecisionName
    from gptlab.evaluation.classify import Classification, Text

CHUNK = 256
"""Texts that are read and classified before their lines are printed."""

SHOWN_CLASSES = 4
"""Up to so many classes each has a column of its own."""


def classify(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a run under --runs, or a name on the hub.")],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help='Texts. "-": one a line from stdin.')
    ] = None,
    file: Annotated[
        str | None, typer.Option(metavar="FILE", help="A text file, one a line, or a table: .csv .tsv .jsonl .parquet.")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help='Of a table; by default "text". Twice for pairs of texts.')
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")] = False,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="best|last|STEP", help="Of a run; best if there is.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "float32",
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where runs are.")] = Path("runs"),
) -> None:
    """The most probable class of each text, and how probable each class is."""
    given = _given(texts or [], file, column or ["text"])
    from rich.console import Console

    from gptlab.evaluation.classify import classify as classify_texts
    from gptlab.run.open import open_model, parse_checkpoint

    which = parse_checkpoint(checkpoint)  # before anything is loaded
    out, err = Console(highlight=False, markup=False), Console(stderr=True, highlight=False, markup=False)
    with err.status(f"opening {model}"):
        opened = open_model(model, device=device, runs=runs, checkpoint=which, task="classification")
    table = _Table(opened.labels or (), out)
    found: list[Classification] = []
    cut = read = 0
    with nullcontext() if out.is_terminal and not as_json else err.status("classifying") as status:
        while chunk := list(islice(given, CHUNK)):
            classified = classify_texts(opened, chunk, precision=cast("PrecisionName", precision))
            cut += sum(each.cut for each in classified)
            read += len(chunk)
            if as_json:
                found += classified
            else:
                table.add(classified)
            if status:
                status.update(f"classifying: {read:,} texts")
    if not read:
        raise UserError(f"{file or 'standard input'}: there is no text in it")
    if as_json:
        print(json.dumps({"classifications": [_record(each) for each in found]}))
    if cut:
        texts_cut = "1 text was" if cut == 1 else f"{cut:,} texts were"
        note = f"{texts_cut} longer than the model's {opened.model.shape.context:,} tokens and lost the end"
        print(f"gptlab: {note}", file=sys.stderr)


def _given(texts: list[str], file: str | None, columns: list[str]) -> Iterator[Text]:
    """The texts that were asked for; UserError at once where there are none, or no such file."""
    if texts and file:
        raise UserError(f"{texts[0]!r} and --file {file}: name texts or a file, not both")
    if not texts and not file:
        raise UserError('nothing to classify: name texts, or --file FILE, or "-", which reads standard input')
    if len(columns) > 2:
        raise UserError(f"--column {' --column '.join(columns)}: a text is in one column, a pair of texts in two")
    if file is None or file == "-":
        return _of_words(texts or ["-"])
    from gptlab.data.places import find_files

    return _of_files(find_files(file), columns)


def _of_words(texts: list[str]) -> Iterator[str]:
    for text in texts:
        if text == "-":
            for line in sys.stdin.buffer:
                decoded = line.decode("utf-8-sig", errors="surrogateescape").rstrip("\r\n")
                if decoded.strip():
                    yield _checked(decoded)
        else:
            yield _checked(text)


def _checked(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # Python keeps bytes that are no UTF-8 as halves of surrogate pairs
        raise UserError(f"the text {text!r} is not UTF-8 text") from None
    return text


def _of_files(files: Sequence[Path], columns: list[str]) -> Iterator[Text]:
    from gptlab.data.readers import PLAIN, format_of, read_lines
    from gptlab.data.tables import read_records, text_of

    for file in files:
        format = format_of(file) or ""
        if format in PLAIN:
            yield from (line for _, line in read_lines(file, lambda position: None))
            continue
        for record in read_records(file, format, columns, lambda position: None):
            parts = [text_of(record, column) or "" for column in columns]
            if not any(part.strip() for part in parts):
                raise UserError(f"{record.where}: the text is empty, so it has no class: leave it out, or fill it")
            yield parts[0] if len(parts) == 1 else cast("Text", tuple(parts))


class _Table:
    """Prints a line a text: its label, the probabilities, and the text on one line."""

    def __init__(self, labels: Sequence[str], out: Console) -> None:
        self.out = out
        self.classes = labels if len(labels) <= SHOWN_CLASSES else ()
        self.heads = ["label", *map(_one_line, self.classes or ["probability"])]
        widest = max(map(len, ["label", *map(_one_line, labels)]))
        self.widths = [widest, *(max(5, len(head)) for head in self.heads[1:])]
        self.begun = False

    def add(self, classified: Sequence[Classification]) -> None:
        if not self.begun:
            self._print([*self.heads, "text"])
            self.begun = True
        for each in classified:
            probabilities = (each.probabilities[label] for label in self.classes or [each.label])
            text = each.text if isinstance(each.text, str) else " | ".join(each.text)
            self._print([_one_line(each.label), *(f"{p:.3f}" for p in probabilities), _one_line(text)])

    def _print(self, cells: list[str]) -> None:
        label, *numbers, text = cells
        numbers = [number.rjust(width) for number, width in zip(numbers, self.widths[1:], strict=True)]
        line = "  ".join([label.ljust(self.widths[0]), *numbers, text])
        if not self.out.is_terminal:
            print(line, flush=True)
            return
        from rich.text import Text

        self.out.print(Text(printable(line)), no_wrap=True, overflow="ellipsis")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _record(classification: Classification) -> dict[str, Any]:
    return {name: getattr(classification, name) for name in ("text", "label", "probabilities")}
