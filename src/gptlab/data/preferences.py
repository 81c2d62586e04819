"""The `[data]` section of preferences, and their preparation: sources → rows of each split, in a cache.

    preferences = prepare_preferences(settings, tokenizer, template, context=512, targets="answers")
    batch = preferences.train.batch(np.array([0, 1]))       # two pairs: four sequences

Prepared preferences are found again by their fingerprint: settings, sources, template, tokenizer, context, and the seed
where a share is held out. What is predicted of them is no part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from gptlab.data.divided import DividedSettings, Part, SplitSettings, parts_of
from gptlab.data.preference_counts import PreferenceCounts as PreferenceCounts
from gptlab.data.preference_counts import warnings_about
from gptlab.data.preference_preparing import PreferencePreparation
from gptlab.data.preference_rows import PreferenceRows as PreferenceRows
from gptlab.data.preference_rows import Targets as Targets
from gptlab.data.preference_sources import PreferenceSource, PreferenceSourceSettings
from gptlab.data.reading import PrepareProgress
from gptlab.data.record_sources import BAD_ROWS
from gptlab.data.row_cache import Prepared, prepared
from gptlab.data.splitting import Shares, Split
from gptlab.text.dialogue import Template
from gptlab.text.tokenizer import Tokenizer

OnProgress = Callable[[PrepareProgress], None]


class PreferenceSplitSettings(SplitSettings[PreferenceSourceSettings]):
    """`[data.validation]`, `[data.test]` of preferences. A name of its own, so that a recipe can be pickled."""


class PreferenceSettings(DividedSettings[PreferenceSourceSettings]):
    """`[data]` with kind = "preferences"."""

    kind: Literal["preferences"] = "preferences"
    validation: PreferenceSplitSettings = PreferenceSplitSettings(share=0.05)
    test: PreferenceSplitSettings | None = None
    template: str | None = None
    """"eos", "hh", "chatml" or a file of Jinja; without it the model's own, else "eos"."""
    bad_rows: float = Field(BAD_ROWS, ge=0, le=1)
    """The share of a source's records that may be no pairs; beyond it is an error."""


@dataclass(frozen=True)
class Preferences:
    """Prepared preferences: the pairs of each split, what each source gave, and what a person should know about it.

    fingerprints: of each split's pairs; the same pairs have the same, wherever and whenever they are prepared
    """

    folder: Path
    train: PreferenceRows
    validation: PreferenceRows
    test: PreferenceRows | None
    table: list[PreferenceCounts]
    warnings: list[str]
    fingerprints: dict[Split, str]


def prepare_preferences(
    settings: PreferenceSettings,
    tokenizer: Tokenizer,
    template: Template,
    *,
    context: int,
    targets: Targets,
    seed: int = 0,
    cache: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Preferences:
    """The preferences of these settings: opened where they are prepared, else prepared. `settings.template` is not
    read: `template` is what it, or the model, means.

    context: tokens a side may have, two or more. Longer ones lose prompt from the left (preference_encoding.py)
    targets: what is predicted; it changes nothing on disk
    seed:    decides which prompts are held out where that is a share

    `on_progress` is called at least twice a second. A second process that asks for the same waits.

    DataError where a source is missing, gives nothing or has too many bad rows, a split comes out empty, or training
    holds prompts of validation or test (data.overlap); TokenizerError where the tokenizer lacks the template's end;
    GptlabError where the cache cannot be written.
    """
    preparation = PreferencePreparation(
        parts=parts_of(settings, PreferenceSource), splits=settings.splits(), template=template, tokenizer=tokenizer,
        context=context, shares=settings.keyed_shares(seed), bad_rows=settings.bad_rows, overlap=settings.overlap,
        on_progress=on_progress,
    )  # fmt: skip
    found = _prepared(preparation, cache)
    rows = {split: PreferenceRows(file, context, targets) for split, file in found.files.items()}
    limits = {part.name: part.source.settings.limit_pairs for part in preparation.parts if part.split == "train"}
    return Preferences(
        found.folder, rows["train"], rows["validation"], rows.get("test"), found.table,
        warnings_about(found.table, limits), {split: each.checksum for split, each in rows.items()},
    )  # fmt: skip


def read_preferences(
    source: PreferenceSourceSettings,
    tokenizer: Tokenizer,
    template: Template,
    *,
    context: int,
    targets: Targets,
    cache: Path | None = None,
    on_progress: OnProgress | None = None,
) -> PreferenceRows:
    """All pairs of a source, to be scored. Errors as `prepare_preferences`."""
    part = Part(PreferenceSource(source).name, PreferenceSource(source), "validation")
    preparation = PreferencePreparation(
        parts=[part], splits=["validation"], template=template, tokenizer=tokenizer, context=context, shares=Shares(),
        bad_rows=BAD_ROWS, overlap="error", on_progress=on_progress,
    )  # fmt: skip
    return PreferenceRows(_prepared(preparation, cache).files["validation"], context, targets)


def _prepared(preparation: PreferencePreparation, cache: Path | None) -> Prepared[PreferenceCounts]:
    return prepared(preparation, "preferences", PreferenceCounts, cache)
