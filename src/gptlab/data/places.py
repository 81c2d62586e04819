"""Places: where a source's records are, in files, on the hub, or in Python itself; and what a recipe says of that."""

from __future__ import annotations

import glob
import hashlib
import json
import platform
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, TypeVar

from pydantic import AfterValidator, Field, field_validator, model_validator

from gptlab.data.readers import SUPPORTED, Progress, format_of
from gptlab.data.tables import HubTable
from gptlab.errors import DataError, nearest
from gptlab.hub import is_hub_name, resolve_revision
from gptlab.settings import Section, plain


class PlaceSettings(Section):
    """What every kind of source has: exactly one of PLACES says where its records are."""

    PLACES: ClassVar[tuple[str, ...]] = ("path", "hub")

    path: str | None = Field(None, min_length=1)
    """A file, a glob, or a folder, which stands for every file below it that can be read."""
    hub: str | None = Field(None, min_length=1)
    """A data set's name on the hub."""
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    files: str | None = Field(None, min_length=1)
    """Of the data set only the files that match this glob; their split is then "train"."""
    name: str | None = Field(None, min_length=1)
    share: float = Field(1.0, gt=0, le=1)
    """The fraction of it that is used, always the same one."""

    @field_validator("hub")
    @classmethod
    def _is_on_the_hub(cls, hub: str | None) -> str | None:
        if hub is not None and not is_hub_name(hub):
            raise ValueError(f"{hub!r} is no name on the hub: wanted OWNER/NAME; a file or folder is a path")
        return hub

    @model_validator(mode="after")
    def _one_place(self) -> PlaceSettings:
        given = [key for key in self.PLACES if getattr(self, key) is not None]
        if len(given) != 1:
            *most, last = self.PLACES
            found = " and ".join(given) or "none"
            raise ValueError(f"a source is one of {', '.join(most)} and {last}; given: {found}")
        if self.hub is None and not (self.config is self.revision is self.files is None):
            raise ValueError("config, revision and files belong to a hub source")
        return self


P = TypeVar("P", bound=PlaceSettings)


def _distinct(sources: tuple[P, ...]) -> tuple[P, ...]:
    names = [source.name for source in sources if source.name]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two sources are named {twice!r}: give each a name of its own")
    return sources


SourceList = Annotated[tuple[P, ...], Field(strict=False, min_length=1), AfterValidator(_distinct)]
"""The sources of a split, no two of which are given the same name."""


class Place:
    """What some settings mean: files, a data set, or a text that every Python carries. Making one reads nothing.

    bytes_read: bytes read so far, of the files on disk (of the text, where there are none)
    embedded:   the name of what Python carries, None for another place
    """

    def __init__(self, settings: PlaceSettings) -> None:
        self.settings = settings
        self.embedded: str | None = getattr(settings, "embedded", None)  # not every kind of source has it
        self.bytes_read = 0

    @property
    def name(self) -> str:
        """The name given, else that of the file or folder, the glob, the data set, or the embedded text."""
        settings = self.settings
        if settings.path is not None and settings.name is None:
            return settings.path if glob.has_magic(settings.path) else Path(settings.path).resolve().name
        return settings.name or settings.hub or self.embedded or ""

    @cached_property
    def files(self) -> list[Path]:
        return find_files(self.settings.path or "")

    @cached_property
    def revision(self) -> str:
        """The commit of the data set on the hub, which is asked there."""
        return resolve_revision(self.settings.hub or "", revision=self.settings.revision, kind="dataset")

    @property
    def table(self) -> HubTable:
        """The data set on the hub."""
        settings = self.settings
        return HubTable(settings.hub or "", settings.config, settings.split, self.revision, settings.files)

    def files_in_turn(self) -> Iterator[tuple[Path, str, Progress]]:
        """Each file with its format, and who is to be told how far in it reading is; bytes_read follows."""
        before = 0

        def progress(position: int) -> None:
            self.bytes_read = before + position

        for path in self.files:
            yield path, format_of(path) or "", progress
            before += path.stat().st_size

    def fingerprint(self) -> str:
        """16 hex digits that change when the settings or the records do: files by name, size and time of change, the
        hub by its commit, what Python carries by Python's version."""
        return hashlib.sha256(json.dumps([plain(self.settings), self._state()]).encode()).hexdigest()[:16]

    def bytes_total(self) -> int | None:
        """What bytes_read comes to at the end: the size of the files; None where it is not known."""
        return sum(path.stat().st_size for path in self.files) if self.settings.path is not None else None

    def _state(self) -> object:
        if self.embedded is not None:
            return platform.python_version()
        if self.settings.path is None:
            return self.revision
        stats = [(path.as_posix(), path.stat()) for path in self.files]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


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


def distinct_names(places: Sequence[Place]) -> list[str]:
    """A name for each; those that derive the same one from their paths are numbered: books, books-2, …"""
    names: list[str] = []
    given = {place.settings.name for place in places}
    for place in places:
        name, number = place.name, 1
        while not place.settings.name and (name in given or name in names):
            number += 1
            name = f"{place.name}-{number}"
        names.append(name)
    return names


def bytes_total(places: Iterable[Place]) -> int | None:
    """What there is to read in all of them; None where it is not known of one."""
    totals = [place.bytes_total() for place in places]
    return None if None in totals else sum(total for total in totals if total is not None)


def is_used(number: int, share: float) -> bool:
    """Whether the record of this number belongs to the share: by a hash, keyed apart from every other choice."""
    if share == 1:
        return True
    digest = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=8, key=b"share of a source").digest()
    return int.from_bytes(digest, "little") < share * 2**64
