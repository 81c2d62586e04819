"""All the sources of a corpus as one stream of pieces, and how far it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from gptlab.data.places import bytes_total, distinct_names
from gptlab.data.sources import Source, SourceSettings
from gptlab.data.splitting import Divider, Piece, Shares, Split, make_piece


@dataclass(frozen=True)
class PrepareProgress:
    """How far preparing is: what is read (raw bytes, as they are stored) and what has been written."""

    source: str
    bytes_read: int
    bytes_total: int | None
    documents: int
    tokens: int


@dataclass(frozen=True)
class Part:
    """A source under a name that no other of its split has. A training source may be divided over the splits."""

    name: str
    source: Source
    split: Split


def make_parts(settings: Sequence[SourceSettings], split: Split) -> list[Part]:
    """The sources of one split; those that derive the same name from their paths are numbered: books, books-2, …"""
    sources = [Source(each) for each in settings]
    return [Part(name, source, split) for name, source in zip(distinct_names(sources), sources, strict=True)]


class Reading:
    """The stream of all parts: validation and test first, so that training can be compared with them."""

    def __init__(self, parts: Sequence[Part], shares: Shares, on_progress: Callable[[PrepareProgress], None]) -> None:
        self.parts, self.shares, self.on_progress = parts, shares, on_progress
        self._now = parts[0]

    @cached_property
    def divider(self) -> Divider:
        """Divides the training parts; made at first use, since it reads the start of each."""
        looks = [Source(part.source.settings) for part in self.parts if part.split == "train"]
        return Divider([source.documents for source in looks], self.shares)  # which leave bytes_read as they are

    def pieces(self) -> Iterator[Piece]:
        """Every piece of every part, in an order that never changes."""
        for number, part in sorted(enumerate(self.parts), key=lambda each: each[1].split == "train"):
            self._now = part
            for text in part.source.documents():
                if part.split == "train":
                    yield from self.divider.divide(number, text)
                else:
                    yield make_piece(number, part.split, text, self.shares.seed)

    def report(self, documents: int, tokens: int) -> None:
        """Calls `on_progress`."""
        progress = PrepareProgress(self._now.name, self._bytes_read(), self._bytes_total, documents, tokens)
        self.on_progress(progress)

    def share_read(self) -> float | None:
        """The share of the raw bytes that has been read, where their number is known."""
        return self._bytes_read() / self._bytes_total if self._bytes_total else None

    def _bytes_read(self) -> int:
        return sum(part.source.bytes_read for part in self.parts)

    @cached_property
    def _bytes_total(self) -> int | None:
        return bytes_total(part.source for part in self.parts)
