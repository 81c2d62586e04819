"""Sources of records → the rows of each split, on disk: what dialogues and preferences have in common.

Validation and test are read first, so that training can be compared with them.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Protocol, TypeVar

from gptlab.data.digests import digest
from gptlab.data.divided import Part
from gptlab.data.places import bytes_total
from gptlab.data.reading import PrepareProgress
from gptlab.data.record_sources import RecordSource
from gptlab.data.row_file import Header, RowFileWriter
from gptlab.data.splitting import HEAD_DOCUMENTS, Shares, Split
from gptlab.errors import DataError
from gptlab.text.dialogue import Message, Template
from gptlab.text.tokenizer import Tokenizer

REPORT_SECONDS = 0.25
COUNT_SECONDS = 10.0
"""How long overlapping records are counted on after the first, for the error's message."""
SHOWN = 60
"""So many characters of a record are shown where something is said of it."""


class Tally(Protocol):
    """What a source gave to a split, while it is counted."""

    duplicates: int
    overlapping: int


S = TypeVar("S", bound=RecordSource)
R = TypeVar("R")
T = TypeVar("T", bound=Tally)
C = TypeVar("C")


class Known(NamedTuple):
    """What a record is known by.

    side:  decides the side of a share: records that have the same are never divided
    key:   a training record must have none that is held out
    whole: of two training records that have the same the second is a duplicate
    """

    side: bytes
    key: bytes
    whole: bytes


class Item(NamedTuple, Generic[S, R]):
    """A record, where it comes from, where it goes, and what it is known by."""

    part: Part[S]
    split: Split
    record: R
    known: Known


@dataclass(kw_only=True)
class RowPreparation(ABC, Generic[S, R, T, C]):
    """Reads all parts and writes the rows of `splits`. `run` is called once; `table` and `finish` follow.

    S is the kind of source, R what it has, T counts what came of it, and C tells that in the table.

    context:  positions or tokens a row may have, as the rows count; None where they are joined, so that none is cut
    shares:   what is held out of the training parts; bad_rows: the share of a source that may be bad
    overlap:  what happens to a training record that also stands in validation or test
    """

    kind: ClassVar[str]
    """What the records are, in the plural."""
    overlap_words: ClassVar[str]
    """What is said of those of training that also stand in validation or test, after their number."""

    parts: Sequence[Part[S]]
    splits: Sequence[Split]
    template: Template
    tokenizer: Tokenizer
    context: int | None
    shares: Shares
    bad_rows: float
    overlap: Literal["error", "drop"]
    on_progress: Callable[[PrepareProgress], None] | None = None

    def __post_init__(self) -> None:
        self._tallies: dict[tuple[str, Split, Split], T] = {}
        self._gave: set[tuple[str, Split, Split]] = set()
        self._held: set[bytes] = set()
        self._seen: set[bytes] = set()
        self._writers: dict[Split, RowFileWriter] = {}
        self._now, self._records_written, self._reported_at = self.parts[0], 0, 0.0

    # ---- what a kind of records decides

    @abstractmethod
    def choices(self) -> list[Any]:
        """What the rows depend on beside the fields here, as JSON has it."""

    @abstractmethod
    def records(self, source: S) -> Iterator[R]:
        """The records of a source, streaming."""

    @abstractmethod
    def known(self, record: R) -> Known: ...

    @abstractmethod
    def beginning(self, record: R) -> str:
        """The text that a record begins with."""

    @abstractmethod
    def new_tally(self) -> T: ...

    @abstractmethod
    def counts(self, tally: T, part: Part[S], split: Split, source: S | None) -> C:
        """A row of the table. `source`: the part's, where what was wrong with it is counted with this split."""

    @abstractmethod
    def write(self, item: Item[S, R], tally: T, writer: RowFileWriter) -> bool:
        """Writes the rows of a record and counts them; whether it has any. DataError where the template refuses it."""

    # ---- what all have in common

    def identity(self) -> list[Any]:
        """All that the rows depend on, as JSON has it."""
        parts = [[part.name, part.split, part.source.fingerprint()] for part in self.parts]
        return [
            parts, self.splits, asdict(self.shares), self.bad_rows, self.overlap, *self.choices(), self.context,
            self.template.source, self.template.eos, self.tokenizer.fingerprint,
        ]  # fmt: skip

    def run(self, folder: Path) -> None:
        """Writes all rows into `folder`. DataError where a source cannot be read or too much of it is bad, the template
        refuses a record, or training overlaps what is held out."""
        for split in self.splits:
            self._writers[split] = RowFileWriter(folder, split, self.tokenizer.vocab_size, self.tokenizer.eos_id)
        items = self._items()
        for item in items:
            tally = self._tallies.setdefault(_place(item.part, item.split), self.new_tally())
            if item.split != "train":
                self._held.add(item.known.key)
            elif item.known.key in self._held:
                if self.overlap == "error":
                    raise self._overlap(item, items)
                tally.overlapping += 1
                continue
            elif item.known.whole in self._seen:
                tally.duplicates += 1
                continue
            else:
                self._seen.add(item.known.whole)
            with self._named(item):
                if self.write(item, tally, self._writers[item.split]):
                    self._gave.add(_place(item.part, item.split))
                    self._records_written += 1

    def finish(self) -> dict[Split, Header]:
        """Ends the files; what is to be said of each."""
        return {
            split: writer.finish(part.name for part in self.parts if _place(part, split) in self._gave)
            for split, writer in self._writers.items()
        }

    def close(self) -> None:
        """Closes the files, whether they are whole or not."""
        for writer in self._writers.values():
            writer.close()

    def table(self) -> list[C]:
        """What each source gave to its split, and to others where it is divided."""
        table = []
        for part in self.parts:
            for split in self.splits:
                own, tally = split == part.split, self._tallies.get(_place(part, split))
                if own or tally is not None:
                    table.append(self.counts(tally or self.new_tally(), part, split, part.source if own else None))
        return table

    def report(self) -> None:
        """Calls `on_progress`, if there is one."""
        self._reported_at = time.monotonic()
        if self.on_progress is None:
            return
        read = sum(part.source.bytes_read for part in self.parts)
        tokens = sum(writer.tokens for writer in self._writers.values())
        self.on_progress(PrepareProgress(self._now.name, read, self._bytes_total, self._records_written, tokens))

    def _items(self) -> Iterator[Item[S, R]]:
        """Every record of every part, in an order that never changes."""
        sent = self._sent()
        for part in sorted(self.parts, key=lambda part: part.split == "train"):
            self._now = part
            for record in self.records(part.source):
                known = self.known(record)
                split = part.split if part.split != "train" else sent.get(known.side) or self.shares.side(known.side)
                yield Item(part, split, record, known)
                if time.monotonic() - self._reported_at > REPORT_SECONDS:
                    self.report()
            part.source.check(self.bad_rows)
        self.report()

    def _sent(self) -> Mapping[bytes, Split]:
        """Records that go where the hash would not send them: of the first of each training source one to each split
        that is a share of it, where the hash sends none, so that a small source is not left without validation."""
        sent: dict[bytes, Split] = {}
        for part in self.parts if self.shares.held else ():
            if part.split != "train":
                continue
            looked_at = type(part.source)(part.source.settings)  # which leaves the part's own counts as they are
            keys = {self.known(record).side for record in islice(self.records(looked_at), HEAD_DOCUMENTS)}
            for split in self.shares.held:
                sides = {key: sent.get(key) or self.shares.side(key) for key in keys}
                training = sorted(key for key, side in sides.items() if side == "train")
                if split not in sides.values() and len(training) > 1:
                    sent[training[0]] = split
        return sent

    @contextmanager
    def _named(self, item: Item[S, R]) -> Iterator[None]:
        """What a template says against a record, with the record's name."""
        try:
            yield
        except DataError as error:
            begins = self.beginning(item.record).strip()[:SHOWN]
            one = self.kind.removesuffix("s")
            raise DataError(f"the source {item.part.name!r}: a {one} that begins {begins!r}: {error}") from error

    def _overlap(self, first: Item[S, R], rest: Iterator[Item[S, R]]) -> DataError:
        deadline, count, whole = time.monotonic() + COUNT_SECONDS, 1, True
        for each in rest:
            count += each.split == "train" and each.known.key in self._held
            if time.monotonic() > deadline:
                whole = False
                break
        return DataError(
            f"{'' if whole else 'at least '}{count:,} training {self.overlap_words} in validation or test; one, of the "
            f"source {first.part.name!r}, starts {self.beginning(first.record).strip()[:SHOWN]!r}. What is scored must "
            'not have been trained on: set data.overlap = "drop" to drop them from training.'
        )

    @cached_property
    def _bytes_total(self) -> int | None:
        return bytes_total(part.source for part in self.parts)


def digest_of(messages: Sequence[Message], seed: int) -> bytes:
    """What a dialogue is known by, whichever form it was published in."""
    return digest("\x1e".join(f"{message.role}\x1f{message.content}" for message in messages).encode(), seed)


def _place(part: Part[S], split: Split) -> tuple[str, Split, Split]:
    return part.name, part.split, split
