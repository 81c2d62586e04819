"""Sources: where text comes from, as a stream of documents.

A source is files (one, a glob, a folder), a data set on the hub, or the documentation that every Python carries.
"""

from __future__ import annotations

import glob
import hashlib
import json
import platform
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from gptlab.data.documents import Rule, cut
from gptlab.data.python_docs import python_docs
from gptlab.data.readers import PLAIN, SUPPORTED, format_of, read_blocks
from gptlab.data.tables import Texts, read_hub, read_table
from gptlab.errors import DataError, nearest
from gptlab.hub import is_hub_name, resolve_revision
from gptlab.settings import Section, plain


class SourceSettings(Section):
    """One `[[data.sources]]`: exactly one of path, hub and embedded says where its text is."""

    path: str | None = Field(None, min_length=1)
    """A file, a glob, or a folder, which stands for every file below it that can be read."""
    hub: str | None = Field(None, min_length=1)
    """A data set's name on the hub."""
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    embedded: Literal["python-docs"] | None = None
    name: str | None = Field(None, min_length=1)
    column: str = "text"
    """The column of a table (.jsonl .csv .tsv .parquet, hub) that is read."""
    document: Rule = "file"
    """What a document is: the whole file (in a table: the whole text of a record), a line, a blank-line block, or
    what begins at each line that `pattern` matches (then a table's records are the lines of one text)."""
    pattern: str | None = None
    share: float = Field(1.0, gt=0, le=1)
    """The fraction of the documents that is used, always the same ones."""
    repeat: int = Field(1, ge=1)
    limit_documents: int = Field(0, ge=0)
    limit_bytes: int = Field(0, ge=0)
    """UTF-8 bytes of text after which no further document is begun. 0: no limit."""

    @field_validator("hub")
    @classmethod
    def _is_on_the_hub(cls, hub: str | None) -> str | None:
        if hub is not None and not is_hub_name(hub):
            raise ValueError(f"{hub!r} is no name on the hub: wanted OWNER/NAME; a file or folder is a path")
        return hub

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _one_place(self) -> SourceSettings:
        given = [key for key in ("path", "hub", "embedded") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"a source is one of path, hub and embedded; given: {' and '.join(given) or 'none'}")
        if self.hub is None and (self.config is not None or self.revision is not None):
            raise ValueError("config and revision belong to a hub source")
        if (self.document == "pattern") != (self.pattern is not None):
            raise ValueError('document = "pattern" and pattern = "…" belong together')
        return self


class Source:
    """The documents that some settings mean. Making one reads nothing.

    bytes_read:       bytes read so far by documents(), of the files on disk (of the text, where there are none)
    documents_empty:  documents skipped so far because they are empty, white space or null
    """

    def __init__(self, settings: SourceSettings) -> None:
        self.settings = settings
        self.bytes_read = 0
        self.documents_empty = 0

    @property
    def name(self) -> str:
        """The name given, else that of the file or folder, the glob, the data set, or the embedded text."""
        settings = self.settings
        if settings.path is not None and settings.name is None:
            return settings.path if glob.has_magic(settings.path) else Path(settings.path).resolve().name
        return settings.name or settings.hub or str(settings.embedded)

    def documents(self) -> Iterator[str]:
        """The documents, streaming. DataError where something cannot be read, or nothing comes out."""
        settings = self.settings
        self.bytes_read = self.documents_empty = 0
        found = given = given_bytes = 0
        for document in self._all_documents():
            found += 1
            if not _is_used(found, settings.share):
                continue
            yield document
            given += 1
            given_bytes += _utf8_length(document) if settings.limit_bytes else 0
            if given == settings.limit_documents or given_bytes > settings.limit_bytes > 0:
                return
        if not given:
            empty = self.documents_empty
            none = f"all of its documents are empty ({empty})" if empty else "it has no documents"
            none = f"share = {settings.share} keeps none of its {found} documents" if found else none
            raise DataError(f"source {self.name!r} yields nothing: {none}. Mend it or take it out.")

    def fingerprint(self) -> str:
        """16 hex digits that change when the settings or the text do: files by name, size and time of change,
        the hub by its commit (which is asked there), python-docs by the version of Python."""
        settings = self.settings
        if settings.path is not None:
            stats = [(path.as_posix(), path.stat()) for path in self._files]
            content: object = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        else:
            content = self._revision if settings.hub is not None else platform.python_version()
        return hashlib.sha256(json.dumps([plain(settings), content]).encode()).hexdigest()[:16]

    def bytes_total(self) -> int | None:
        """What bytes_read comes to at the end: the size of the files; None where it is not known."""
        if self.settings.path is None:
            return None
        return sum(path.stat().st_size for path in self._files)

    @cached_property
    def _files(self) -> list[Path]:
        return find_files(self.settings.path or "")

    @cached_property
    def _revision(self) -> str:
        return resolve_revision(self.settings.hub or "", revision=self.settings.revision, kind="dataset")

    def _all_documents(self) -> Iterator[str]:
        for text in self._texts():
            for document in cut(text, self.settings.document, self.settings.pattern):
                if document and not document.isspace():
                    yield document
                else:
                    self.documents_empty += 1

    def _texts(self) -> Iterator[Iterable[str]]:
        """Each text that the document rule applies to, in blocks of whole lines."""
        settings = self.settings
        if settings.path is not None:
            yield from self._texts_of_files()
        elif settings.hub is not None:
            records = read_hub(settings.hub, settings.config, settings.split, self._revision, settings.column)
            yield from self._texts_of_table(self._counted(records))
        else:
            yield from ((text or "",) for text in self._counted(text for _, text in python_docs()))

    def _texts_of_files(self) -> Iterator[Iterable[str]]:
        before = 0

        def progress(position: int) -> None:
            self.bytes_read = before + position

        for path in self._files:
            format = format_of(path) or ""
            if format in PLAIN:
                yield (block.text for block in read_blocks(path, progress))
            else:
                yield from self._texts_of_table(read_table(path, format, self.settings.column, progress))
            before += path.stat().st_size

    def _texts_of_table(self, records: Texts) -> Iterator[Iterable[str]]:
        """A table's records are texts of their own; but where a pattern tells the line at which a document begins,
        they are the lines of one text (WikiText on the hub has a line of an article in each record)."""
        if self.settings.document == "pattern":
            yield (text if text.endswith("\n") else f"{text}\n" for text in (record or "" for record in records))
        else:
            yield from ((record or "",) for record in records)

    def _counted(self, texts: Texts) -> Texts:
        for text in texts:
            self.bytes_read += _utf8_length(text or "")
            yield text


def find_files(path: str) -> list[Path]:
    """The files that a path, glob or folder means, in the order of their names; DataError where there are none.

    In a folder, files that are no text (and hidden ones) are passed over; a glob or a name must mean text.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        below = (file for file in sorted(place.rglob("*")) if not _is_hidden(file.relative_to(place)))
        if files := [file for file in below if format_of(file) and file.is_file()]:
            return files
        raise DataError(f"{path}: a folder with no file in it that is read: {SUPPORTED}")
    files = [place] if place.exists() else [Path(name) for name in sorted(glob.glob(str(place), recursive=True))]
    files = [file for file in files if not file.is_dir()]
    if not files:
        if glob.has_magic(path):
            raise DataError(f"{path}: no file matches; looked from {Path.cwd()}")
        raise DataError(f"{path}: there is no such file or folder{_neighbour(place)}; looked from {Path.cwd()}")
    if unread := [file for file in files if not format_of(file)]:
        raise DataError(f"{unread[0]}: {unread[0].suffix or 'a file without suffix'} is not read; wanted {SUPPORTED}")
    return files


def _neighbour(place: Path) -> str:
    folder = place.parent
    return nearest(place.name, [entry.name for entry in folder.iterdir()] if folder.is_dir() else [])


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _is_used(number: int, share: float) -> bool:
    """Whether the document of this number belongs to the share: by a hash, keyed apart from every other choice."""
    if share == 1:
        return True
    digest = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=8, key=b"share of a source").digest()
    return int.from_bytes(digest, "little") < share * 2**64


def _utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
