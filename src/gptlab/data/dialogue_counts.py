"""What each source of dialogues gave: the table that is shown, and what in it is an error or worth a warning."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gptlab.data.counts import SMALL_SHARE_OF_LIMIT
from gptlab.data.dialogue_sources import BadRows
from gptlab.data.splitting import Split
from gptlab.errors import DataError
from gptlab.words import share

PERCENTILES = (50, 90, 99, 100)
MANY_CUT = 0.1
"""A warning is given where more than this share of the rows is cut or dropped for its length."""


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
        return " / ".join(f"{length:,}" for length in self.percentiles)

    @property
    def dropped(self) -> str:
        """What was dropped, in words."""
        reasons = {
            "rows too long": self.too_long,
            "unanswered last turns": self.unanswered,
            "also in validation or test": self.overlapping,
            "duplicates of dialogues before them": self.duplicates,
            **{f"bad ({cause})": count for cause, count in self.bad.items()},
        }
        return ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)


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
        lengths = np.array(self.lengths or [0])
        percentiles = np.percentile(lengths, PERCENTILES, method="inverted_cdf").tolist()
        bad = bad or BadRows()
        return DialogueCounts(name, split, **values, bad=bad.counts, bad_at=bad.places, percentiles=percentiles)


def check_counts(table: Sequence[DialogueCounts], shares: Mapping[Split, float]) -> None:
    """DataError where a source gave its split nothing, or a share of the training sources came out empty."""
    for split, part in shares.items():
        if not any(counts.rows for counts in table if counts.split == split):
            dropped = ", ".join(counts.dropped for counts in table if counts.split == split and counts.dropped)
            raise DataError(
                f"{split} is empty: a share of {part:g} of the training dialogues gives no row"
                f"{f' ({dropped})' if dropped else ''}. Raise data.{split}.share, give more dialogues, or name "
                f"data.{split}.sources of its own."
            )
    for counts in table:
        if counts.rows == 0 and (counts.split == "train" or counts.split not in shares):
            why = counts.dropped or "all of its dialogues went to validation or test"
            raise DataError(f"the source {counts.name!r} gives {counts.split} no row: {why}. Mend it or take it out.")


def warnings_about(table: Sequence[DialogueCounts], limits: Mapping[str, int]) -> list[str]:
    """What a person should look at. `limits`: limit_dialogues of the training sources that have one."""
    warnings = []
    for counts in table:
        if counts.bad:
            bad = BadRows(counts.bad, counts.bad_at)
            warnings.append(f"the source {counts.name!r} has {bad.total:,} bad rows, which are left out: {bad}")
        longer, rows = counts.cut + counts.too_long, counts.rows + counts.too_long
        if longer > MANY_CUT * rows:
            warnings.append(
                f"of the source {counts.name!r}, {share(longer / rows)} of the rows of {counts.split} are longer than "
                f"the context: {counts.cut:,} lose their first turns, {counts.too_long:,} are dropped"
            )
    for name, limit in limits.items():
        given = sum(counts.dialogues for counts in table if counts.name == name)
        if given < SMALL_SHARE_OF_LIMIT * limit:
            warnings.append(
                f"the source {name!r} gave {given:,} dialogues, of {limit:,} that limit_dialogues allows: is its path, "
                "format or column the right one?"
            )
    return warnings
