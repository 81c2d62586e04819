"""What each source of dialogues gave: the table that is shown, and what in it is an error or worth a warning."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gptlab.data.record_sources import BadRows
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


@dataclass(frozen=True)
class DialogueCounts:
    """What one source gave to one split.

    dialogues, rows, tokens, learned (tokens that are predicted): what was written
    cut:         rows of those that lack earlier turns, to fit
    too_long:    rows that were dropped because even their last exchange is longer than the context
    unanswered:  dialogues whose last turn was left out, since nobody answers it
    duplicates, overlapping: dialogues that were dropped: also before them in training; also in validation or test
    bad, bad_at: rows that are no dialogues, by cause: how many, and where the first of them stand
    percentiles: of the rows' length in positions before cutting (PERCENTILES; the last is the longest)
    """

    name: str
    split: Split
    dialogues: int
    rows: int
    tokens: int
    learned: int
    cut: int
    too_long: int
    unanswered: int
    duplicates: int
    overlapping: int
    bad: dict[str, int]
    bad_at: dict[str, list[str]]
    percentiles: Sequence[int]

    @property
    def lengths(self) -> str:
        """The percentiles, in words."""
        return lengths_in_words(self.percentiles)

    @property
    def dropped(self) -> str:
        """What was dropped, in words."""
        reasons = {
            "rows too long": self.too_long,
            "unanswered last turns": self.unanswered,
            "also in validation or test": self.overlapping,
            "duplicates of dialogues before them": self.duplicates,
        }
        return counted_in_words(reasons, self.bad)


@dataclass
class Tally:
    """DialogueCounts in the making."""

    dialogues: int = 0
    rows: int = 0
    tokens: int = 0
    learned: int = 0
    cut: int = 0
    too_long: int = 0
    unanswered: int = 0
    duplicates: int = 0
    overlapping: int = 0
    lengths: array = field(default_factory=lambda: array("i"))

    def counts(self, name: str, split: Split, bad: BadRows | None) -> DialogueCounts:
        """`bad`: of the source, which is counted with one of its splits."""
        values = {key: value for key, value in vars(self).items() if key != "lengths"}
        bad = bad or BadRows()
        percentiles = percentiles_of(self.lengths)
        return DialogueCounts(name, split, **values, bad=bad.counts, bad_at=bad.places, percentiles=percentiles)


def warnings_about(table: Sequence[DialogueCounts], limits: Mapping[str, int]) -> list[str]:
    """What a person should look at. `limits`: limit_dialogues of the training sources that have one."""
    warnings = list(bad_row_warnings(table))
    given: dict[str, int] = {}
    for counts in table:
        given[counts.name] = given.get(counts.name, 0) + counts.dialogues
        longer, rows = counts.cut + counts.too_long, counts.rows + counts.too_long
        if longer > MANY_CUT * rows:
            warnings.append(
                f"of the source {counts.name!r}, {share(longer / rows)} of the rows of {counts.split} are longer than "
                f"the context: {counts.cut:,} lose their first turns, {counts.too_long:,} are dropped"
            )
    return [*warnings, *limit_warnings(given, limits, "dialogues", "path, format or column")]
