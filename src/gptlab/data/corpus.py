"""The `[data]` section of a corpus, and its preparation: sources → a token file a split, in a cache.

    corpus = prepare_corpus(settings, tokenizer)
    rows = TrainingWindows(corpus.train, context=128, seed=1337)

A prepared corpus is found again by its fingerprint (settings, sources, tokenizer, and the seed where a share is
held out); nothing is ever prepared twice.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from gptlab.data.counts import SourceCounts, check_counts, warnings_about
from gptlab.data.divided import DividedSettings, SplitSettings
from gptlab.data.locking import only_one
from gptlab.data.preparing import Preparation
from gptlab.data.reading import Part, PrepareProgress, Reading, make_parts
from gptlab.data.sources import SourceSettings
from gptlab.data.splitting import SPLITS, Shares, Split
from gptlab.data.token_file import VERSION, TokenFile
from gptlab.data.token_writer import ContinueError
from gptlab.errors import DataError, GptlabError
from gptlab.hub import cache_folder
from gptlab.settings import plain
from gptlab.text.tokenizer import Tokenizer

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class TextSplitSettings(SplitSettings[SourceSettings]):
    """`[data.validation]`, `[data.test]` of a corpus. A name of its own, so that a recipe can be pickled."""


class CorpusSettings(DividedSettings[SourceSettings]):
    """`[data]` with kind = "corpus"."""

    kind: Literal["corpus"] = "corpus"
    validation: TextSplitSettings = TextSplitSettings(share=0.05)
    test: TextSplitSettings | None = None

    @model_validator(mode="after")
    def _scored_once(self) -> Self:
        if any(source.repeat != 1 for section in self.held_out().values() for source in section.sources or ()):
            raise ValueError("repeat is for training: validation and test score each token once")
        return self


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus: its token files, what each source gave, and what a person should know about it."""

    folder: Path
    train: TokenFile
    validation: TokenFile
    test: TokenFile | None
    table: list[SourceCounts]
    warnings: list[str]

    @property
    def files(self) -> dict[Split, TokenFile]:
        """The token files there are, by split."""
        files: dict[Split, TokenFile | None] = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: file for split, file in files.items() if file}


def prepare_corpus(
    settings: CorpusSettings,
    tokenizer: Tokenizer,
    *,
    seed: int = 0,
    cache: Path | None = None,
    on_progress: Callable[[PrepareProgress], None] | None = None,
) -> Corpus:
    """The corpus of these settings: opened where it is prepared, else prepared (or its preparation continued).

    `seed` decides which documents are held out where that is a share. `on_progress` is called at least twice a
    second. A second process that asks for the same corpus waits for the first.

    Raises DataError where a source is missing or gives nothing, validation or test come out empty, or training
    overlaps them (data.overlap); GptlabError where the cache cannot be written. After a kill or a full disk the
    same call continues where it was.
    """
    parts = _parts(settings)
    shares = settings.keyed_shares(seed)
    folder = (
        (cache or cache_folder()) / "corpora" / _fingerprint(settings, parts, shares, tokenizer.fingerprint, VERSION)
    )
    if corpus := _find(folder, settings, parts, tokenizer):
        return corpus
    reading = Reading(parts, shares, on_progress or (lambda progress: None))
    try:
        with only_one(folder, lambda: reading.report(0, 0)):
            if _find(folder, settings, parts, tokenizer) is None:
                _prepare(folder, settings, reading, tokenizer)
    except OSError as error:
        raise _cannot_write(folder, reading, error) from error
    return _open(folder, settings, parts, tokenizer)


def training_documents(settings: CorpusSettings, seed: int = 0) -> Iterator[str]:
    """The text of the training side alone: what a tokenizer may learn from. `repeat` does not count here."""
    reading = Reading(_parts(settings), settings.keyed_shares(seed), lambda progress: None)
    return (piece.text for piece in reading.pieces() if piece.split == "train")


def text_fingerprint(settings: CorpusSettings, seed: int = 0) -> str:
    """16 hex digits of what `training_documents` depends on."""
    return _fingerprint(settings, _parts(settings), settings.keyed_shares(seed))


def _parts(settings: CorpusSettings) -> list[Part]:
    """All sources; those of training first, as the divider numbers them."""
    parts = make_parts(settings.sources, "train")
    for split, section in settings.held_out().items():
        parts += make_parts(section.sources or (), split)
    return parts


def _fingerprint(settings: CorpusSettings, parts: Sequence[Part], shares: Shares, *more: str | int) -> str:
    """16 hex digits of the text, how it is divided, and whatever `more` something made from it depends on."""
    what = [plain(settings), [part.source.fingerprint() for part in parts], shares.seed, *more]
    return blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=8).hexdigest()


def _find(folder: Path, settings: CorpusSettings, parts: Sequence[Part], tokenizer: Tokenizer) -> Corpus | None:
    """The corpus in `folder`, or None where there is none or it is damaged (then it is prepared again)."""
    with suppress(DataError):
        return _open(folder, settings, parts, tokenizer)
    return None


def _open(folder: Path, settings: CorpusSettings, parts: Sequence[Part], tokenizer: Tokenizer) -> Corpus:
    files = {split: TokenFile.open(folder / f"{split}.tokens", tokenizer) for split in settings.splits()}
    table = [SourceCounts(**counts) for file in files.values() for counts in file.header["sources"]]
    limits = {part.name: part.source.settings.limit_documents for part in parts if part.split == "train"}
    warnings = warnings_about(table, limits)
    return Corpus(folder, files["train"], files["validation"], files.get("test"), table, warnings)


def _prepare(folder: Path, settings: CorpusSettings, reading: Reading, tokenizer: Tokenizer) -> None:
    """Makes `folder`: under another name until it is whole."""
    partial = folder.with_suffix(".partial")
    try:
        try:
            _write(partial, settings, reading, tokenizer)
        except ContinueError:  # the text is not what it was, or the disk lost something
            shutil.rmtree(partial)
            _write(partial, settings, reading, tokenizer)
    except DataError:
        shutil.rmtree(partial)  # with other data or settings it will be another corpus
        raise
    if folder.exists():  # damaged, else it would have been opened
        shutil.rmtree(folder)
    partial.rename(folder)
    for path in folder.iterdir():
        if path.suffix != ".tokens":  # what was needed only to continue
            path.unlink()


def _write(folder: Path, settings: CorpusSettings, reading: Reading, tokenizer: Tokenizer) -> None:
    names = [part.name for part in reading.parts]
    preparation = Preparation(folder, settings.splits(), names, tokenizer)
    try:
        preparation.run(
            reading.pieces(),
            held=reading.divider.held,
            drop_overlap=settings.overlap == "drop",
            report=lambda: reading.report(preparation.documents, preparation.tokens),
        )
        preparation.repeat([source.repeat for source in settings.sources])
        table = _table(preparation, reading)
        check_counts(table, settings.shares())
        for split, writer in preparation.writers.items():
            writer.finish(_header(split, [counts for counts in table if counts.split == split], tokenizer))
    finally:
        preparation.close()


def _table(preparation: Preparation, reading: Reading) -> list[SourceCounts]:
    table = []
    for number, part in enumerate(reading.parts):
        divided_by = reading.divider.divided_by(number) if part.split == "train" else "whole"
        for split in SPLITS:
            counts = preparation.counts(number, split)
            if split == part.split or any(counts.values()):
                empty = part.source.documents_empty if split == part.split else 0
                table.append(SourceCounts(name=part.name, split=split, empty=empty, divided_by=divided_by, **counts))
    return table


def _header(split: Split, sources: Sequence[SourceCounts], tokenizer: Tokenizer) -> dict[str, object]:
    return {
        "split": split,
        "tokenizer": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "text_bytes": sum(counts.bytes for counts in sources),
        "words": sum(counts.words for counts in sources),
        "sources": [asdict(counts) for counts in sources],
    }


def _cannot_write(folder: Path, reading: Reading, error: OSError) -> GptlabError:
    """What to say of an error of the operating system while `folder` was made."""
    partial = folder.with_suffix(".partial")
    advice = "Set GPTLAB_CACHE to a folder on another disk"
    if error.errno not in DISK_FULL:
        return GptlabError(f"{error.filename or partial}: cannot be read or written: {error.strerror}. {advice}.")
    written = sum(file.stat().st_size for file in partial.glob("*"))
    free = shutil.disk_usage(folder.parent).free
    share = reading.share_read()
    needed = f"about {written * (1 - share) / share:,.0f} bytes more" if share else "an unknown number of bytes more"
    return GptlabError(
        f"{partial}: the disk is full: {needed} are needed after {written:,}, {free:,} are free. Make room, and the "
        f"same command continues where it was; or: {advice[0].lower()}{advice[1:]}."
    )
