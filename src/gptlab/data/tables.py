"""Tables: columns of a .jsonl, .csv, .tsv or .parquet file, or of a data set on the hub, as a stream of records."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from gptlab.data.readers import Progress, file_errors, read_blocks, read_lines
from gptlab.errors import DataError, nearest
from gptlab.hub import hub_errors

Texts = Iterator[str | None]
"""The texts of a column in order; None where a record has null there."""


class Record(NamedTuple):
    """One record: its values by column, and where it stands: the `number`th "line" or "record" of `file`, from 1."""

    values: dict[str, Any]
    file: str
    unit: str
    number: int

    @property
    def where(self) -> str:
        return f"{self.file}, {self.unit} {self.number}"


def read_records(
    path: Path,
    format: str,
    columns: Sequence[str],
    progress: Progress,
    optional: Sequence[str] = (),
    *,
    header: bool = True,
) -> Iterator[Record]:
    """The records of the table at `path` with at least these columns, and the `optional` ones where they are there.

    header: whether the first line of a .csv or .tsv names the columns; where none does they are "1", "2", …

    DataError, with the line where there is one: no such column, a record that cannot be read; a table of another
    format without a header, which always has one.
    """
    if format in DIALECTS:
        return _read_separated(path, format, columns, optional, progress, header)
    if not header:
        raise DataError(f"{path}: {format} names its columns in every file; header = false is for .csv and .tsv")
    return READERS[format](path, columns, optional, progress)


def read_table(path: Path, format: str, column: str, progress: Progress) -> Texts:
    """The texts in `column` of the table at `path`; DataError also where a value is no text."""
    return (text_of(record, column) for record in read_records(path, format, [column], progress))


def text_of(record: Record, column: str) -> str | None:
    """The text in a column of a record, None where it is null; DataError where it is something else."""
    text = record.values[column]
    if text is None:
        return None
    if not isinstance(text, str):
        raise DataError(f"{record.where}: column {column!r} holds {str(text)[:40]!r} ({type(text).__name__}), not text")
    if not is_unicode(text):
        raise DataError(f"{record.where}: column {column!r} holds half a surrogate pair, which is no text")
    return text


def is_unicode(text: str) -> bool:
    """Whether `text` can be encoded. JSON can write half a surrogate pair, which no encoding has."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_jsonl(path: Path, columns: Sequence[str], optional: Sequence[str], progress: Progress) -> Iterator[Record]:
    for number, line in read_lines(path, progress):
        record = Record({}, str(path), "line", number)
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{record.where}: is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise DataError(f"{record.where}: is a {type(values).__name__}, not an object with columns")
        yield _checked(record._replace(values=values), columns)


def _read_separated(
    path: Path, format: str, columns: Sequence[str], optional: Sequence[str], progress: Progress, header: bool
) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)  # a document is often longer than csv's 128 kB; C long has 32 bits on Windows
    lines = (line for block in read_blocks(path, progress) for line in io.StringIO(block.text, newline="\n"))
    rows = csv.reader(lines, strict=True, **DIALECTS[format])
    try:
        first = next(rows, [])
        names = first if header else [str(number) for number in range(1, len(first) + 1)]
        _check_columns(f"{path}, line 1{' (the header)' if header else ''}", columns, names)
        places = [(name, names.index(name)) for name in (*columns, *optional) if name in names]
        line = rows.line_num + 1 if header else 1
        for row in rows if header else chain([first], rows):
            if len(row) == len(names):
                yield Record({name: row[place] for name, place in places}, str(path), "line", line)
            elif row:
                wanted = f"{'the header' if header else 'line 1'} has {len(names)}"
                raise DataError(f"{path}, line {rows.line_num}: {len(row)} fields where {wanted}")
            line = rows.line_num + 1  # a record may stand on several lines: it is where its first one is
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}") from error


def _read_parquet(path: Path, columns: Sequence[str], optional: Sequence[str], progress: Progress) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        with file_errors(path), pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            names = file.schema_arrow.names
            _check_columns(str(path), columns, names)
            wanted = [*columns, *(name for name in optional if name in names)]
            size, rows = path.stat().st_size, 0
            for batch in file.iter_batches(batch_size=1024, columns=wanted):
                progress(size * (rows + batch.num_rows) // file.metadata.num_rows)
                for values in batch.to_pylist():
                    rows += 1
                    yield Record(values, str(path), "record", rows)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


DIALECTS: dict[str, dict[str, Any]] = {".csv": {}, ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE}}
"""Tab-separated values have no quoting (IANA, text/tab-separated-values): a quotation mark is text."""

READERS: dict[str, Callable[[Path, Sequence[str], Sequence[str], Progress], Iterator[Record]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}


class HubTable(NamedTuple):
    """A table on the hub: the data set, its configuration, split and commit, or only the files that match a glob."""

    repo: str
    config: str | None
    split: str
    revision: str
    files: str | None = None


def read_hub_records(table: HubTable, columns: Sequence[str]) -> Iterator[Record]:
    """The records of a data set on the hub that have these columns, streamed: nothing of it is kept on disk.

    DataError where it has no such configuration, split or column; GptlabError where the hub cannot be reached.
    """
    with hub_errors(table.repo, "dataset"):
        for number, values in enumerate(_open_hub(table), start=1):
            yield _checked(Record(values, f"{table.repo} on the hub", "record", number), columns)


def class_names(table: HubTable, column: str) -> tuple[str, ...] | None:
    """What the numbers 0, 1, … in a column of a data set on the hub mean, where the data set says (`ClassLabel`); else
    None. Errors as `read_hub_records`."""
    with hub_errors(table.repo, "dataset"):
        from datasets import ClassLabel

        feature = (_open_hub(table).features or {}).get(column)
        return tuple(feature.names) if isinstance(feature, ClassLabel) else None


def _open_hub(table: HubTable) -> Any:
    """The data set, streaming (`datasets.IterableDataset`)."""
    from datasets import load_dataset

    try:
        return load_dataset(
            table.repo, table.config, split=table.split, revision=table.revision, data_files=table.files,
            streaming=True,
        )  # fmt: skip
    except ValueError as error:
        raise DataError(f"the data set {table.repo} on the hub: {error}") from error


def read_hub(table: HubTable, column: str) -> Texts:
    """The texts in `column` of a data set on the hub, as `read_hub_records`; DataError also where one is no text."""
    return (text_of(record, column) for record in read_hub_records(table, [column]))


def columns_of(path: Path, format: str) -> list[str]:
    """The columns of the table at `path`; of JSON lines those of the first."""
    if format == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            with file_errors(path):
                return list(pyarrow.parquet.read_schema(path).names)
        except pyarrow.ArrowException as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
    if format in DIALECTS:
        line = next((line for _, line in read_lines(path, lambda position: None)), "")
        return next(csv.reader([line], **DIALECTS[format]), [])
    return list(next((record.values for record in read_records(path, format, [], lambda position: None)), {}))


def _checked(record: Record, columns: Sequence[str]) -> Record:
    """The record, which must have these columns."""
    if any(column not in record.values for column in columns):
        _check_columns(record.where, columns, list(record.values))
    return record


def _check_columns(where: str, columns: Sequence[str], there: Sequence[str]) -> None:
    for column in columns:
        if column not in there:
            known = ", ".join(map(repr, there)) or "none"
            raise DataError(f"{where}: there is no column {column!r}{nearest(column, list(there))}; there is {known}")
