"""What each source of texts with labels gave: the table that is shown, what in it is an error or worth a warning."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gptlab.data.label_sources import LabelSource
from gptlab.data.record_sources import PLACES_KEPT, BadRows
from gptlab.data.row_counts import (
    MANY_CUT,
    bad_row_warnings,
    counted_in_words,
    lengths_in_words,
    limit_warnings,
    percentiles_of,
)
from gptlab.data.splitting import Split
from gptlab.errors import DataError
from gptlab.words import share

CLASSES_SHOWN = 4
FEW_TEXTS = 10
"""A warning is given for a class of which training has fewer."""


@dataclass(frozen=True)
class LabelCounts:
    """What one source gave to one split.

    texts, tokens: what is there to be learned or scored
    cut:           texts of those that lost their end, to fit
    empty, empty_at: records without text, which were left out: how many, and where the first of them stand
    duplicates:    training texts that also stand before it with the same label; kept unless `dropped_duplicates`
    contradicting, contradicting_at: training texts that also stand before it with another label, which are kept
    overlapping:   training texts that were dropped, since they also stand in validation or test
    bad, bad_at:   records without a label, by cause: how many, and where the first of them stand
    classes:       label → texts
    percentiles:   of the texts' length in tokens before cutting (50, 90, 99 %, the longest)
    """

    name: str
    split: Split
    texts: int
    tokens: int
    cut: int
    empty: int
    empty_at: list[str]
    duplicates: int
    dropped_duplicates: bool
    contradicting: int
    contradicting_at: list[str]
    overlapping: int
    bad: dict[str, int]
    bad_at: dict[str, list[str]]
    classes: dict[str, int]
    percentiles: Sequence[int]

    @property
    def rows(self) -> int:
        return self.texts

    @property
    def lengths(self) -> str:
        """The percentiles, in words."""
        return lengths_in_words(self.percentiles)

    @property
    def classes_in_words(self) -> str:
        """The most frequent classes with their shares."""
        found = sorted(((label, n) for label, n in self.classes.items() if n), key=lambda each: -each[1])
        shown = [f"{label} {n:,} ({share(n / self.texts)})" for label, n in found[:CLASSES_SHOWN]]
        more = len(found) - CLASSES_SHOWN
        return ", ".join([*shown, f"{more} more"] if more > 0 else shown)

    @property
    def dropped(self) -> str:
        """What was dropped, in words."""
        reasons = {
            "without text": self.empty,
            "also in validation or test": self.overlapping,
            "duplicates of texts before them": self.duplicates if self.dropped_duplicates else 0,
        }
        return counted_in_words(reasons, self.bad)

    @property
    def remarks(self) -> str:
        """What was dropped, cut or stands twice, in words."""
        kept = {
            "cut from the right": self.cut,
            "duplicates": 0 if self.dropped_duplicates else self.duplicates,
            "with two labels": self.contradicting,
        }
        dropped = f"dropped: {self.dropped}" if self.dropped else ""
        return "; ".join(filter(None, [counted_in_words(kept, {}), dropped]))


@dataclass
class Tally:
    """LabelCounts in the making."""

    texts: int = 0
    tokens: int = 0
    cut: int = 0
    duplicates: int = 0
    contradicting: int = 0
    contradicting_at: list[str] = field(default_factory=list)
    overlapping: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    lengths: array = field(default_factory=lambda: array("i"))

    def add(self, label: str, length: int, context: int) -> None:
        """A text of this label and length, which is cut to `context`."""
        self.texts += 1
        self.tokens += min(length, context)
        self.cut += length > context
        self.classes[label] = self.classes.get(label, 0) + 1
        self.lengths.append(length)

    def contradict(self, words: str) -> None:
        """A text that stands before it with another label."""
        self.contradicting += 1
        if len(self.contradicting_at) < PLACES_KEPT:
            self.contradicting_at.append(words)

    def counts(self, name: str, split: Split, source: LabelSource | None, drops_duplicates: bool) -> LabelCounts:
        """`source`: whose bad and empty records are counted with one of its splits."""
        values = {key: value for key, value in vars(self).items() if key != "lengths"}
        bad, empty = (source.bad, source.empty) if source else (BadRows(), BadRows())
        return LabelCounts(
            name, split, **values, empty=empty.total, empty_at=[place for at in empty.places.values() for place in at],
            dropped_duplicates=drops_duplicates, bad=bad.counts, bad_at=bad.places,
            percentiles=percentiles_of(self.lengths),
        )  # fmt: skip


def classes_of(table: Sequence[LabelCounts], split: Split) -> dict[str, int]:
    """Label → texts of a split, over all of its sources."""
    found: dict[str, int] = {}
    for counts in table:
        if counts.split == split:
            for label, count in counts.classes.items():
                found[label] = found.get(label, 0) + count
    return found


def check_classes(table: Sequence[LabelCounts]) -> None:
    """DataError where the training texts are all of one class."""
    found = {label: count for label, count in classes_of(table, "train").items() if count}
    if len(found) == 1:
        [(label, count)] = found.items()
        raise DataError(
            f"all {count:,} training texts have the label {label!r}, so there is nothing to tell apart; is `label` the "
            "right column, and are the sources whole?"
        )


def warnings_about(table: Sequence[LabelCounts], limits: Mapping[str, int]) -> list[str]:
    """What a person should look at. `limits`: limit_texts of the training sources that have one."""
    warnings = list(bad_row_warnings(table))
    given: dict[str, int] = {}
    for counts in table:
        given[counts.name] = given.get(counts.name, 0) + counts.texts
        warnings += _remarkable(counts)
    warnings += limit_warnings(given, limits, "texts", "path or column")
    return warnings + _rare_classes(table)


def _remarkable(counts: LabelCounts) -> list[str]:
    source, found = f"the source {counts.name!r}", []
    if counts.empty:
        found.append(f"{source} has {_places(counts.empty, counts.empty_at)} without text, which are left out")
    if counts.contradicting:
        at, more = "; ".join(counts.contradicting_at), "; …" if counts.contradicting > PLACES_KEPT else ""
        found.append(f"{source}: {counts.contradicting:,} texts stand in training with two labels: {at}{more}")
    if counts.cut > MANY_CUT * counts.texts:
        found.append(
            f"of {source}, {share(counts.cut / counts.texts)} of the texts of {counts.split} are longer than the "
            f"context: {counts.cut:,} lose their end"
        )
    return found


def _places(count: int, at: Sequence[str]) -> str:
    return f"{count:,} records ({', '.join(at)}{', …' if count > len(at) else ''})"


def _rare_classes(table: Sequence[LabelCounts]) -> list[str]:
    train, warnings = classes_of(table, "train"), []
    few = [f"{label}: {count:,}" for label, count in train.items() if count < FEW_TEXTS]
    if few:
        warnings.append(f"training has fewer than {FEW_TEXTS} texts of some labels ({_listed(few)}): too few to learn")
    held = classes_of(table, "validation")
    if absent := [label for label, count in train.items() if count and not held.get(label)]:
        warnings.append(f"validation has no text of some labels ({_listed(absent)}), so nothing is known of them")
    return warnings


def _listed(labels: Sequence[str]) -> str:
    return f"{', '.join(labels[:10])}{f' and {len(labels) - 10} more' if len(labels) > 10 else ''}"
