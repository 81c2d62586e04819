"""The `[data]` section of dialogues, and their preparation: sources → rows of each split, in a cache.

    dialogues = prepare_dialogues(settings, tokenizer, Template.named("hh", tokenizer.eos), context=1024)
    batch = dialogues.train.batch(np.array([0, 1]))

Prepared dialogues are found again by their fingerprint: settings, sources, template, tokenizer, context, and the seed
where a share is held out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from gptlab.data.dialogue_counts import DialogueCounts as DialogueCounts
from gptlab.data.dialogue_counts import warnings_about
from gptlab.data.dialogue_encoding import Learn
from gptlab.data.dialogue_preparing import DialoguePreparation
from gptlab.data.dialogue_rows import DialogueRows
from gptlab.data.dialogue_sources import DialogueSource, DialogueSourceSettings
from gptlab.data.divided import DividedSettings, Part, SplitSettings, parts_of
from gptlab.data.reading import PrepareProgress
from gptlab.data.record_sources import BAD_ROWS
from gptlab.data.row_cache import prepared
from gptlab.data.row_file import RowFile
from gptlab.data.splitting import Shares, Split
from gptlab.data.windows import ScoredWindows, TrainingWindows
from gptlab.text.dialogue import Template
from gptlab.text.tokenizer import Tokenizer

OnProgress = Callable[[PrepareProgress], None]


class DialogueSplitSettings(SplitSettings[DialogueSourceSettings]):
    """`[data.validation]`, `[data.test]` of dialogues. A name of its own, so that a recipe can be pickled."""


class DialogueSettings(DividedSettings[DialogueSourceSettings]):
    """`[data]` with kind = "dialogues"."""

    kind: Literal["dialogues"] = "dialogues"
    validation: DialogueSplitSettings = DialogueSplitSettings(share=0.05)
    test: DialogueSplitSettings | None = None
    template: str | None = None
    """"eos", "hh", "chatml" or a file of Jinja; without it the model's own, else "eos"."""
    learn: Learn = "answers"
    """What is predicted: the answers with what closes each, or every token."""
    pack: bool = False
    """All dialogues joined, and read in windows of `context` as a corpus is."""
    history: int = Field(0, ge=0)
    """0: a row is a whole dialogue. N: a row is one answer with the last N turns before it."""
    bad_rows: float = Field(BAD_ROWS, ge=0, le=1)
    """The share of a source's rows that may be no dialogues; beyond it is an error."""

    @model_validator(mode="after")
    def _joined_whole(self) -> Self:
        if self.pack and self.history:
            raise ValueError(f"pack joins whole dialogues, and history = {self.history} takes them apart: choose one")
        return self


@dataclass(frozen=True)
class Dialogues:
    """Prepared dialogues: the rows of each split, what each source gave, and what a person should know about it.

    fingerprints: of each split's rows; the same rows have the same, wherever and whenever they are prepared
    """

    folder: Path
    train: DialogueRows
    validation: DialogueRows
    test: DialogueRows | None
    table: list[DialogueCounts]
    warnings: list[str]
    fingerprints: dict[Split, str]


def prepare_dialogues(
    settings: DialogueSettings,
    tokenizer: Tokenizer,
    template: Template,
    *,
    context: int,
    seed: int = 0,
    cache: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Dialogues:
    """The dialogues of these settings: opened where they are prepared, else prepared. `settings.template` is not read:
    `template` is what it, or the model, means.

    context: positions a row may take. Longer ones lose their first turns, and are dropped where even the last exchange
    is longer; both is counted. `seed` decides which dialogues are held out where that is a share, and the shifts of
    joined windows. `on_progress` is called at least twice a second. A second process that asks for the same waits.

    DataError where a source is missing, gives nothing or has too many bad rows, a split comes out empty, or training
    overlaps validation or test (data.overlap); TokenizerError where the tokenizer lacks the template's end;
    GptlabError where the cache cannot be written.
    """
    template.end_id(tokenizer)
    preparation = DialoguePreparation(
        parts=parts_of(settings, DialogueSource), splits=settings.splits(), template=template, tokenizer=tokenizer,
        context=None if settings.pack else context, shares=settings.keyed_shares(seed), bad_rows=settings.bad_rows,
        overlap=settings.overlap, on_progress=on_progress, learn=settings.learn, history=settings.history,
    )  # fmt: skip
    found = prepared(preparation, "dialogues", DialogueCounts, cache)
    rows = {split: _rows(split, file, settings, context, seed) for split, file in found.files.items()}
    limits = {part.name: part.source.settings.limit_dialogues for part in preparation.parts if part.split == "train"}
    return Dialogues(
        found.folder, rows["train"], rows["validation"], rows.get("test"), found.table,
        warnings_about(found.table, limits), {split: file.checksum for split, file in found.files.items()},
    )  # fmt: skip


def read_all(
    source: DialogueSourceSettings,
    tokenizer: Tokenizer,
    template: Template,
    *,
    context: int,
    cache: Path | None = None,
    on_progress: OnProgress | None = None,
) -> DialogueRows:
    """All dialogues of a source, to be scored: whole, each answer learned. Errors as `prepare_dialogues`."""
    template.end_id(tokenizer)
    part = Part(DialogueSource(source).name, DialogueSource(source), "validation")
    preparation = DialoguePreparation(
        parts=[part], splits=["validation"], template=template, tokenizer=tokenizer, context=context, shares=Shares(),
        bad_rows=BAD_ROWS, overlap="error", on_progress=on_progress, learn="answers", history=0,
    )  # fmt: skip
    found = prepared(preparation, "dialogues", DialogueCounts, cache)
    return DialogueRows(found.files["validation"], context)


def _rows(split: Split, file: RowFile, settings: DialogueSettings, context: int, seed: int) -> DialogueRows:
    if not settings.pack:
        return DialogueRows(file, context)
    learned = None if settings.learn == "everything" else file.learned
    if split == "train":
        return DialogueRows(file, context, TrainingWindows(file, context, seed, learned))
    return DialogueRows(file, context, ScoredWindows(file, context, learned))
