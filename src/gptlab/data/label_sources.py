"""Sources of texts with labels: where they are, in which columns, and which of their records are none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Annotated, NamedTuple

from pydantic import Field, model_validator

from gptlab.data.places import PlaceSettings
from gptlab.data.record_sources import BadRows, RecordSource, check_table
from gptlab.data.tables import Record, class_names, read_hub_records, read_records, text_of
from gptlab.errors import DataError

Column = Annotated[str, Field(min_length=1)] | Annotated[int, Field(ge=1)]
Columns = Column | Annotated[tuple[Column, Column], Field(strict=False)]

TEXTS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "answer"),
    ("text1", "text2"),
    ("title", "description"),
    ("title", "content"),
    ("title", "text"),
    ("sentence",),
    ("text",),
    ("content",),
    ("review",),
    ("tweet",),
    ("message",),
    ("comment",),
    ("document",),
    ("question",),
)
"""The usual columns of a text, or of a pair, in capitals or not; the first that are there count. The first four and
`sentence` are all that GLUE's tasks have (Wang et al., 2019; the card of nyu-mll/glue)."""

LABELS = ("label", "labels", "class", "class index", "target", "category", "gold_label", "sentiment")
"""The usual columns of a label."""

SHOWN = 40
"""Of a column's name so many characters are shown: where a header is missing, it is a text."""


class LabelSourceSettings(PlaceSettings):
    """One `[[data.sources]]` of texts with labels."""

    header: bool = True
    """Whether the first line of a .csv or .tsv names its columns. Where none does, they are numbers from 1."""
    text: Columns | None = None
    """The column of the text, or the two of a pair (premise and hypothesis); without it one of the usual names."""
    label: Column | None = None
    limit_texts: int = Field(0, ge=0)
    """0: no limit."""

    @model_validator(mode="after")
    def _columns_by_name_or_number(self) -> LabelSourceSettings:
        if not self.header and self.hub is not None:
            raise ValueError("header = false is for .csv and .tsv; a data set on the hub names its columns")
        if not self.header and (self.text is None or self.label is None):
            raise ValueError("header = false: which columns are they? text = 4 and label = 2, counted from 1")
        for column in (*self.text_columns, *(() if self.label is None else (self.label,))):
            if self.header and isinstance(column, int):
                raise ValueError(f"column {column}: columns have names, and numbers only where header = false")
            if not self.header and isinstance(column, str):
                raise ValueError(f"column {column!r}: header = false leaves no names; count the columns from 1")
        return self

    @property
    def text_columns(self) -> Sequence[Column]:
        """The columns of the text; none where they are to be found."""
        if self.text is None:
            return ()
        return self.text if isinstance(self.text, tuple) else (self.text,)


class LabelledText(NamedTuple):
    """One or two texts, the label as it stands there, and the record (without its values) that they are from."""

    texts: tuple[str, ...]
    label: str
    record: Record


class LabelSource(RecordSource):
    """The texts with labels that some settings mean; bad records are those without a label.

    empty: records without a text
    """

    settings: LabelSourceSettings

    def __init__(self, settings: LabelSourceSettings) -> None:
        super().__init__(settings)
        self.empty = BadRows()

    def texts(self) -> Iterator[LabelledText]:
        """The texts with their labels, streaming. DataError where a file, record or column cannot be read, or a label
        is neither a name nor a whole number; records without label or text are counted and left out."""
        settings, given = self.settings, 0
        columns, label_column = self.columns
        self.empty = BadRows()
        for record in self._used(self._records([*columns, label_column])):
            label = _label_of(record, label_column)
            texts = tuple(text_of(record, column) or "" for column in columns)
            if label is None:
                self.bad.add("no label", self.place_of(record))
            elif not any(text.strip() for text in texts):
                self.empty.add("an empty text", self.place_of(record))
            else:
                if settings.hub is not None:
                    self.bytes_read += sum(len(text.encode()) for text in texts)
                yield LabelledText(texts, label, record._replace(values={}))
                given += 1
            if given == settings.limit_texts > 0:
                return

    def check(self, bad_rows: float) -> None:
        """DataError also where no record has a text."""
        super().check(bad_rows)
        if self.empty.total + self.bad.total == self.records:
            raise DataError(
                f"source {self.name!r} yields nothing: none of its {self.records:,} records has text in "
                f"{' and '.join(map(repr, self.columns[0]))}. Is that the right column?"
            )

    @cached_property
    def columns(self) -> tuple[tuple[str, ...], str]:
        """The columns of the text (one or two) and of the label: the settings', else those of the usual names that are
        there. DataError where there are none."""
        settings = self.settings
        texts: tuple[str, ...] = tuple(map(str, settings.text_columns))
        label: tuple[str, ...] = () if settings.label is None else (str(settings.label),)
        if texts and label:
            return texts, label[0]
        if settings.path is not None:
            check_table(self.files[0], "texts with labels")
        where, there = self._columns_there()
        texts = texts or _usual(TEXTS, there)
        label = label or _usual([(name,) for name in LABELS], there)
        if texts and label:
            return texts, label[0]
        wanted = " and ".join(key for key, found in (("text", texts), ("label", label)) if not found)
        columns = ", ".join(name[:SHOWN] for name in there) or "none"
        raise DataError(
            f'{where}: has the columns {columns}; none has a usual name. Name them: {wanted} = "…" (of a table whose '
            "first line is no header: header = false, and their numbers from 1)"
        )

    @cached_property
    def class_names(self) -> tuple[str, ...] | None:
        """What a data set on the hub says that the numbers of its labels mean, in their order; None where it does
        not."""
        return class_names(self.table, self.columns[1]) if self.settings.hub is not None else None

    def _records(self, columns: Sequence[str]) -> Iterator[Record]:
        if self.settings.hub is not None:
            yield from read_hub_records(self.table, columns)
            return
        for path, format, progress in self.files_in_turn():
            check_table(path, "texts with labels")
            yield from read_records(path, format, columns, progress, header=self.settings.header)


def _usual(names: Iterable[tuple[str, ...]], there: Sequence[str]) -> tuple[str, ...]:
    """The first of these that are all among the columns there, written as they are there; () where none are."""
    written = {name.lower(): name for name in reversed(there)}
    return next((tuple(written[name] for name in each) for each in names if written.keys() >= set(each)), ())


def _label_of(record: Record, column: str) -> str | None:
    """The label as text, None where there is none: null, nothing but space, not a number."""
    value = record.values[column]
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if not value.is_integer():
            raise DataError(
                f"{record.where}: the label {value} is a score; what is learned here are classes, by their names or "
                "whole numbers"
            )
        value = int(value)
    if isinstance(value, int):
        return str(value)
    if value is None or isinstance(value, str):
        return (text_of(record, column) or "").strip() or None
    raise DataError(
        f"{record.where}: column {column!r} holds {str(value)[:SHOWN]!r} ({type(value).__name__}), not one label"
    )
