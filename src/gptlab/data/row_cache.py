"""Where prepared rows are kept, of dialogues as of preferences, and found again: by all that they depend on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from gptlab.data.locking import only_one
from gptlab.data.row_counts import RowCounts, check_rows
from gptlab.data.row_file import Header, RowFile
from gptlab.data.splitting import Shares, Split
from gptlab.data.token_writer import sync
from gptlab.errors import DataError, GptlabError
from gptlab.hub import cache_folder

VERSION = 1
"""Of what stands in a folder; another one is prepared anew."""
COUNTS = "counts.json"

C = TypeVar("C", bound=RowCounts)


class Preparation(Protocol[C]):
    """What the cache knows of the making of rows (row_preparing.py). kind: what they are of, in the plural."""

    @property
    def kind(self) -> str: ...
    @property
    def splits(self) -> Sequence[Split]: ...
    @property
    def shares(self) -> Shares: ...

    def identity(self) -> list[Any]: ...
    def run(self, folder: Path) -> None: ...
    def table(self) -> list[C]: ...
    def finish(self) -> Mapping[Split, Header]: ...
    def close(self) -> None: ...
    def report(self) -> None: ...


@dataclass(frozen=True)
class Prepared(Generic[C]):
    """What stands in a folder of the cache."""

    folder: Path
    files: dict[Split, RowFile]
    table: list[C]


def prepared(
    preparation: Preparation[C], name: str, counts: Callable[..., C], cache: Path | None = None
) -> Prepared[C]:
    """The rows that a preparation makes: opened where they are there, else made; another process that wants the same
    waits.

    name:   of the folder in the cache that such rows stand in; `cache`: a folder in place of the usual one
    counts: makes a row of the table of what is stored of it

    DataError as the preparation's `run`, and where a source or a share gives no row; GptlabError where the cache cannot
    be written.
    """
    folder = (cache or cache_folder()) / name / _fingerprint(preparation)
    with suppress(DataError):
        return _open(folder, preparation.splits, counts)
    try:
        with only_one(folder, preparation.report):
            with suppress(DataError):
                return _open(folder, preparation.splits, counts)
            _make(folder, preparation)
    except OSError as error:
        raise GptlabError(
            f"{error.filename or folder}: cannot be written: {error.strerror}. Make room, or set GPTLAB_CACHE to a "
            "folder on another disk."
        ) from error
    return _open(folder, preparation.splits, counts)


def _fingerprint(preparation: Preparation[C]) -> str:
    """16 hex digits of all that the rows depend on."""
    return blake2b(json.dumps([VERSION, *preparation.identity()]).encode(), digest_size=8).hexdigest()


def _make(folder: Path, preparation: Preparation[C]) -> None:
    """Makes `folder`: under another name until it is whole."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        headers, table = _write(partial, preparation)
        stored = {
            "splits": {split: asdict(header) for split, header in headers.items()},
            "table": [vars(row) for row in table],
        }
        with (partial / COUNTS).open("wb") as file:
            file.write(json.dumps(stored, indent=1, ensure_ascii=False).encode())
            sync(file)
        shutil.rmtree(folder, ignore_errors=True)  # it is damaged, else it would have been opened
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # nothing goes on from a part, and a full disk needs the room


def _write(folder: Path, preparation: Preparation[C]) -> tuple[Mapping[Split, Header], list[C]]:
    """The rows, into `folder`; what is to be said of each split, and the table."""
    try:
        preparation.run(folder)
        table = preparation.table()
        check_rows(table, preparation.shares.held, preparation.kind)
        return preparation.finish(), table
    finally:
        preparation.close()


def _open(folder: Path, splits: Sequence[Split], counts: Callable[..., C]) -> Prepared[C]:
    """What is in `folder`; DataError where there is nothing, or it is damaged."""
    try:
        stored = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
        headers = {split: Header(**stored["splits"][split]) for split in splits}
        table = [counts(**row) for row in stored["table"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / COUNTS}: cannot be read: {error}") from error
    return Prepared(folder, {split: RowFile(folder, split, header) for split, header in headers.items()}, table)
