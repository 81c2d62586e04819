"""What the tables of rows have in common, of dialogues as of texts with labels: what each source gave to each split,
and what of that is an error or worth a warning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from gptlab.data.counts import SMALL_SHARE_OF_LIMIT
from gptlab.data.record_sources import BadRows
from gptlab.data.splitting import Split
from gptlab.errors import DataError

PERCENTILES = (50, 90, 99, 100)
MANY_CUT = 0.1
"""A warning is given where more than this share of the rows is cut or dropped for its length."""


class RowCounts(Protocol):
    """What one source gave to one split. dropped: what was dropped, in words; bad, bad_at: bad records by cause."""

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> Split: ...
    @property
    def rows(self) -> int: ...
    @property
    def dropped(self) -> str: ...
    @property
    def bad(self) -> dict[str, int]: ...
    @property
    def bad_at(self) -> dict[str, list[str]]: ...


def percentiles_of(lengths: Sequence[int]) -> list[int]:
    """PERCENTILES of the rows' lengths, each the length of a row; noughts where there is none."""
    return np.percentile(np.array(lengths or [0]), PERCENTILES, method="inverted_cdf").tolist()


def lengths_in_words(percentiles: Sequence[int]) -> str:
    return " / ".join(f"{length:,}" for length in percentiles)


def counted_in_words(reasons: Mapping[str, int], bad: Mapping[str, int]) -> str:
    """Each reason with its count, where it has one, and each cause of what is bad."""
    counts = {**reasons, **{f"bad ({cause})": count for cause, count in bad.items()}}
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count)


def check_rows(table: Sequence[RowCounts], shares: Mapping[Split, float], kind: str) -> None:
    """DataError where a source gave its split nothing, or a share of the training sources came out empty. `kind`: what
    is counted, "dialogues" or "texts"."""
    for split, part in shares.items():
        if not any(counts.rows for counts in table if counts.split == split):
            dropped = ", ".join(counts.dropped for counts in table if counts.split == split and counts.dropped)
            raise DataError(
                f"{split} is empty: a share of {part:g} of the training {kind} gives no row"
                f"{f' ({dropped})' if dropped else ''}. Raise data.{split}.share, give more {kind}, or name "
                f"data.{split}.sources of its own."
            )
    for counts in table:
        if counts.rows == 0 and (counts.split == "train" or counts.split not in shares):
            why = counts.dropped or f"all of its {kind} went to validation or test"
            raise DataError(f"the source {counts.name!r} gives {counts.split} no row: {why}. Mend it or take it out.")


def bad_row_warnings(table: Sequence[RowCounts]) -> Iterator[str]:
    """A sentence for each source with bad records."""
    for counts in table:
        if counts.bad:
            bad = BadRows(counts.bad, counts.bad_at)
            yield f"the source {counts.name!r} has {bad.total:,} bad rows, which are left out: {bad}"


def limit_warnings(given: Mapping[str, int], limits: Mapping[str, int], kind: str, suspects: str) -> Iterator[str]:
    """A sentence for each source that gave far less than its limit. `given`: source → dialogues or texts (`kind`);
    `suspects`: which of its settings may be wrong."""
    for name, limit in limits.items():
        if given.get(name, 0) < SMALL_SHARE_OF_LIMIT * limit:
            yield (
                f"the source {name!r} gave {given.get(name, 0):,} {kind}, of {limit:,} that limit_{kind} allows: is "
                f"its {suspects} the right one?"
            )
