"""What a model is scored on: a recipe's data, those of the run that it lies in, or a file; and whether they fit it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gptlab.data.batch import TextRows
from gptlab.data.choices import DEFAULT_PLACES
from gptlab.data.dialogue_sources import DialogueSourceSettings
from gptlab.data.dialogues import read_all
from gptlab.data.label_rows import LabelRows
from gptlab.data.label_sources import LabelSource, LabelSourceSettings
from gptlab.data.labels import read_labelled
from gptlab.data.preference_rows import PreferenceRows
from gptlab.data.preference_sources import PreferenceSourceSettings
from gptlab.data.preferences import read_preferences
from gptlab.data.readers import TABLES, format_of
from gptlab.data.scored_text import read_text_tokens
from gptlab.data.sources import SourceSettings
from gptlab.data.splitting import Split
from gptlab.data.windows import ScoredWindows
from gptlab.device import Precision
from gptlab.errors import DataError, RunError, UserError, nearest
from gptlab.evaluation.classify import separator_of
from gptlab.evaluation.samples import SampleSettings
from gptlab.model.classifier import KINDS, Task
from gptlab.run.open import OpenModel
from gptlab.run.run import RECIPE
from gptlab.settings import build
from gptlab.text.dialogue import Template
from gptlab.training.prepare import prepare
from gptlab.training.progress import Progress
from gptlab.training.recipe import Recipe, load_recipe
from gptlab.training.start import Start

SCORED_BY: dict[str, tuple[Task, ...]] = {
    "corpus": ("language",),
    "dialogues": ("language",),
    "labels": ("classification",),
    "preferences": ("language", "reward"),
    **dict.fromkeys(DEFAULT_PLACES, ("language",)),
}
"""The kinds of data, and the models that are scored on them."""


@dataclass(frozen=True)
class Scoring:
    """A model that is scored, and how: what its scores on all data have in common.

    start: another model that it is compared with, on the same device
    """

    opened: OpenModel
    start: OpenModel | None
    precision: Precision
    runs: Path
    progress: Progress

    @property
    def device(self) -> torch.device:
        return next(self.opened.model.parameters()).device

    @property
    def context(self) -> int:
        """What both models read at once."""
        return min(each.model.shape.context for each in (self.opened, self.start) if each)


@dataclass(frozen=True)
class ScoredData:
    """The rows that a model is scored on.

    words:    what they are
    samples:  how answers to them are drawn, as the recipe says
    majority: of texts with labels, the most frequent class in training (of a file: in it)
    """

    rows: TextRows | LabelRows | PreferenceRows
    words: str
    samples: SampleSettings = field(default_factory=SampleSettings)
    majority: int = 0


def scored_data(scoring: Scoring, on: str | None, split: Split) -> ScoredData:
    """The rows of a recipe's `split`, of the model's own run where `on` is None, or all of "KIND:PATH", as the model
    reads them.

    UserError where there is no such kind, recipe or split, or they are not for a model of this kind; errors of the data
    as they are read.
    """
    if (named := kind_and_place(on)) is None:
        return _of_recipe(scoring, on, split)
    kind, path = named
    check_kind(scoring.opened, kind, f"--on {on}")
    return _READERS[kind](scoring.opened, path, str(on), scoring.context)


def kind_and_place(on: str | None) -> tuple[str, str] | None:
    """("corpus", "book.txt") of "corpus:book.txt"; None for a recipe. UserError for a kind that there is not."""
    kind, colon, place = (on or "").partition(":")
    if on is None or Path(on).exists() or not (colon or kind in DEFAULT_PLACES):
        return None
    if kind in SCORED_BY:
        return kind, place
    if "/" in kind or "\\" in place:  # a recipe's path that has a colon in it
        return None
    raise UserError(
        f"--on {on}: there is no kind {kind!r}{nearest(kind, list(SCORED_BY))}; wanted {', '.join(SCORED_BY)}"
    )


def check_kind(opened: OpenModel, kind: str, words: str) -> None:
    """UserError where data of this kind, `words`, are not for a model of the opened one's."""
    if opened.task in SCORED_BY[kind]:
        return
    wanted = " or ".join(KINDS[task] for task in SCORED_BY[kind])
    fitting = [each for each, tasks in SCORED_BY.items() if opened.task in tasks and each not in DEFAULT_PLACES]
    raise UserError(
        f"{words}: data of kind {kind} are for {wanted}, and {opened.name} is {KINDS[opened.task]}, which is scored on "
        f"{', '.join(f'{each}:FILE' for each in fitting)} or a recipe of such data"
    )


def own_recipe(opened: OpenModel) -> Path | None:
    """The recipe of the run in which a checkpoint lies; None where it lies in none."""
    recipe = opened.folder.resolve().parent.parent / RECIPE
    return recipe if recipe.is_file() else None


def _of_recipe(scoring: Scoring, on: str | None, split: Split) -> ScoredData:
    opened = scoring.opened
    recipe = load_recipe(_require_own_recipe(opened) if on is None else on)
    words = f"{recipe.name}, {split}"
    check_kind(opened, recipe.data.kind, words)
    shape = opened.model.shape
    start = Start(
        opened.name, opened.folder, shape, opened.require_tokenizer(), opened.template, opened.labels, continued=True
    )
    context = min(recipe.model.numbers().get("context", scoring.context), scoring.context)
    data = prepare(_with_context(recipe, context), scoring.progress, start)
    if data.tokenizer.vocab_size > shape.vocab_size:
        raise UserError(f"{recipe.name}: its template needs tokens that {opened.name} has not; name another recipe")
    if split not in data.splits:
        raise UserError(f"{recipe.name} has no test set; --split validation is there")
    match recipe.data.kind:
        case "labels":
            labelled = data.labelled()
            return ScoredData(labelled[split], words, majority=labelled["train"].majority)
        case "preferences":
            return ScoredData(data.pairs()[split], words, recipe.samples)
        case _:
            return ScoredData(data.text()[split], words, recipe.samples)


def _with_context(recipe: Recipe, context: int) -> Recipe:
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"context": context})})


def _require_own_recipe(opened: OpenModel) -> Path:
    if (recipe := own_recipe(opened)) is None:
        raise RunError(
            f"{opened.name}: is no run, so it has no held-out data of its own; --on RECIPE or --on corpus:FILE says "
            "what it is to be scored on"
        )
    return recipe


def _corpus(opened: OpenModel, path: str, words: str, context: int) -> ScoredData:
    tokens = read_text_tokens(build(SourceSettings, {"path": path}, "corpus"), opened.require_tokenizer())
    return ScoredData(ScoredWindows(tokens, context), words)


def _dialogues(opened: OpenModel, path: str, words: str, context: int) -> ScoredData:
    source = build(DialogueSourceSettings, {"path": path}, "dialogues")
    return ScoredData(read_all(source, opened.require_tokenizer(), _template(opened), context=context), words)


def _labels(opened: OpenModel, path: str, words: str, context: int) -> ScoredData:
    assert opened.labels
    source = build(LabelSourceSettings, {"path": path}, "labels")
    _check_columns(LabelSource(source))
    rows = read_labelled(
        source, opened.require_tokenizer(), context=context, labels=opened.labels, separator=separator_of(opened)
    )
    return ScoredData(rows, words, majority=rows.majority)


def _preferences(opened: OpenModel, path: str, words: str, context: int) -> ScoredData:
    source = build(PreferenceSourceSettings, {"path": path}, "preferences")
    rows = read_preferences(
        source, opened.require_tokenizer(), _template(opened), context=context,
        targets="last" if opened.task == "reward" else "answers",
    )  # fmt: skip
    return ScoredData(rows, words)


_READERS: dict[str, Callable[[OpenModel, str, str, int], ScoredData]] = {
    "corpus": _corpus, "dialogues": _dialogues, "labels": _labels, "preferences": _preferences
}  # fmt: skip


def _template(opened: OpenModel) -> Template:
    return opened.template or Template.named("eos", opened.require_tokenizer().eos)


def _check_columns(source: LabelSource) -> None:
    """DataError, with where to say it, where a table's columns are not found: the command line cannot name them."""
    if format_of(source.files[0]) not in TABLES:
        return
    try:
        _ = source.columns
    except DataError as error:
        raise DataError(
            f'{error}. They are named in a recipe with data.kind = "labels": its [[data.sources]] have the path and '
            "these keys, and --on RECIPE scores it"
        ) from error
