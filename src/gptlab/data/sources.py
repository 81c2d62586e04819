"""Sources: where text comes from, as a stream of documents.

A source is files (one, a glob, a folder), a data set on the hub, or the documentation that every Python carries.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import ClassVar

from pydantic import Field, field_validator, model_validator

from gptlab.data.documents import Rule, cut
from gptlab.data.places import Place, PlaceSettings, is_used
from gptlab.data.python_docs import EMBEDDED_DOCS, docs_of
from gptlab.data.readers import PLAIN, read_blocks
from gptlab.data.tables import Texts, read_hub, read_table
from gptlab.errors import DataError


class SourceSettings(PlaceSettings):
    """One `[[data.sources]]` of text."""

    PLACES: ClassVar[tuple[str, ...]] = ("path", "hub", "embedded")

    embedded: EMBEDDED_DOCS | None = None
    column: str = "text"
    """The column of a table (.jsonl .csv .tsv .parquet, hub) that is read."""
    document: Rule = "file"
    """What a document is: the whole file (in a table: the whole text of a record), a line, a blank-line block, or
    what begins at each line that `pattern` matches (then a table's records are the lines of one text)."""
    pattern: str | None = None
    repeat: int = Field(1, ge=1)
    limit_documents: int = Field(0, ge=0)
    limit_bytes: int = Field(0, ge=0)
    """UTF-8 bytes of text after which no further document is begun. 0: no limit."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _pattern_where_needed(self) -> SourceSettings:
        if (self.document == "pattern") != (self.pattern is not None):
            raise ValueError('document = "pattern" and pattern = "…" belong together')
        return self


class Source(Place):
    """The documents that some settings mean. Making one reads nothing.

    documents_empty:  documents skipped so far because they are empty, white space or null
    """

    settings: SourceSettings

    def __init__(self, settings: SourceSettings) -> None:
        super().__init__(settings)
        self.documents_empty = 0

    def documents(self) -> Iterator[str]:
        """The documents, streaming. DataError where something cannot be read, or nothing comes out."""
        settings = self.settings
        self.bytes_read = self.documents_empty = 0
        found = given = given_bytes = 0
        for document in self._all_documents():
            found += 1
            if not is_used(found, settings.share):
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
            yield from self._texts_of_table(self._counted(read_hub(self.table, settings.column)))
        elif settings.embedded is not None:
            yield from ((text or "",) for text in self._counted(text for _, text in docs_of(settings.embedded)))

    def _texts_of_files(self) -> Iterator[Iterable[str]]:
        for path, format, progress in self.files_in_turn():
            if format in PLAIN:
                yield (block.text for block in read_blocks(path, progress))
            else:
                yield from self._texts_of_table(read_table(path, format, self.settings.column, progress))

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


def _utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
