"""Text → tokenizer → tokens on disk → rows, as the recipe says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
from filelock import FileLock

from gptlab.data.batch import Rows, TextRows, ValuedRows
from gptlab.data.corpus import CorpusSettings, prepare_corpus, text_fingerprint, training_documents
from gptlab.data.counts import SourceCounts
from gptlab.data.dialogues import DialogueCounts, DialogueSettings, prepare_dialogues
from gptlab.data.label_rows import LabelRows
from gptlab.data.labels import LabelCounts, LabelSettings, prepare_labels
from gptlab.data.preference_rows import PreferenceRows
from gptlab.data.preferences import PreferenceCounts, PreferenceSettings, Targets, prepare_preferences
from gptlab.data.reading import PrepareProgress
from gptlab.data.splitting import Split
from gptlab.data.windows import ScoredWindows, TrainingWindows
from gptlab.errors import CheckpointError, GptlabError, RecipeError
from gptlab.hub import cache_folder
from gptlab.model.classifier import REWARD
from gptlab.run.checkpoint import verify_folder, write_folder
from gptlab.run.run import Run, run_folder
from gptlab.text.dialogue import Template
from gptlab.text.tokenizer import Tokenizer, TokenizerSettings, resolve_tokenizer
from gptlab.training.progress import Progress
from gptlab.training.recipe import Recipe
from gptlab.training.start import Start, Vocabulary
from gptlab.words import large, number, size

OnProgress = Callable[[PrepareProgress], None]

TOKENIZER_CHARACTERS = 200_000_000
"""At most so much text teaches a tokenizer: more does not change which 50,000 pairs are frequent."""


@dataclass(frozen=True)
class Prepared:
    """A recipe's data, ready to be learned from.

    template:     of dialogues and pairs; None for plain text and labels
    table:        what each source gave
    fingerprints: of each split, by which a second preparation can be told from this one
    folder:       where it is kept; None for texts with labels, which are read anew
    """

    tokenizer: Tokenizer
    template: Template | None
    rows: Rows
    validation: Rows
    test: Rows | None
    table: Sequence[SourceCounts] | Sequence[DialogueCounts] | Sequence[LabelCounts] | Sequence[PreferenceCounts]
    fingerprints: Mapping[Split, str]
    folder: Path | None
    vocabulary: Vocabulary
    bytes_per_token: float
    """UTF-8 bytes of validation text (of dialogues and pairs, of the answers) a token stands for: how well the
    tokenizer fits it."""
    example: str
    """The beginning of the first training row, its tokens divided by ·"""
    separator: str = ""
    """What stands between the two texts of a row with a label."""

    @property
    def splits(self) -> dict[Split, Rows]:
        """The rows of each split that there is."""
        every: dict[Split, Rows | None] = {"train": self.rows, "validation": self.validation, "test": self.test}
        return {split: rows for split, rows in every.items() if rows is not None}

    @property
    def items(self) -> Literal["tokens", "texts", "pairs"]:
        """What a step's weight counts."""
        if isinstance(_without_values(self.rows), PreferenceRows):
            return "pairs"
        return "tokens" if self.vocabulary.labels is None else "texts"

    @property
    def tokens_an_item(self) -> float:
        """Tokens that are read for each item that a step's weight counts: one of a text, all of a text with a label or
        of a pair."""
        if self.items == "tokens":
            return 1.0
        rows = cast(LabelRows | PreferenceRows, _without_values(self.rows))
        return rows.tokens / rows.scored

    @property
    def longest(self) -> int:
        """Positions that a training row takes, at most."""
        return self.pairs()["train"].max_length if self.items == "pairs" else self.rows.context

    def text(self) -> dict[Split, TextRows]:
        """The rows of each split of a text or of dialogues."""
        return {split: cast(TextRows, rows) for split, rows in self.splits.items()}

    def labelled(self) -> dict[Split, LabelRows]:
        """The rows of each split of texts with labels."""
        return {split: cast(LabelRows, _without_values(rows)) for split, rows in self.splits.items()}

    def pairs(self) -> dict[Split, PreferenceRows]:
        """The rows of each split of preferences."""
        return {split: cast(PreferenceRows, _without_values(rows)) for split, rows in self.splits.items()}

    def with_rows(self, rows: Mapping[Split, Rows]) -> Prepared:
        """The same data with these rows, which have more beside them."""
        return replace(self, rows=rows["train"], validation=rows["validation"], test=rows.get("test"))


def _without_values(rows: Rows) -> Rows:
    return rows.inner if isinstance(rows, ValuedRows) else rows


def prepare(recipe: Recipe, progress: Progress, start: Start | None = None, *, runs: Path = Path("runs")) -> Prepared:
    """Reads or trains the tokenizer, tokenizes what is not yet in the cache, and opens the rows. `start`: the recipe's,
    if it has one."""
    tokenizer = (start.tokenizer if start else None) or _tokenizer(recipe, runs, progress)
    with progress.busy("preparing text") as tell:

        def on_progress(now: PrepareProgress) -> None:
            of = f"{now.bytes_read / now.bytes_total:.0%}" if now.bytes_total else size(now.bytes_read)
            tell(f"{now.source}: {of}, {number(now.documents)} documents, {large(now.tokens)} tokens")

        match recipe.data:
            case CorpusSettings():
                prepared, warnings = _corpus(recipe, recipe.data, tokenizer, start, on_progress)
            case DialogueSettings():
                prepared, warnings = _dialogues(recipe, recipe.data, tokenizer, start, on_progress)
            case LabelSettings():
                prepared, warnings = _labels(recipe, recipe.data, tokenizer, start, on_progress)
            case PreferenceSettings():
                prepared, warnings = _preferences(recipe, recipe.data, tokenizer, start, on_progress)
    for warning in warnings:
        progress.say(f"warning: {warning}")
    return prepared


def _corpus(
    recipe: Recipe, settings: CorpusSettings, tokenizer: Tokenizer, start: Start | None, on_progress: OnProgress
) -> tuple[Prepared, list[str]]:
    corpus = prepare_corpus(settings, tokenizer, seed=recipe.seed, on_progress=on_progress)
    for file in corpus.files.values():
        file.verify()
    context = recipe.model.numbers()["context"]
    rows = TrainingWindows(corpus.train, context, recipe.seed)
    ids = rows.batch(np.array([0])).tokens[0].tolist()
    validation = ScoredWindows(corpus.validation, context)
    prepared = Prepared(
        tokenizer,
        start.template if start else None,
        rows,
        validation,
        ScoredWindows(corpus.test, context) if corpus.test else None,
        corpus.table,
        {name: file.checksum for name, file in corpus.files.items()},
        corpus.folder,
        Vocabulary(tokenizer.vocab_size),
        validation.text_bytes / validation.scored,
        "·".join(tokenizer.decode([id]) for id in ids),
    )
    return prepared, corpus.warnings


def _dialogues(
    recipe: Recipe, settings: DialogueSettings, tokenizer: Tokenizer, start: Start | None, on_progress: OnProgress
) -> tuple[Prepared, list[str]]:
    template, tokenizer, vocabulary = _templated(settings.template, tokenizer, start)
    dialogues = prepare_dialogues(
        settings, tokenizer, template, context=recipe.model.numbers()["context"], seed=recipe.seed,
        on_progress=on_progress,
    )  # fmt: skip
    prepared = Prepared(
        tokenizer, template, dialogues.train, dialogues.validation, dialogues.test, dialogues.table,
        dialogues.fingerprints, dialogues.folder, vocabulary,
        dialogues.validation.text_bytes / dialogues.validation.scored, dialogues.train.example(tokenizer),
    )  # fmt: skip
    return prepared, dialogues.warnings


def _preferences(
    recipe: Recipe, settings: PreferenceSettings, tokenizer: Tokenizer, start: Start | None, on_progress: OnProgress
) -> tuple[Prepared, list[str]]:
    template, tokenizer, vocabulary = _templated(settings.template, tokenizer, start)
    targets: Targets = "answers"
    if recipe.objective.kind == "reward":
        targets, vocabulary = "last", replace(vocabulary, labels=REWARD)
    pairs = prepare_preferences(
        settings, tokenizer, template, context=recipe.model.numbers()["context"], targets=targets, seed=recipe.seed,
        on_progress=on_progress,
    )  # fmt: skip
    prepared = Prepared(
        tokenizer, template, pairs.train, pairs.validation, pairs.test, pairs.table, pairs.fingerprints, pairs.folder,
        vocabulary, pairs.validation.answer_bytes / int(pairs.validation.lengths().sum()),
        pairs.train.example(tokenizer),
    )  # fmt: skip
    return prepared, pairs.warnings


def _templated(name: str | None, tokenizer: Tokenizer, start: Start | None) -> tuple[Template, Tokenizer, Vocabulary]:
    """The template of turns, the tokenizer with the tokens that it needs, and what that makes the vocabulary."""
    template, before = _template(name, tokenizer, start), tokenizer.vocab_size
    tokenizer = tokenizer.with_special_tokens(template.special_tokens)
    after = tokenizer.vocab_size
    return template, tokenizer, Vocabulary(after, before if after > before else None)


def _labels(
    recipe: Recipe, settings: LabelSettings, tokenizer: Tokenizer, start: Start | None, on_progress: OnProgress
) -> tuple[Prepared, list[str]]:
    labels = prepare_labels(
        settings, tokenizer, context=recipe.model.numbers()["context"], seed=recipe.seed,
        labels=start.labels if start and start.continued else None, on_progress=on_progress,
    )  # fmt: skip
    text_bytes = sum(len(text.encode()) for texts in labels.validation.texts for text in texts)
    prepared = Prepared(
        tokenizer, None, labels.train, labels.validation, labels.test, labels.table, labels.fingerprints, None,
        Vocabulary(tokenizer.vocab_size, labels=labels.labels), text_bytes / labels.validation.tokens,
        labels.train.example(tokenizer), settings.separator,
    )  # fmt: skip
    return prepared, labels.warnings


def _template(name: str | None, tokenizer: Tokenizer, start: Start | None) -> Template:
    """The one that the recipe names, else the start's, else turns closed by EOS; of a run that continues, its own."""
    if start is not None and start.template is not None and (name is None or start.continued):
        return start.template
    return Template.named(name or "eos", tokenizer.eos)


def _tokenizer(recipe: Recipe, runs: Path, progress: Progress) -> Tokenizer:
    """The recipe's tokenizer. One that is trained sees the training documents alone, and is kept in the cache."""
    settings, data = recipe.tokenizer, recipe.data
    assert settings is not None  # a recipe without one has a start that has
    if settings.from_ and not Path(settings.from_).exists() and (folder := run_folder(settings.from_, runs)):
        return Tokenizer.read(Run.open(folder).checkpoint())
    if settings.train is None:
        return resolve_tokenizer(settings, lambda: ())
    if not isinstance(data, CorpusSettings):
        raise RecipeError(
            f"tokenizer.train = {settings.train}: a tokenizer is trained on a corpus; {data.kind} want one that exists "
            '(from = "gpt2", or a folder) or a start that has one'
        )
    folder = cache_folder() / "tokenizers" / f"{text_fingerprint(data, recipe.seed)}-{settings.train}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            try:
                verify_folder(folder)
            except CheckpointError:  # it is not there, or damaged
                _train_tokenizer(settings, training_documents(data, recipe.seed), folder, progress)
    except OSError as error:
        raise GptlabError(
            f"{folder}: cannot be written: {error.strerror}. Set GPTLAB_CACHE to a folder on another disk."
        ) from error
    return Tokenizer.read(folder)


def _train_tokenizer(settings: TokenizerSettings, texts: Iterator[str], folder: Path, progress: Progress) -> None:
    with progress.busy(f"training a tokenizer of {number(settings.train or 0)} tokens") as tell:
        trained = resolve_tokenizer(settings, lambda: _limited(texts, tell))
    write_folder(folder, trained.save)


def _limited(texts: Iterator[str], tell: Callable[[str], None]) -> Iterator[str]:
    """Texts until together they have TOKENIZER_CHARACTERS."""
    seen = 0
    for text in texts:
        yield text
        seen += len(text)
        tell(f"{large(seen)} characters read")
        if seen >= TOKENIZER_CHARACTERS:
            return
