"""Text → tokenizer → tokens on disk → rows, as the recipe says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from gptlab.data.corpus import (
    Corpus,
    prepare_corpus,
    text_fingerprint,
    training_documents,
)
from gptlab.data.reading import PrepareProgress
from gptlab.data.windows import ScoredWindows, TrainingWindows
from gptlab.errors import CheckpointError, GptlabError
from gptlab.hub import cache_folder
from gptlab.run.checkpoint import verify_folder, write_folder
from gptlab.text.tokenizer import Tokenizer, resolve_tokenizer
from gptlab.training.progress import Progress
from gptlab.training.recipe import Recipe
from gptlab.words import large, number, size

TOKENIZER_CHARACTERS = 200_000_000
"""At most so much text teaches a tokenizer: more does not change which 50,000 pairs are frequent."""


@dataclass(frozen=True)
class Prepared:
    """A recipe's data, ready to be learned from."""

    tokenizer: Tokenizer
    corpus: Corpus
    rows: TrainingWindows
    validation: ScoredWindows
    test: ScoredWindows | None

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of validation text a token stands for: how well the tokenizer fits it."""
        return self.validation.text_bytes / self.validation.scored


def prepare(recipe: Recipe, progress: Progress) -> Prepared:
    """Reads or trains the tokenizer, tokenizes what is not yet in the cache, and opens the rows."""
    tokenizer = _tokenizer(recipe, progress)
    with progress.busy("preparing text") as tell:

        def on_progress(now: PrepareProgress) -> None:
            of = f"{now.bytes_read / now.bytes_total:.0%}" if now.bytes_total else size(now.bytes_read)
            tell(f"{now.source}: {of}, {number(now.documents)} documents, {large(now.tokens)} tokens")

        corpus = prepare_corpus(recipe.data, tokenizer, seed=recipe.seed, on_progress=on_progress)
    with progress.busy("checking the tokens"):
        for file in corpus.files.values():
            file.verify()
    for warning in corpus.warnings:
        progress.say(f"warning: {warning}")
    context = recipe.model.numbers()["context"]
    return Prepared(
        tokenizer,
        corpus,
        TrainingWindows(corpus.train, context, recipe.seed),
        ScoredWindows(corpus.validation, context),
        ScoredWindows(corpus.test, context) if corpus.test else None,
    )


def _tokenizer(recipe: Recipe, progress: Progress) -> Tokenizer:
    """The recipe's tokenizer. One that is trained sees the training documents alone, and is kept in the cache."""
    if recipe.tokenizer.train is None:
        return resolve_tokenizer(recipe.tokenizer, lambda: ())
    folder = cache_folder() / "tokenizers" / f"{text_fingerprint(recipe.data, recipe.seed)}-{recipe.tokenizer.train}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            try:
                verify_folder(folder)
            except CheckpointError:  # it is not there, or damaged
                _train_tokenizer(recipe, folder, progress)
    except OSError as error:
        raise GptlabError(
            f"{folder}: cannot be written: {error.strerror}. Set GPTLAB_CACHE to a folder on another disk."
        ) from error
    return Tokenizer.read(folder)


def _train_tokenizer(recipe: Recipe, folder: Path, progress: Progress) -> None:
    with progress.busy(f"training a tokenizer of {number(recipe.tokenizer.train or 0)} tokens") as tell:
        texts = training_documents(recipe.data, recipe.seed)
        trained = resolve_tokenizer(recipe.tokenizer, lambda: _limited(texts, tell))
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
