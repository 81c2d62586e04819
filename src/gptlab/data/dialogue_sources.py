"""Sources of dialogues: where they are, in which form, and which of their records are none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from gptlab.data.conversations import COLUMNS, OPTIONAL, BadRow, Format, read_messages
from gptlab.data.places import Place, PlaceSettings, is_used
from gptlab.data.readers import PLAIN, TABLES, format_of, read_lines
from gptlab.data.tables import Record, columns_of, read_hub_records, read_records
from gptlab.errors import DataError, nearest
from gptlab.text.dialogue import Message

PLACES_KEPT = 5
"""Of so many bad records of a cause it is said where they stand."""

ALL_BAD = 1000
"""Where the first so many records are all bad, the others are not looked at."""

Columns = str | Annotated[tuple[str, ...], Field(strict=False, min_length=2)]


class DialogueSourceSettings(PlaceSettings):
    """One `[[data.sources]]` of dialogues."""

    format: Format | None = None
    """Without it the columns tell which it is (their names, or those that `columns` gives); a file of text is
    DailyDialog's."""
    columns: dict[str, Columns] = Field(default_factory=dict)
    """Where a table's columns have other names than the format's usual ones (conversations.COLUMNS). Of `turns` several
    may be named, in the order in which they were said; the last is the answer."""
    limit_dialogues: int = Field(0, ge=0)
    """0: no limit."""

    @model_validator(mode="after")
    def _columns_of_the_format(self) -> DialogueSourceSettings:
        known = list(COLUMNS[self.format]) if self.format else [key for columns in COLUMNS.values() for key in columns]
        for key, column in self.columns.items():
            if key not in known:
                there = ", ".join(known) or "none: it is read from lines of text"
                raise ValueError(f"columns.{key}: {self.format or 'a format'} has {there}{nearest(key, known)}")
            if key != "turns" and not isinstance(column, str):
                raise ValueError(f"columns.{key}: wanted one column; only turns may stand in several")
        if self.format == "dailydialog" and self.hub is not None:
            raise ValueError('format = "dailydialog" is text files; a data set on the hub has lists: format = "turns"')
        return self


@dataclass
class BadRows:
    """How many records of a source were no dialogues, by cause, and where the first of them stand."""

    counts: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def add(self, cause: str, place: str) -> None:
        self.counts[cause] = self.counts.get(cause, 0) + 1
        if self.counts[cause] <= PLACES_KEPT:
            self.places.setdefault(cause, []).append(place)

    def __str__(self) -> str:
        return "; ".join(
            f"{cause}: {count:,} ({', '.join(self.places[cause])}{', …' if count > PLACES_KEPT else ''})"
            for cause, count in self.counts.items()
        )


class DialogueSource(Place):
    """The dialogues that some settings mean. Making one reads nothing.

    records: records used so far by dialogues(), good and bad
    bad:     those that are no dialogues
    """

    settings: DialogueSourceSettings

    def __init__(self, settings: DialogueSourceSettings) -> None:
        super().__init__(settings)
        self.records, self.bad = 0, BadRows()

    def dialogues(self) -> Iterator[list[Message]]:
        """The dialogues, streaming. DataError where a file, record or column cannot be read; bad rows are counted."""
        settings = self.settings
        self.bytes_read, self.records, self.bad = 0, 0, BadRows()
        given = 0
        for number, record in enumerate(self._records(), start=1):
            if not is_used(number, settings.share):
                continue
            self.records += 1
            try:
                messages = read_messages(self.format, self._values(record))
            except BadRow as bad:
                self.bad.add(bad.cause, self._place_of(record))
                if self.bad.total == self.records == ALL_BAD:
                    return
                continue
            if settings.hub is not None:
                self.bytes_read += sum(len(message.content.encode()) for message in messages)
            yield messages
            given += 1
            if given == settings.limit_dialogues:
                return

    def check(self, bad_rows: float) -> None:
        """DataError where nothing came of what has been read, or more than this share of it is bad."""
        settings = self.settings
        if not self.records:
            none = "it has no records" if settings.share == 1 else f"share = {settings.share} keeps none of its records"
            raise DataError(f"source {self.name!r} yields nothing: {none}. Mend it or take it out.")
        if self.bad.total > bad_rows * self.records:
            raise DataError(
                f"source {self.name!r}: {self.bad.total:,} of {self.records:,} rows are bad, {self.bad}; at most "
                f"{bad_rows:.3g} of them may be (data.bad_rows). Is {self.format} their format, are the columns "
                "the right ones?"
            )

    @cached_property
    def format(self) -> Format:
        """The settings' format, else the first whose columns the source has. DataError where it has those of none."""
        if self.settings.format is not None:
            return self.settings.format
        if named := next((each for each, keys in COLUMNS.items() if self.settings.columns.keys() & keys), None):
            return named
        where = self.name
        if self.settings.hub is not None:
            first = next(read_hub_records(self.table, []), None)
            there = list(first.values) if first else []
        else:
            where, format = str(self.files[0]), format_of(self.files[0]) or ""
            if format in PLAIN:
                return "dailydialog"
            there = columns_of(self.files[0], format)
        for each, columns in COLUMNS.items():
            if columns and {column for key, column in columns.items() if key not in OPTIONAL} <= set(there):
                return each
        known = "; ".join(f"{each}: {', '.join(columns.values())}" for each, columns in COLUMNS.items() if columns)
        raise DataError(
            f"{where}: has the columns {', '.join(there) or 'none'}, which are of no format of dialogues ({known}). "
            "Name the format, and its columns where they are called otherwise: format, columns"
        )

    @cached_property
    def _columns(self) -> dict[str, Columns]:
        return {**COLUMNS[self.format], **self.settings.columns}

    def _values(self, record: Record) -> dict[str, Any]:
        """The record's values by the format's own names."""
        if self.format == "dailydialog":
            return record.values
        return {
            key: record.values.get(column) if isinstance(column, str) else tuple(record.values[each] for each in column)
            for key, column in self._columns.items()
        }

    def _records(self) -> Iterator[Record]:
        settings = self.settings
        needed, optional = self._column_names(required=True), self._column_names(required=False)
        if settings.hub is not None:
            yield from read_hub_records(self.table, needed)
            return
        before = 0

        def progress(position: int) -> None:
            self.bytes_read = before + position

        for path in self.files:
            format = format_of(path) or ""
            if (format in PLAIN) != (self.format == "dailydialog"):
                wanted = ", ".join(PLAIN if self.format == "dailydialog" else TABLES)
                raise DataError(f"{path}: {self.format} is not read from {format}; wanted {wanted}")
            if format in PLAIN:
                lines = read_lines(path, progress)
                yield from (Record({"line": line}, str(path), "line", number) for number, line in lines)
            else:
                yield from read_records(path, format, needed, progress, optional)
            before += path.stat().st_size

    def _column_names(self, *, required: bool) -> list[str]:
        names: list[str] = []
        for key, column in self._columns.items():
            if (key not in OPTIONAL or key in self.settings.columns) == required:
                names += [column] if isinstance(column, str) else column
        return names

    def _place_of(self, record: Record) -> str:
        place = f"{record.unit} {record.number}"
        return place if self.settings.path is None or len(self.files) == 1 else f"{Path(record.file).name} {place}"
