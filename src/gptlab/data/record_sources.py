"""Sources whose records are rows of their own (dialogues, texts with labels): which of them are bad, and where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gptlab.data.places import Place, PlaceSettings, is_used
from gptlab.data.readers import PLAIN, TABLES, format_of
from gptlab.data.tables import Record, columns_of, read_hub_records
from gptlab.errors import DataError

BAD_ROWS = 0.01
"""The share of a source's records that may be bad, where a recipe does not say."""

ALL_BAD = 1000
"""Where the first so many records are all bad, the others are not looked at."""

PLACES_KEPT = 5
"""Of so many bad records of a cause it is said where they stand."""


def check_table(path: Path, what: str) -> None:
    """DataError for a file of plain text, from which `what` is not read."""
    if (format := format_of(path)) in PLAIN:
        raise DataError(f"{path}: {what} are not read from {format}; wanted {', '.join(TABLES)}")


@dataclass
class BadRows:
    """How many records of a source were left out, by cause, and where the first of them stand."""

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


class RecordSource(Place):
    """A place of records. Making one reads nothing.

    records: records used so far, good and bad
    bad:     those that are bad
    """

    def __init__(self, settings: PlaceSettings) -> None:
        super().__init__(settings)
        self.records, self.bad = 0, BadRows()

    @property
    def doubt(self) -> str:
        """What may be wrong where many records are bad."""
        return "Are the columns the right ones?"

    def check(self, bad_rows: float) -> None:
        """DataError where nothing came of what has been read, or more than this share of it is bad."""
        share = self.settings.share
        if not self.records:
            none = "it has no records" if share == 1 else f"share = {share} keeps none of its records"
            raise DataError(f"source {self.name!r} yields nothing: {none}. Mend it or take it out.")
        if self.bad.total > bad_rows * self.records:
            raise DataError(
                f"source {self.name!r}: {self.bad.total:,} of {self.records:,} rows are bad, {self.bad}; at most "
                f"{bad_rows:.3g} of them may be (data.bad_rows). {self.doubt}"
            )

    def place_of(self, record: Record) -> str:
        """Where in the source a record stands."""
        place = f"{record.unit} {record.number}"
        return place if self.settings.path is None or len(self.files) == 1 else f"{Path(record.file).name} {place}"

    def _used(self, records: Iterable[Record]) -> Iterator[Record]:
        """Those of the share that is used, counted anew."""
        self.bytes_read, self.records, self.bad = 0, 0, BadRows()
        for number, record in enumerate(records, start=1):
            if is_used(number, self.settings.share):
                self.records += 1
                yield record

    def _columns_there(self) -> tuple[str, list[str]]:
        """(where, columns) of the first file, or of the data set."""
        if self.settings.hub is not None:
            first = next(read_hub_records(self.table, []), None)
            return self.name, list(first.values) if first else []
        return str(self.files[0]), columns_of(self.files[0], format_of(self.files[0]) or "")
