"""What each source of preferences gave: the table that is shown, and what in it is worth a warning."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gptlab.data.preference_encoding import EncodedAnswers
from gptlab.data.preference_sources import EQUAL, PreferenceSource
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
from gptlab.words import share

CUT_EQUAL = "sides that are equal once they are cut"

MUCH_LONGER = 0.6
"""A warning is given where one side is the longer in more than this share of the training pairs that differ in
length."""


@dataclass(frozen=True)
class PreferenceCounts:
    """What one source gave to one split. Lengths are in tokens.

    pairs, tokens: what was written; the tokens are those of both sides, prompts among them
    chosen_tokens, rejected_tokens: those of the answers, with what closes them
    longer, as_long: pairs whose chosen answer is longer than the rejected one, or as long
    prompt_cut:   pairs whose prompt lacks its beginning, to fit; answers_cut: answers that lack their end
    equal, equal_at: records whose sides are equal, which were left out: how many, and where the first of them stand
    cut_equal, cut_equal_at: those whose sides have the same tokens once they are cut, which were left out too
    duplicates:   training pairs that were dropped: also before them, with the same prompt and the same answers
    overlapping:  training pairs that were dropped, since their prompt also stands in validation or test
    bad, bad_at:  records that are no pairs, by cause: how many, and where the first of them stand
    percentiles:  of the longer side's length before cutting (PERCENTILES; the last is the longest)
    """

    name: str
    split: Split
    pairs: int
    tokens: int
    chosen_tokens: int
    rejected_tokens: int
    longer: int
    as_long: int
    prompt_cut: int
    answers_cut: int
    equal: int
    equal_at: list[str]
    cut_equal: int
    cut_equal_at: list[str]
    duplicates: int
    overlapping: int
    bad: dict[str, int]
    bad_at: dict[str, list[str]]
    percentiles: Sequence[int]

    @property
    def rows(self) -> int:
        return self.pairs

    @property
    def lengths(self) -> str:
        """The percentiles, in words."""
        return lengths_in_words(self.percentiles)

    @property
    def length_bias(self) -> str:
        """Which side is the longer, in words: a model can learn to prefer length."""
        if not self.pairs:
            return ""
        chosen, rejected = self.chosen_tokens / self.pairs, self.rejected_tokens / self.pairs
        return (
            f"chosen is longer in {share(self.longer / self.pairs)} of the pairs, {chosen:,.0f} against "
            f"{rejected:,.0f} tokens in the mean"
        )

    @property
    def dropped(self) -> str:
        """What was dropped, in words."""
        reasons = {
            f"with {EQUAL}": self.equal,
            f"with {CUT_EQUAL}": self.cut_equal,
            "with a prompt of validation or test": self.overlapping,
            "duplicates of pairs before them": self.duplicates,
        }
        return counted_in_words(reasons, self.bad)

    @property
    def remarks(self) -> str:
        """Which side is the longer, what was cut and what was dropped, in words."""
        cut = counted_in_words({"prompts cut from the left": self.prompt_cut, "answers cut": self.answers_cut}, {})
        return "; ".join(filter(None, [self.length_bias, cut, f"dropped: {self.dropped}" if self.dropped else ""]))


@dataclass
class Tally:
    """PreferenceCounts in the making."""

    pairs: int = 0
    tokens: int = 0
    chosen_tokens: int = 0
    rejected_tokens: int = 0
    longer: int = 0
    as_long: int = 0
    prompt_cut: int = 0
    answers_cut: int = 0
    cut_equal: int = 0
    cut_equal_at: list[str] = field(default_factory=list)
    duplicates: int = 0
    overlapping: int = 0
    lengths: array = field(default_factory=lambda: array("i"))

    def add(self, pair: EncodedAnswers) -> None:
        """A pair that is written."""
        chosen, rejected = (len(ids) - pair.start for ids in pair.ids)
        self.pairs += 1
        self.tokens += sum(map(len, pair.ids))
        self.chosen_tokens += chosen
        self.rejected_tokens += rejected
        self.longer += chosen > rejected
        self.as_long += chosen == rejected
        self.prompt_cut += pair.prompt_cut
        self.answers_cut += pair.answers_cut
        self.lengths.append(pair.length)

    def add_cut_equal(self, place: str) -> None:
        """A pair that is left out, and where it stands."""
        self.cut_equal += 1
        if len(self.cut_equal_at) < PLACES_KEPT:
            self.cut_equal_at.append(place)

    def counts(self, name: str, split: Split, source: PreferenceSource | None) -> PreferenceCounts:
        """`source`: whose bad and equal records are counted with one of its splits."""
        values = {key: value for key, value in vars(self).items() if key != "lengths"}
        bad, equal = (source.bad, source.equal) if source else (BadRows(), BadRows())
        return PreferenceCounts(
            name, split, **values, equal=equal.total, equal_at=equal.places.get(EQUAL, []), bad=bad.counts,
            bad_at=bad.places, percentiles=percentiles_of(self.lengths),
        )  # fmt: skip


def warnings_about(table: Sequence[PreferenceCounts], limits: Mapping[str, int]) -> list[str]:
    """What a person should look at. `limits`: limit_pairs of the training sources that have one."""
    warnings = list(bad_row_warnings(table))
    given: dict[str, int] = {}
    for counts in table:
        given[counts.name] = given.get(counts.name, 0) + counts.pairs
        warnings += _remarkable(counts)
    warnings += limit_warnings(given, limits, "pairs", "path, format or column")
    return warnings + _length_bias([counts for counts in table if counts.split == "train"])


def _remarkable(counts: PreferenceCounts) -> list[str]:
    found = []
    same = {EQUAL: (counts.equal, counts.equal_at), CUT_EQUAL: (counts.cut_equal, counts.cut_equal_at)}
    there = {cause: count for cause, (count, _) in same.items() if count}
    if there:
        left_out = BadRows(there, {cause: at for cause, (_, at) in same.items()})
        found.append(f"the source {counts.name!r} has pairs that prefer nothing, which are left out: {left_out}")
    if counts.prompt_cut > MANY_CUT * counts.pairs:
        found.append(
            f"of the source {counts.name!r}, {share(counts.prompt_cut / counts.pairs)} of the pairs of {counts.split} "
            f"are longer than the context: {counts.prompt_cut:,} prompts lose their beginning, {counts.answers_cut:,} "
            "answers their end"
        )
    return found


def _length_bias(train: Sequence[PreferenceCounts]) -> list[str]:
    differ = sum(each.pairs - each.as_long for each in train)
    longer = sum(each.longer for each in train)
    most = max(longer, differ - longer)
    if most <= MUCH_LONGER * differ:
        return []
    side, other = ("chosen", "longer") if 2 * longer > differ else ("rejected", "shorter")
    return [
        f"{side} is the longer answer in {share(most / differ)} of the {differ:,} training pairs whose answers differ "
        f"in length: what is learned may be length. Compare with the accuracy of always preferring the {other} answer."
    ]
