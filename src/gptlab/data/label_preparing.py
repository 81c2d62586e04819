"""Sources of texts with labels → the rows of each split, in memory.

Everything is read before anything is decided: which labels there are, and what of training is held out, stands there
twice, or also stands in validation or test.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from gptlab.data.digests import digest
from gptlab.data.divided import Part
from gptlab.data.label_counts import LabelCounts, Tally
from gptlab.data.label_names import NO_LABEL, class_of_each, labels_among, not_public, unknown_label
from gptlab.data.label_rows import LabelRows, encode_texts
from gptlab.data.label_sources import LabelledText, LabelSource
from gptlab.data.places import bytes_total
from gptlab.data.reading import PrepareProgress
from gptlab.data.splitting import Shares, Split, send_nearest
from gptlab.errors import DataError
from gptlab.text.tokenizer import Tokenizer

REPORT_SECONDS = 0.25
SHOWN = 60
"""So many characters of a text are shown where something is said of it."""


class Text(NamedTuple):
    """A text, where it comes from, where it goes, its class, and what it is known by."""

    part: Part[LabelSource]
    split: Split
    row: LabelledText
    label: int
    digest: bytes


Read = Sequence[tuple[Part[LabelSource], list[LabelledText]]]
"""What was read of each part."""


@dataclass
class LabelPreparation:
    """Reads all parts. `run` is called once; `table` and `labels` follow.

    labels:     the names of the classes, in the order of their numbers; None: those of the training texts
    shares:     what is held out of the training parts; bad_rows: the share of a source that may lack labels
    overlap:    what happens to a training text that also stands in validation or test
    duplicates: and to one that stands before it in training with the same label
    """

    parts: Sequence[Part[LabelSource]]
    splits: Sequence[Split]
    tokenizer: Tokenizer
    context: int
    separator: str
    labels: tuple[str, ...] | None
    shares: Shares
    bad_rows: float
    overlap: Literal["error", "drop"]
    duplicates: Literal["keep", "drop"]
    on_progress: Callable[[PrepareProgress], None] | None = None
    _tallies: dict[tuple[str, Split, Split], Tally] = field(default_factory=dict, init=False)
    _texts: int = field(default=0, init=False)
    _tokens: int = field(default=0, init=False)
    _reported_at: float = field(default=0.0, init=False)

    def run(self) -> dict[Split, LabelRows]:
        """The rows of each split that has any. DataError where a source cannot be read or too much of it is bad, a
        label is unknown, or training overlaps what is held out."""
        read = [(part, self._read(part)) for part in self.parts]
        texts = self._kept(self._classified(read))
        return {split: rows for split in self.splits if (rows := self._rows(split, texts)) is not None}

    def table(self) -> list[LabelCounts]:
        """What each source gave to its split, and to others where it is divided."""
        table = []
        for part in self.parts:
            for split in self.splits:
                own = split == part.split
                if own or (part.name, part.split, split) in self._tallies:
                    source = part.source if own else None
                    tally = self._tally(part, split)
                    table.append(tally.counts(part.name, split, source, self.duplicates == "drop"))
        return table

    def _read(self, part: Part[LabelSource]) -> list[LabelledText]:
        rows = []
        for row in part.source.texts():
            rows.append(row)
            self._texts += 1
            self._report(part)
        part.source.check(self.bad_rows)
        names = part.source.class_names
        if names is None or not (self.labels is None or set(names) <= set(self.labels)):
            return rows
        return [row if row.label == NO_LABEL else row._replace(label=names[int(row.label)]) for row in rows]

    def _classified(self, read: Read) -> list[Text]:
        """The texts with their classes, each in the split it goes to; those without a label are counted."""
        ordered = self._decide_labels(read)
        meant = class_of_each({row.label for _, rows in read for row in rows}, self._names, ordered=ordered)
        texts = []
        for part, rows in read:
            for row in rows:
                if row.label not in meant:
                    raise unknown_label(row.label, row.record.where, self._names, ordered=ordered)
                if (label := meant[row.label]) is None:
                    part.source.bad.add(f"no label ({NO_LABEL})", part.source.place_of(row.record))
                else:
                    texts.append(Text(part, part.split, row, label, self._digest(row)))
            part.source.check(self.bad_rows)
        return self._divided(texts)

    def _decide_labels(self, read: Read) -> bool:
        """Finds the labels where none are given. Whether their order is that of their numbers."""
        training = [(part.source, rows) for part, rows in read if part.split == "train"]
        published = {source.class_names for source, _ in training} - {None}
        ordered = self.labels is not None or len(published) == 1
        if self.labels is None:
            own = labels_among(row.label for _, rows in training for row in rows)
            self.labels = published.pop() if ordered else own
        for part, rows in read:
            if NO_LABEL not in self._names and all(row.label == NO_LABEL for row in rows):
                raise not_public(part.name)
        return ordered

    def _divided(self, texts: list[Text]) -> list[Text]:
        """Training texts in the split that their digests say."""
        if not self.shares.held:
            return texts
        sent: dict[bytes, Split] = {}
        for part in self.parts:
            if part.split == "train":
                send_nearest([text.digest for text in texts if text.part is part], self.shares, sent)

        def side(text: Text) -> Split:
            return text.split if text.split != "train" else sent.get(text.digest) or self.shares.side(text.digest)

        return [text._replace(split=side(text)) for text in texts]

    def _kept(self, texts: Sequence[Text]) -> list[Text]:
        """The texts that are learned or scored; training's are compared with those held out, and with those before."""
        held = {text.digest for text in texts if text.split != "train"}
        if self.overlap == "error":
            self._check_overlap([text for text in texts if text.split == "train" and text.digest in held])
        seen: dict[bytes, list[Text]] = {}
        kept = []
        for text in texts:
            tally = self._tally(text.part, text.split)
            if text.split != "train":
                kept.append(text)
            elif text.digest in held:
                tally.overlapping += 1
            elif self._is_new(text, seen.setdefault(text.digest, []), tally) or self.duplicates == "keep":
                kept.append(text)
        return kept

    def _is_new(self, text: Text, before: list[Text], tally: Tally) -> bool:
        """Whether the text does not stand in training `before` with the same label. One with another contradicts."""
        if any(other.label == text.label for other in before):
            tally.duplicates += 1
            return False
        if before:
            tally.contradict(f"{_beginning(text)}: {self._told(before[0])}, {self._told(text)}")
        before.append(text)
        return True

    def _rows(self, split: Split, texts: Sequence[Text]) -> LabelRows | None:
        """The rows of a split, cut to the context; None where there is none."""
        mine = [text for text in texts if text.split == split]
        ids = []
        given = [text.row.texts for text in mine]
        for text, row in zip(mine, encode_texts(given, self.tokenizer, self.separator), strict=True):
            self._tally(text.part, split).add(self._names[text.label], len(row), self.context)
            ids.append(row[: self.context])
            self._tokens += len(ids[-1])
            self._report(text.part)
        if not mine:
            return None
        self._report(mine[-1].part, now=True)
        return LabelRows(given, ids, np.array([text.label for text in mine]), self._names)

    def _tally(self, part: Part[LabelSource], split: Split) -> Tally:
        key = (part.name, part.split, split)
        if key not in self._tallies:
            self._tallies[key] = Tally(classes=dict.fromkeys(self._names, 0))
        return self._tallies[key]

    @property
    def _names(self) -> tuple[str, ...]:
        assert self.labels is not None  # they are known once everything is read
        return self.labels

    def _told(self, text: Text) -> str:
        return f"{self._names[text.label]} ({text.part.source.place_of(text.row.record)})"

    def _digest(self, row: LabelledText) -> bytes:
        return digest("\x1f".join(row.texts).encode(), self.shares.seed)

    def _check_overlap(self, overlapping: Sequence[Text]) -> None:
        if overlapping:
            first = overlapping[0]
            raise DataError(
                f"{len(overlapping):,} training text(s) also stand in validation or test; one, "
                f"{first.row.record.where}, starts {_beginning(first)}. What is scored must not have been trained on: "
                'set data.overlap = "drop" to drop them from training.'
            )

    def _report(self, part: Part[LabelSource], *, now: bool = False) -> None:
        """Calls `on_progress`, if there is one and it is time."""
        if self.on_progress is None or (not now and time.monotonic() - self._reported_at < REPORT_SECONDS):
            return
        self._reported_at = time.monotonic()
        read = sum(each.source.bytes_read for each in self.parts)
        self.on_progress(PrepareProgress(part.name, read, self._bytes_total, self._texts, self._tokens))

    @cached_property
    def _bytes_total(self) -> int | None:
        return bytes_total(part.source for part in self.parts)


def _beginning(text: Text) -> str:
    return repr(" ".join(text.row.texts).strip()[:SHOWN])
