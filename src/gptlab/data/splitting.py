"""Which split a document goes to where validation or test is a share of the training sources.

By document: a keyed hash of its text decides, so that equal documents always fall on the same side. A source of
fewer than 20 documents (one book) is divided inside each document instead, by its tail:

    | train …                               | test | validation |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Literal, NamedTuple

from gptlab.data.digests import digest

Split = Literal["train", "validation", "test"]
DividedBy = Literal["whole", "document", "tail"]
"""A source is not divided over the splits, or by its documents, or inside each document."""
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
HEAD_DOCUMENTS = 20
"""A source with fewer documents is divided by its documents' tails."""


class Piece(NamedTuple):
    """A document, or a part of one: the number of its source, the split it goes to, UTF-8 bytes, and digest."""

    source: int
    split: Split
    text: str
    size: int
    digest: bytes


def make_piece(source: int, split: Split, text: str, seed: int) -> Piece:
    data = text.encode()
    return Piece(source, split, text, len(data), digest(data, seed))


@dataclass(frozen=True)
class Shares:
    """What part of the training sources is held out for validation and for test, and the key that decides it."""

    validation: float = 0.0
    test: float = 0.0
    seed: int = 0

    @cached_property
    def held(self) -> dict[Split, float]:
        """The splits that are taken from the training sources, with their shares."""
        held: dict[Split, float] = {"test": self.test, "validation": self.validation}
        return {split: share for split, share in held.items() if share}

    def side(self, document_digest: bytes) -> Split:
        """The split that a digest falls to: [0, test) test, [test, test + validation) validation, else train."""
        place = _place(document_digest)
        for split, share in self.held.items():
            if place < share:
                return split
            place -= share
        return "train"


def send_nearest(digests: Sequence[bytes], shares: Shares, sent: dict[bytes, Split]) -> None:
    """Adds the nearest of these digests to `sent` for each held-out split to which the hash gives none of them."""
    for split in shares.held:
        sides = {each: sent.get(each, shares.side(each)) for each in digests}
        training = [each for each, side in sides.items() if side == "train"]
        if split not in sides.values() and training:
            sent[min(training, key=_place)] = split


class Divider:
    """Divides training sources, after a look at the first documents of each.

    Each source gives each held-out split at least one of its first 20 documents, so that a small corpus is not
    left without validation by bad luck: where the hash gives none, the nearest one goes. `held` are the digests of
    all pieces of sources divided by tail that are held out: what training must not contain.
    """

    def __init__(self, sources: Iterable[Callable[[], Iterator[str]]], shares: Shares) -> None:
        self.shares = shares
        self.held: list[bytes] = []
        self._by_tail: list[bool] = []
        self._sent: dict[bytes, Split] = {}
        for documents in sources:
            self._look_at(documents)

    def divided_by(self, source: int) -> DividedBy:
        """How this source is divided."""
        if not self.shares.held:
            return "whole"
        return "tail" if self._by_tail[source] else "document"

    def divide(self, source: int, text: str) -> Iterable[Piece]:
        """The pieces of a document of this source."""
        if self._by_tail[source]:
            return self._cut(source, text)
        piece = make_piece(source, "train", text, self.shares.seed)
        split = self._sent.get(piece.digest) or self.shares.side(piece.digest)
        return (piece if split == "train" else piece._replace(split=split),)

    def _look_at(self, documents: Callable[[], Iterator[str]]) -> None:
        source = len(self._by_tail)
        if not self.shares.held:
            self._by_tail.append(False)
            return
        digests: list[bytes] = []
        held: list[bytes] = []
        for text in islice(documents(), HEAD_DOCUMENTS):  # read again later: twenty books need not fit into memory
            digests.append(make_piece(source, "train", text, self.shares.seed).digest)
            held += [piece.digest for piece in self._cut(source, text) if piece.split != "train"]
        self._by_tail.append(len(digests) < HEAD_DOCUMENTS)
        if self._by_tail[-1]:
            self.held += held
        else:
            send_nearest(digests, self.shares, self._sent)

    def _cut(self, source: int, text: str) -> Iterator[Piece]:
        end = len(text)
        parts: list[tuple[Split, str]] = []
        for split, share in reversed(self.shares.held.items()):
            start = _boundary(text, end, round(share * len(text)))
            parts.append((split, text[start:end]))
            end = start
        parts.append(("train", text[:end]))
        for split, part in reversed(parts):
            if part and not part.isspace():
                yield make_piece(source, split, part, self.shares.seed)


def _place(document_digest: bytes) -> float:
    """Where in [0, 1) a digest falls."""
    return int.from_bytes(document_digest[:8], "little") / 2**64


def _boundary(text: str, end: int, length: int) -> int:
    """Where a tail of about `length` characters before `end` starts: after the end of a line, else of a word.

    It is looked for up to half the length before the exact place, which is taken where there is none.
    """
    start = end - length
    for boundary in ("\n", " "):
        at = text.rfind(boundary, max(0, start - length // 2), start)
        if at >= 0:
            return at + 1
    return start
