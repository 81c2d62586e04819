"""Sources of preferences: where they are, in which form, and which of their records are none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import ClassVar, NamedTuple

from pydantic import Field, model_validator

from gptlab.data.conversations import BadRow
from gptlab.data.pairs import COLUMNS, SIDES, Pair, PairFormat, read_pair
from gptlab.data.places import PlaceSettings
from gptlab.data.python_questions import EMBEDDED_QUESTIONS, questions_of
from gptlab.data.record_sources import ALL_BAD, BadRows, RecordSource, check_table
from gptlab.data.tables import Record, read_hub_records, read_records
from gptlab.errors import DataError, nearest

EQUAL = "equal sides"


class PreferenceSourceSettings(PlaceSettings):
    """One `[[data.sources]]` of preferences."""

    PLACES: ClassVar[tuple[str, ...]] = ("path", "hub", "embedded")

    embedded: EMBEDDED_QUESTIONS | None = None
    """Questions about Python's standard library with a right and a wrong answer (python_questions.py)."""
    format: PairFormat | None = None
    """Without it the columns tell which it is: prompt where there is a prompt; else messages or hh, as the first record
    has lists or texts."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Where the columns have other names than prompt, chosen and rejected."""
    limit_pairs: int = Field(0, ge=0)
    """0: no limit."""

    @model_validator(mode="after")
    def _columns_of_the_format(self) -> PreferenceSourceSettings:
        known = list(COLUMNS[self.format or "prompt"])
        if other := next((key for key in self.columns if key not in known), None):
            whose = self.format or "a pair"
            raise ValueError(f"columns.{other}: {whose} has {', '.join(known)}{nearest(other, known)}")
        if self.embedded is not None and (self.format or self.columns):
            raise ValueError("format and columns belong to files and the hub; embedded questions are read as they are")
        return self


class FoundPair(NamedTuple):
    """A pair, and where in its source it stands."""

    pair: Pair
    place: str


class PreferenceSource(RecordSource):
    """The pairs that some settings mean; bad records are those that are none.

    equal: pairs whose sides are equal, which are left out
    """

    settings: PreferenceSourceSettings

    def __init__(self, settings: PreferenceSourceSettings) -> None:
        super().__init__(settings)
        self.equal = BadRows()

    def pairs(self) -> Iterator[FoundPair]:
        """The pairs, streaming. DataError where a file, record or column cannot be read; bad rows, and those that
        prefer nothing, are counted."""
        settings, given, columns = self.settings, 0, self._columns
        self.equal = BadRows()
        for record in self._used(self._records(list(columns.values()))):
            try:
                pair = read_pair(self.format, {key: record.values[column] for key, column in columns.items()})
            except BadRow as bad:
                self.bad.add(bad.cause, self.place_of(record))
                if self.bad.total == self.records == ALL_BAD:
                    return
                continue
            if pair.chosen == pair.rejected:
                self.equal.add(EQUAL, self.place_of(record))
                continue
            if settings.path is None:
                said = [*(message.content for message in pair.prompt), pair.chosen, pair.rejected]
                self.bytes_read += sum(len(text.encode()) for text in said)
            yield FoundPair(pair, self.place_of(record))
            given += 1
            if given == settings.limit_pairs:
                return

    def check(self, bad_rows: float) -> None:
        """DataError also where no pair prefers one side to the other."""
        super().check(bad_rows)
        if 0 < self.equal.total == self.records - self.bad.total:
            raise DataError(
                f"source {self.name!r} yields nothing: both sides are equal in all of its {self.equal.total:,} pairs. "
                f"{self.doubt}"
            )

    @property
    def doubt(self) -> str:
        return f"Is {self.format} their format, are the columns the right ones?"

    @cached_property
    def format(self) -> PairFormat:
        """The settings' format, else the one that the columns tell. DataError where they are those of none."""
        settings = self.settings
        if settings.format is not None:
            return settings.format
        if self.embedded is not None:
            return "prompt"
        if settings.path is not None:
            check_table(self.files[0], "preferences")
        where, there = self._columns_there()
        names = {key: settings.columns.get(key, key) for key in COLUMNS["prompt"]}
        sides = [names[side] for side in SIDES]
        if not set(sides) <= set(there):
            raise DataError(
                f"{where}: has the columns {', '.join(there) or 'none'}; wanted {' and '.join(sides)}, and prompt if "
                'there is one. Name those that are called otherwise: columns = {chosen = "…", rejected = "…"}'
            )
        if names["prompt"] in there or "prompt" in settings.columns:
            return "prompt"
        first = next(self._records(sides), None)
        return "messages" if first is not None and isinstance(first.values[sides[0]], list) else "hh"

    @property
    def _columns(self) -> dict[str, str]:
        return {key: self.settings.columns.get(key, key) for key in COLUMNS[self.format]}

    def _records(self, columns: Sequence[str]) -> Iterator[Record]:
        settings = self.settings
        if settings.embedded is not None:
            for number, each in enumerate(questions_of(settings.embedded), start=1):
                values = {"prompt": each.question, "chosen": each.right, "rejected": each.wrong}
                yield Record(values, settings.embedded, "question", number)
        elif settings.hub is not None:
            yield from read_hub_records(self.table, columns)
        else:
            for path, format, progress in self.files_in_turn():
                check_table(path, "preferences")
                yield from read_records(path, format, columns, progress)
