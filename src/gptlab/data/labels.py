"""The `[data]` section of texts with labels, and their preparation: sources → rows of each split, in memory.

    labels = prepare_labels(settings, tokenizer, context=1024)
    batch = labels.train.batch(np.array([0, 1]))

Nothing is kept on disk: reading and encoding a hundred thousand texts takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, field_validator

from gptlab.data.divided import DividedSettings, Part, SplitSettings, parts_of
from gptlab.data.label_counts import LabelCounts as LabelCounts
from gptlab.data.label_counts import check_classes, warnings_about
from gptlab.data.label_preparing import LabelPreparation
from gptlab.data.label_rows import LabelRows as LabelRows
from gptlab.data.label_rows import rows_of_texts as rows_of_texts
from gptlab.data.label_sources import LabelSource, LabelSourceSettings
from gptlab.data.reading import PrepareProgress
from gptlab.data.record_sources import BAD_ROWS
from gptlab.data.row_counts import check_rows
from gptlab.data.splitting import Shares, Split
from gptlab.text.tokenizer import Tokenizer

OnProgress = Callable[[PrepareProgress], None]


class LabelSplitSettings(SplitSettings[LabelSourceSettings]):
    """`[data.validation]`, `[data.test]` of texts with labels. A name of its own, so that a recipe can be pickled."""


class LabelSettings(DividedSettings[LabelSourceSettings]):
    """`[data]` with kind = "labels"."""

    kind: Literal["labels"] = "labels"
    validation: LabelSplitSettings = LabelSplitSettings(share=0.05)
    test: LabelSplitSettings | None = None
    labels: Annotated[tuple[str, ...], Field(strict=False, min_length=2)] | None = None
    """The names of the classes, in the order of their numbers (label_names.py); without it the hub's, else the
    different labels of the training sources, sorted."""
    separator: str = "\n"
    """What stands between the two texts of a pair."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Of training texts with the same label: kept by default, because published scores are of models trained on a
    data set as it is (8 of CoLA's 8,551 are duplicates)."""
    bad_rows: float = Field(BAD_ROWS, ge=0, le=1)
    """The share of a source's records that may lack a label; beyond it is an error."""

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if any(label != label.strip() or not label for label in labels or ()):
            raise ValueError("a label is empty, or begins or ends with space")
        if labels and (twice := next((label for label in labels if labels.count(label) > 1), None)):
            raise ValueError(f"{twice!r} stands there twice; each label has one number")
        return labels


@dataclass(frozen=True)
class Labels:
    """Prepared texts with labels: the rows of each split, what each source gave, what a person should know about it.

    labels:       the names of the classes, in the order of their numbers
    fingerprints: of each split's rows; the same rows and labels have the same, wherever and whenever they are prepared
    """

    train: LabelRows
    validation: LabelRows
    test: LabelRows | None
    labels: tuple[str, ...]
    table: list[LabelCounts]
    warnings: list[str]
    fingerprints: dict[Split, str]


def prepare_labels(
    settings: LabelSettings,
    tokenizer: Tokenizer,
    *,
    context: int,
    seed: int = 0,
    labels: Sequence[str] | None = None,
    on_progress: OnProgress | None = None,
) -> Labels:
    """The texts of these settings, read and encoded.

    context: tokens a row may have; a longer text loses its end, which is counted
    seed:    decides which texts are held out where that is a share
    labels:  those of the model that is scored or trained on: they count in place of the settings'

    `on_progress` is called at least twice a second.

    DataError where a source is missing, gives nothing or lacks too many labels, a label is unknown, training has one
    class alone, a split comes out empty, or training overlaps validation or test (data.overlap).
    """
    known = labels or settings.labels
    preparation = LabelPreparation(
        parts_of(settings, LabelSource), settings.splits(), tokenizer, context, settings.separator,
        tuple(known) if known else None, settings.keyed_shares(seed), settings.bad_rows, settings.overlap,
        settings.duplicates, on_progress,
    )  # fmt: skip
    rows, table = preparation.run(), preparation.table()
    check_rows(table, settings.shares(), "texts")
    check_classes(table)
    limits = {part.name: part.source.settings.limit_texts for part in preparation.parts if part.split == "train"}
    return Labels(
        rows["train"], rows["validation"], rows.get("test"), rows["train"].labels, table,
        warnings_about(table, limits), {split: each.checksum for split, each in rows.items()},
    )  # fmt: skip


def read_labelled(
    source: LabelSourceSettings, tokenizer: Tokenizer, *, context: int, labels: Sequence[str], separator: str
) -> LabelRows:
    """All of a source, to be scored by a model that knows these labels. Errors as `prepare_labels`."""
    part = Part(LabelSource(source).name, LabelSource(source), "validation")
    preparation = LabelPreparation(
        [part], ["validation"], tokenizer, context, separator, tuple(labels), Shares(), BAD_ROWS, "error", "keep"
    )
    rows = preparation.run()
    check_rows(preparation.table(), {}, "texts")
    return rows["validation"]
