"""The records of a zero-shot test: in tables, an archive of JSON lines, lines of text, or on the hub."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gptlab.data.places import find_files
from gptlab.data.readers import TABLES, file_errors, format_of
from gptlab.data.tables import HubTable, Record, read_hub_records, read_records
from gptlab.errors import DataError
from gptlab.hub import is_hub_name, resolve_revision

TextReader = Callable[[Path], Iterator[Record]]


def records_at(
    place: str | Path, columns: Sequence[str], *, split: str, files: str | None = None, text: TextReader | None = None
) -> Iterator[Record]:
    """The records at `place`: a file, a folder, a .zip of .jsonl files, or OWNER/NAME on the hub.

    columns:      what each record has
    split, files: of a data set on the hub (see HubTable)
    text:         what reads a .txt file, where such a file can be one

    DataError where there is nothing that can be read; GptlabError where the hub cannot be reached.
    """
    path = Path(place).expanduser()
    if not path.exists() and "/" in str(place) and is_hub_name(str(place)):
        repo = str(place)
        revision = resolve_revision(repo, kind="dataset")
        yield from read_hub_records(HubTable(repo, None, split, revision, files), columns)
    elif path.suffix.lower() == ".zip" and path.is_file():
        yield from _zipped(path, columns)
    else:
        formats = (*TABLES, ".txt") if text else TABLES
        found = [file for file in find_files(str(place)) if format_of(file) in formats]
        if not found:
            raise DataError(f"{place}: has none of what was looked for: {', '.join(formats)}")
        for file in found:
            if text and format_of(file) == ".txt":
                yield from text(file)
            else:
                yield from read_records(file, format_of(file) or "", columns, lambda position: None)


def _zipped(path: Path, columns: Sequence[str]) -> Iterator[Record]:
    """Of the .jsonl files in an archive; what macOS put in beside them (__MACOSX/…/._NAME.jsonl) is none."""
    try:
        with file_errors(path), zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".jsonl") and not Path(name).name.startswith("."):
                    with archive.open(name) as lines:
                        for number, line in enumerate(lines, start=1):
                            if not line.isspace():
                                yield _json_record(line, columns, f"{path}/{name}", number)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path}: is no zip archive, or a damaged one ({error}); copy or download it again") from error


def _json_record(line: bytes, columns: Sequence[str], file: str, number: int) -> Record:
    record = Record({}, file, "line", number)
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{record.where}: is not JSON: {error}") from error
    missing = [column for column in columns if not isinstance(values, dict) or column not in values]
    if missing:
        raise DataError(f"{record.where}: there is no column {missing[0]!r}; wanted {', '.join(columns)}")
    return record._replace(values=values)
