"""What each source gave: the table that is shown, and what in it is an error or worth a warning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gptlab.data.splitting import DividedBy, Split
from gptlab.errors import DataError

SMALL_SHARE_OF_LIMIT = 1 / 100
SMALL_SHARE_OF_LARGEST = 1 / 1000


@dataclass(frozen=True)
class SourceCounts:
    """What one source gave to one split.

    documents, bytes (UTF-8), words, tokens (an EOS a document among them): what was written, `repeat` counted
    overlapping, duplicates, empty: documents that were dropped, and why
    divided_by: "document" or "tail" where a source is divided over the splits, "whole" where it is not
    """

    name: str
    split: Split
    documents: int
    bytes: int
    words: int
    tokens: int
    overlapping: int
    duplicates: int
    empty: int
    divided_by: DividedBy

    @property
    def dropped(self) -> str:
        """What was dropped, in words."""
        reasons = {
            "without text": self.empty,
            "also in validation or test": self.overlapping,
            "duplicates of documents before them": self.duplicates,
        }
        return ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)


def check_counts(table: Sequence[SourceCounts], shares: Mapping[Split, float]) -> None:
    """DataError where a source gave its split nothing, or a share of the training sources came out empty."""
    for split, share in shares.items():
        if not any(counts.tokens for counts in table if counts.split == split):
            raise DataError(
                f"{split} is empty: no document falls into a share of {share:g} of the training sources. "
                f"Raise data.{split}.share, give more text, or name data.{split}.sources of its own."
            )
    for counts in table:
        if counts.documents == 0 and (counts.split == "train" or counts.divided_by == "whole"):
            why = counts.dropped or "all of its documents went to validation or test"
            raise DataError(f"the source {counts.name!r} gives {counts.split} nothing: {why}. Mend it or take it out.")


def warnings_about(table: Sequence[SourceCounts], limits: Mapping[str, int]) -> list[str]:
    """What a person should look at: sources that gave far less than their limit or than the largest of them.

    `limits`: limit_documents of the training sources that have one.
    """
    found = _training_sources(table)
    largest = max(tokens for _, tokens in found.values())
    warnings = []
    for name, (documents, tokens) in found.items():
        if documents < SMALL_SHARE_OF_LIMIT * limits.get(name, 0):
            warnings.append(
                f"the source {name!r} gave {documents:,} documents, of {limits[name]:,} that limit_documents allows: "
                "is its document rule, column or path the right one?"
            )
        if tokens < SMALL_SHARE_OF_LARGEST * largest:
            warnings.append(
                f"the source {name!r} gave {tokens:,} tokens, less than a thousandth of the largest source's "
                f"{largest:,}: is its document rule, column or path the right one?"
            )
    return warnings


def _training_sources(table: Iterable[SourceCounts]) -> dict[str, tuple[int, int]]:
    """Source → (documents, tokens) over all splits it is divided over."""
    found: dict[str, tuple[int, int]] = {}
    for counts in table:
        if counts.split == "train" or counts.divided_by != "whole":
            documents, tokens = found.get(counts.name, (0, 0))
            found[counts.name] = documents + counts.documents, tokens + counts.tokens
    return found
