"""Sources of dialogues: where they are, in which form, and which of their records are none."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from gptlab.data.conversations import COLUMNS, OPTIONAL, BadRow, Format, read_messages
from gptlab.data.places import PlaceSettings
from gptlab.data.python_questions import EMBEDDED_QUESTIONS, questions_of
from gptlab.data.readers import PLAIN, TABLES, format_of, read_lines
from gptlab.data.record_sources import ALL_BAD, RecordSource
from gptlab.data.tables import Record, read_hub_records, read_records
from gptlab.errors import DataError, nearest
from gptlab.text.dialogue import Message

Columns = str | Annotated[tuple[str, ...], Field(strict=False, min_length=2)]


class DialogueSourceSettings(PlaceSettings):
    """One `[[data.sources]]` of dialogues."""

    PLACES: ClassVar[tuple[str, ...]] = ("path", "hub", "embedded")

    embedded: EMBEDDED_QUESTIONS | None = None
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
        if self.embedded is not None and (self.format or self.columns):
            raise ValueError("format and columns belong to files and the hub; embedded questions are read as they are")
        if self.format == "dailydialog" and self.hub is not None:
            raise ValueError('format = "dailydialog" is text files; a data set on the hub has lists: format = "turns"')
        return self


class DialogueSource(RecordSource):
    """The dialogues that some settings mean; bad records are those that are none."""

    settings: DialogueSourceSettings

    def dialogues(self) -> Iterator[list[Message]]:
        """The dialogues, streaming. DataError where a file, record or column cannot be read; bad rows are counted."""
        settings, given = self.settings, 0
        for record in self._used(self._records()):
            try:
                messages = read_messages(self.format, self._values(record))
            except BadRow as bad:
                self.bad.add(bad.cause, self.place_of(record))
                if self.bad.total == self.records == ALL_BAD:
                    return
                continue
            if settings.path is None:
                self.bytes_read += sum(len(message.content.encode()) for message in messages)
            yield messages
            given += 1
            if given == settings.limit_dialogues:
                return

    @property
    def doubt(self) -> str:
        return f"Is {self.format} their format, are the columns the right ones?"

    @cached_property
    def format(self) -> Format:
        """The settings' format, else the first whose columns the source has. DataError where it has those of none."""
        if self.settings.format is not None:
            return self.settings.format
        if self.embedded is not None:
            return "prompt-response"
        if named := next((each for each, keys in COLUMNS.items() if self.settings.columns.keys() & keys), None):
            return named
        if self.settings.path is not None and format_of(self.files[0]) in PLAIN:
            return "dailydialog"
        where, there = self._columns_there()
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
        if settings.embedded is not None:
            for number, each in enumerate(questions_of(settings.embedded), start=1):
                yield Record({"prompt": each.question, "response": each.right}, settings.embedded, "question", number)
            return
        for path, format, progress in self.files_in_turn():
            if (format in PLAIN) != (self.format == "dailydialog"):
                wanted = ", ".join(PLAIN if self.format == "dailydialog" else TABLES)
                raise DataError(f"{path}: {self.format} is not read from {format}; wanted {wanted}")
            if format in PLAIN:
                lines = read_lines(path, progress)
                yield from (Record({"line": line}, str(path), "line", number) for number, line in lines)
            else:
                yield from read_records(path, format, needed, progress, optional)

    def _column_names(self, *, required: bool) -> list[str]:
        names: list[str] = []
        for key, column in self._columns.items():
            if (key not in OPTIONAL or key in self.settings.columns) == required:
                names += [column] if isinstance(column, str) else column
        return names
